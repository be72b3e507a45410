"""The evaluated subject: its class, and its reference photographs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.config import read_plain
from ldm.data.images import image_files
from ldm.data.subject import split_held_out
from ldm.errors import UserError
from ldm.files import find_near
from ldm.formats.checkpoint_files import CONFIG


@dataclass(frozen=True)
class Subject:
    """The class and reference photographs of the evaluated subject."""

    class_word: str
    references: Mapping[str, list[Path]]
    """Photographs by role, such as "held_out" or "training"; the first are for the metrics."""
    note: str
    """A description of the photographs for the reader of the results."""


def subject_of_run(run: Path | None, class_word: str | None, place: int = 0) -> Subject:
    """The subject that a run was trained on, and its photographs, held-out ones first.

    class_word: replaces the run's. place: of the subject among several.
    Raises UserError if there is no run, or its photographs are missing.
    """
    data = _data_settings(run, place)
    class_word = _class_word(class_word, data)
    if run is None or not data.get("data_root"):
        raise UserError("the subject's photographs are not known: name their folder with --real")
    files = image_files(find_near(data["data_root"], run))
    kept, held_out = split_held_out(files, data.get("hold_out") or 0)
    if held_out:
        note = f"fidelity is measured against {len(held_out)} images not used in training (hold_out: {len(held_out)})"
        return Subject(class_word, {"held_out": held_out, "training": kept}, note)
    note = (
        f"fidelity is measured against the {len(kept)} training images, as in the paper, so memorization counts"
        " too; train with data.params.hold_out=N to hold out images"
    )
    return Subject(class_word, {"training": kept}, note)


def subject_in_folder(real: Path, hold_out: int, run: Path | None, class_word: str | None) -> Subject:
    """The subject of the photographs in `real`, with the last `hold_out` as reference; 0 for all.

    class_word: replaces the run's.
    """
    class_word = _class_word(class_word, _data_settings(run))
    files = image_files(real)
    if hold_out >= len(files):
        raise UserError(f"--hold_out {hold_out}: {real} has only {len(files)} images, and some must remain")
    rest, held_out = split_held_out(files, hold_out)
    if held_out:
        note = f"fidelity is measured against the last {len(held_out)} of the {len(files)} images in {real}"
        return Subject(class_word, {"held_out": held_out, "others": rest}, note)
    return Subject(
        class_word, {"given": files}, f"fidelity is measured against the {len(files)} images in {real}"
    )


def _data_settings(run: Path | None, place: int = 0) -> dict[str, Any]:
    """The data's settings, with those of the subject at `place` where there is a list of them."""
    settings: dict[str, Any] = read_plain(run / CONFIG)["data"]["params"] if run else {}
    concepts = settings.get("concepts")
    return settings | concepts[place] if concepts else settings


def _class_word(word: str | None, data: Mapping[str, Any]) -> str:
    word = word or data.get("class_word")
    if not word:
        raise UserError("the class word is not known: give the subject's class noun, as in --class_word dog")
    return word
