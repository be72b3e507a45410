"""What a base model says it knows, in `knowledge.json` beside its `model_index.json`.

The file is optional and no part of the base's fingerprint. Keys that are not read here are left alone.
"""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError
from ldm.files import find

FILE = "knowledge.json"


@dataclass(frozen=True)
class Knowledge:
    """What a base can draw, as far as it says so."""

    nouns: tuple[str, ...] = ()
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
    if not path.is_file():
        return Knowledge()
    try:
        nouns = json.loads(path.read_text(encoding="utf-8"))["nouns"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        nouns = None
    if not isinstance(nouns, list) or not all(isinstance(noun, str) for noun in nouns):
        raise UserError(f'{path}: expected {{"nouns": [words]}}; mend or remove it')
    return Knowledge(tuple(nouns))


def warn_of_unknown_class(base: str | Path, class_word: str) -> None:
    """Warn where the base lists the nouns that it knows, and `class_word` is none of them."""
    knowledge = read_knowledge(base)
    if not knowledge.knows(class_word):
        warnings.warn(
            f"class word '{class_word}': {base} does not know it, and what it draws for it is no such thing; "
            f"it knows {', '.join(knowledge.nouns)}",
            stacklevel=1,  # the same place each time, so that it is said once
        )
