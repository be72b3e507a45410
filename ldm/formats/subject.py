"""The subjects of an exported model, in its folder's `dreambooth.json`."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from ldm.concepts import PLACEHOLDER, Learned, Placeholder
from ldm.formats.described import Content, described, read_json
from ldm.values import Count, NonNegativeInt, Text

SUBJECT_FILE = "dreambooth.json"


class LearnedConcept(Content):
    """A learned subject: its identifier, class and placeholder."""

    identifier: Text
    class_word: str | None = None
    placeholder: Placeholder = PLACEHOLDER

    def learned(self) -> Learned:
        """The subject, as needed for prompts."""
        return Learned(self.identifier, self.class_word, self.placeholder)


class Subject(Content):
    """The first subject's identifier and class word, the step of the model, all subjects, and its `clip_skip`.

    The first three are None for a plain base; `concepts` is empty if [V] is the only subject.
    """

    identifier: Text | None = None
    class_word: str | None = None
    step: NonNegativeInt | None = None
    concepts: list[LearnedConcept] = []
    clip_skip: Count = 1

    def learned(self) -> tuple[Learned, ...]:
        """The subjects, as needed for prompts."""
        if self.concepts:
            return tuple(subject.learned() for subject in self.concepts)
        return (Learned(self.identifier, self.class_word),) if self.identifier else ()


def subject_facts(subjects: Sequence[Learned], step: int | None, clip_skip: int = 1) -> dict[str, object]:
    """The content for `Subject`, without unknown and usual values."""
    read: dict[str, object] = {"clip_skip": clip_skip} if clip_skip > 1 else {}
    if not subjects:
        return read if step is None else {"step": step, **read}
    first = subjects[0]
    facts = {"identifier": first.identifier, "class_word": first.class_word, "step": step}
    known: dict[str, object] = {key: value for key, value in facts.items() if value is not None}
    if len(subjects) > 1 or first.placeholder != PLACEHOLDER:
        known["concepts"] = [asdict(subject) for subject in subjects]
    return known | read


def read_subject(folder: Path) -> Subject:
    """The subjects of an exported folder; none for any other base. Raises UserError for a damaged file."""
    path = folder / SUBJECT_FILE
    return described(Subject, read_json(path), path) if os.path.exists(path) else Subject()


def notes_of(subject: Mapping[str, object], card: str | None) -> dict[str, str]:
    """Files for an export beside the weights, by name: the meaning of [V], and the model card `card`."""
    notes = {SUBJECT_FILE: json.dumps(dict(subject), indent=1) + "\n"} if subject else {}
    return notes | ({"README.md": card} if card else {})
