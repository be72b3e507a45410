"""What a base model knows, and how best to sample it, from `knowledge.json` beside its `model_index.json`.

The file is optional and not part of the base's fingerprint. Other keys in it are ignored.
"""

import os
import warnings
from pathlib import Path
from typing import Any

from ldm.diffusion.sampling import Sampling
from ldm.files import find
from ldm.formats.described import Content, described, read_json
from ldm.values import Count, NonNegativeFloat, SamplerName

FILE = "knowledge.json"


class Advice(Content):
    """How a model is best sampled."""

    sampler: SamplerName
    steps: Count
    guidance_scale: NonNegativeFloat


HABIT = Advice(sampler="ddim", steps=50, guidance_scale=7.5)
"""What a base that says nothing is sampled with: Stable Diffusion's defaults."""


class Knowledge(Content):
    """The content of the file."""

    nouns: list[str]
    """All nouns that it knows; empty if unknown."""
    sampling: Advice | None = None
    """How it is best sampled, where the file says."""

    def knows(self, class_word: str) -> bool:
        """Whether `class_word` is one of the nouns, or ends in one, as "small dog" does."""
        word = class_word.strip().lower()
        return not self.nouns or any(word == noun or word.endswith(f" {noun}") for noun in self.nouns)


def read_knowledge(base: str | Path) -> Knowledge:
    """What the base knows; no nouns for hub ids, single files, and folders without the file.

    Raises UserError if the file does not match `Knowledge`.
    """
    path = find(base) / FILE
    return described(Knowledge, read_json(path), path) if os.path.exists(path) else Knowledge(nouns=[])


def advised_sampling(
    base: str | Path,
    sampler: str | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    **others: Any,
) -> Sampling:
    """`Sampling` of the given settings; for what is None, the base's own advice, or else the habit."""
    advice = read_knowledge(base).sampling or HABIT
    return Sampling(
        advice.sampler if sampler is None else sampler,
        advice.steps if steps is None else steps,
        advice.guidance_scale if guidance_scale is None else guidance_scale,
        **others,
    )


def note_for_copies(base: str | Path) -> dict[str, str]:
    """The file, by its name, for the folder of a model that was made from `base`; nothing where it has none."""
    path = find(base) / FILE
    return {FILE: path.read_text(encoding="utf-8")} if os.path.isfile(path) else {}


def warn_of_unknown_class(base: str | Path, class_word: str) -> None:
    """Warn if the base lists the nouns that it knows and `class_word` is not one of them."""
    knowledge = read_knowledge(base)
    if not knowledge.knows(class_word):
        warnings.warn(
            f"class word '{class_word}': {base} does not know it, and would draw something else; "
            f"it knows {', '.join(knowledge.nouns)}",
            stacklevel=1,  # the same place each time, so that it is said once
        )
