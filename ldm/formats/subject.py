"""The subject of an exported model, in its folder's `dreambooth.json`."""

import os
from pathlib import Path

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
