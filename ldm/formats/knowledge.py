"""What a base model knows, by the `knowledge.json` beside its `model_index.json`.

The file is optional and not part of the base's fingerprint. Other keys in it are ignored.
"""

import os
import warnings
from pathlib import Path

from ldm.files import find
from ldm.formats.described import Content, described, read_json

FILE = "knowledge.json"


class Knowledge(Content):
    """What a base can draw, as far as the file says."""

    nouns: list[str]
    """All nouns that it knows; empty where the file does not say."""

    def knows(self, class_word: str) -> bool:
        """Whether `class_word` is one of the nouns, or ends in one, as "small dog" does."""
        word = class_word.strip().lower()
        return not self.nouns or any(word == noun or word.endswith(f" {noun}") for noun in self.nouns)


def read_knowledge(base: str | Path) -> Knowledge:
    """What the base knows; no nouns for hub ids, single files, and folders without the file.

    Raises UserError where the file is not as `Knowledge` describes it.
    """
    path = find(base) / FILE
    return described(Knowledge, read_json(path), path) if os.path.exists(path) else Knowledge(nouns=[])


def warn_of_unknown_class(base: str | Path, class_word: str) -> None:
    """Warn where the base lists the nouns that it knows and `class_word` is not one of them."""
    knowledge = read_knowledge(base)
    if not knowledge.knows(class_word):
        warnings.warn(
            f"class word '{class_word}': {base} does not know it, and would draw something else; "
            f"it knows {', '.join(knowledge.nouns)}",
            stacklevel=1,  # the same place each time, so that it is said once
        )
