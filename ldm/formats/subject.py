"""The subject of an exported model, in its folder's `dreambooth.json`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.formats.described import Content, described, read_json
from ldm.values import NonNegativeInt, Text

SUBJECT_FILE = "dreambooth.json"


class Subject(Content):
    """The identifier, the class word, and the step at which the model was written; all None for a plain base."""

    identifier: Text | None = None
    class_word: str | None = None
    step: NonNegativeInt | None = None


def read_subject(folder: Path) -> Subject:
    """The subject of an exported folder; an empty one for any other base. Raises UserError for a damaged file."""
    path = folder / SUBJECT_FILE
    return described(Subject, read_json(path), path) if os.path.exists(path) else Subject()


def notes_of(subject: Mapping[str, Any], card: str | None) -> dict[str, str]:
    """Files that go with exported weights, by name: what [V] means, and the model card `card`."""
    notes = {SUBJECT_FILE: json.dumps(dict(subject), indent=1) + "\n"} if subject else {}
    return notes | ({"README.md": card} if card else {})
