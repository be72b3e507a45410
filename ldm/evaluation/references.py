"""The subject that is measured: its class, and the photographs that it is measured against."""

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
    """What is measured, against which photographs."""

    class_word: str
    references: Mapping[str, list[Path]]
    """Photographs by what they are, such as "held_out" or "training"; the first are those of the metrics."""
    note: str
    """What the photographs are, in words for the reader of the result."""


def subject_of_run(run: Path | None, class_word: str | None) -> Subject:
    """The subject that a run was trained on, and its photographs, held out ones first.

    class_word: in place of the run's. Raises UserError where there is no run, or its photographs are gone.
    """
    data = _data_settings(run)
    class_word = _class_word(class_word, data)
    if run is None or not data.get("data_root"):
        raise UserError("no photographs of the subject known: name their folder with --real")
    files = image_files(find_near(data["data_root"], run))
    kept, held_out = split_held_out(files, data.get("hold_out") or 0)
    if held_out:
        note = (
            f"fidelity is against {len(held_out)} images that training never saw (hold_out: {len(held_out)})"
        )
        return Subject(class_word, {"held_out": held_out, "training": kept}, note)
    note = (
        f"fidelity is against the {len(kept)} images the subject was trained on, as in the paper, so what was merely"
        " memorized counts too; train with data.params.hold_out=N to keep images apart"
    )
    return Subject(class_word, {"training": kept}, note)


def subject_in_folder(real: Path, hold_out: int, run: Path | None, class_word: str | None) -> Subject:
    """The subject of the photographs in `real`, scored by the last `hold_out` of them, or by all where that is 0.

    class_word: in place of the run's.
    """
    class_word = _class_word(class_word, _data_settings(run))
    files = image_files(real)
    if hold_out >= len(files):
        raise UserError(f"--hold_out {hold_out}: {real} has {len(files)} images, and some must be left")
    rest, held_out = split_held_out(files, hold_out)
    if held_out:
        note = f"fidelity is against the last {len(held_out)} of the {len(files)} images of {real}"
        return Subject(class_word, {"held_out": held_out, "others": rest}, note)
    return Subject(class_word, {"given": files}, f"fidelity is against the {len(files)} images of {real}")


def _data_settings(run: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = read_plain(run / CONFIG)["data"]["params"] if run else {}
    return settings


def _class_word(word: str | None, data: Mapping[str, Any]) -> str:
    word = word or data.get("class_word")
    if not word:
        raise UserError("no class word known: name the subject's class noun with --class_word, such as dog")
    return word
