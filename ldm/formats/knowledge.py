"""What a base model says it knows, in `knowledge.json` beside its `model_index.json`.

The file is optional and no part of the base's fingerprint. Keys that are not read here are left alone.
"""

import os
import warnings
from pathlib import Path

from ldm.files import find
from ldm.formats.described import Content, described, read_json

FILE = "knowledge.json"


class Knowledge(Content):
    """What a base can draw, as far as it says so."""

    nouns: list[str]
    """All that it knows; empty where the base does not say."""

    def knows(self, class_word: str) -> bool:
        """Whether `class_word` is one of the nouns, or ends in one, as "small dog" does."""
        word = class_word.strip().lower()
        return not self.nouns or any(word == noun or word.endswith(f" {noun}") for noun in self.nouns)


def read_knowledge(base: str | Path) -> Knowledge:
    """What the base says of itself; nothing for hub ids, single files, and folders without that file.

    Raises UserError where the file holds anything but what `Knowledge` describes.
    """
    path = find(base) / FILE
    return described(Knowledge, read_json(path), path) if os.path.exists(path) else Knowledge(nouns=[])


def warn_of_unknown_class(base: str | Path, class_word: str) -> None:
    """Warn where the base lists the nouns that it knows, and `class_word` is none of them."""
    knowledge = read_knowledge(base)
    if not knowledge.knows(class_word):
        warnings.warn(
            f"class word '{class_word}': {base} does not know it, and what it draws for it is no such thing; "
            f"it knows {', '.join(knowledge.nouns)}",
            stacklevel=1,  # the same place each time, so that it is said once
        )
