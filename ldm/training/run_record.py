"""Reads a run from its folder: settings, curves, samples, state. Any of its files may be missing or damaged."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldm import config as configs
from ldm.concepts import PLACEHOLDER, default_placeholder
from ldm.errors import UserError
from ldm.files import no_link
from ldm.formats.checkpoint_files import CONFIG, LAST, older_states, problem_with
from ldm.formats.safe_loading import load_checkpoint
from ldm.formats.subject import read_subject
from ldm.training.rows import read_rows

USAGE = Path("configs", "usage.json")
"""Time and memory of each start of the run."""

Rows = list[dict[str, Any]]


Kind = Literal["running", "stopped", "finished", "damaged"]


@dataclass(frozen=True)
class State:
    """The state of a run."""

    kind: Kind
    step: int
    """The last known step: trained so far, or of the state to resume from."""
    steps: int
    """Total number of steps."""
    problem: str = ""

    @property
    def words(self) -> str:
        """The state in words, for lists of runs."""
        if self.kind == "damaged":
            return f"damaged: {self.problem}"
        if self.kind == "stopped":
            return f"resumable at step {self.step} of {self.steps}"
        return f"{self.kind} at step {self.step} of {self.steps}" if self.kind == "running" else self.kind


@dataclass(frozen=True)
class RunRecord:
    """A run, read from its folder."""

    folder: Path
    config: dict[str, Any]
    losses: Rows
    validation: Rows
    fidelity: Rows
    starts: Rows
    """Command, time, versions and machine of each start."""
    usage: Rows = field(default_factory=list)
    """Steps, seconds and memory of each start."""

    @classmethod
    def read(cls, folder: Path, earlier: "RunRecord | None" = None) -> "RunRecord":
        """The record of `folder`.

        earlier: a record read by the same start of the run, whose unchanged parts are reused.
        Raises UserError if `folder` is not a run, or a record in it is damaged.
        """
        if not (folder / CONFIG).is_file():
            raise UserError(f"{folder} is no run folder ({CONFIG} is missing)")
        return cls(
            folder=folder,
            config=earlier.config if earlier else configs.read_plain(folder / CONFIG),
            losses=read_rows(folder / "metrics.jsonl"),
            validation=read_rows(folder / "validation.jsonl"),
            fidelity=[beside_validation(row) for row in read_rows(folder / "fidelity.jsonl")],
            starts=earlier.starts if earlier else read_starts(folder),
            usage=_read_list(folder / USAGE),
        )

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def settings(self) -> dict[str, Any]:
        """The config's values by their paths."""
        return configs.flat(self.config)

    @property
    def steps(self) -> int:
        """Total number of optimizer steps."""
        steps = self.settings.get("lightning.trainer.max_steps")
        return steps if isinstance(steps, int) else 0

    @property
    def subject(self) -> str:
        """Identifiers and class words as text, with placeholders for identifiers that the run chooses."""
        own = self.settings.get("model.params.identifier")
        given = [concept.get("identifier") for concept in self._concepts] or [own]
        pairs = zip(given, self.subjects, strict=True)
        return ", ".join(
            f"{identifier or placeholder} {word}".strip() for identifier, (placeholder, word) in pairs
        )

    @property
    def subjects(self) -> list[tuple[str, str]]:
        """Placeholder and class word of each subject."""
        concepts = self._concepts
        return [
            (
                str(concept.get("placeholder") or default_placeholder(number, len(concepts))),
                str(concept.get("class_word") or ""),
            )
            for number, concept in enumerate(concepts)
        ] or [(PLACEHOLDER, str(self.settings.get("data.params.class_word") or ""))]

    @property
    def _concepts(self) -> list[dict[str, Any]]:
        data = self.config.get("data")
        params = data.get("params") if isinstance(data, dict) else None
        listed = params.get("concepts") if isinstance(params, dict) else None
        return (
            [concept for concept in listed if isinstance(concept, dict)] if isinstance(listed, list) else []
        )

    @property
    def sheets(self) -> list[Path]:
        """The sheets of samples, by step."""
        return sorted((self.folder / "images").glob("step-*.png"))

    @property
    def seconds(self) -> float:
        """Duration of all starts."""
        return float(sum(row.get("seconds", 0) for row in self.usage))

    def series(self, name: str) -> list[tuple[float, float]]:
        """Points (step, value) of a number by its name in the loggers, such as val/drift."""
        kind, _, key = name.partition("/")
        rows = self.losses if kind == "train" else [*self.validation, *self.fidelity]
        found = {row["step"]: row[key] for row in rows if isinstance(row.get(key), int | float)}
        return sorted(found.items())

    def names(self) -> list[str]:
        """Names of the recorded numbers, for `series`."""
        rows = {"train": self.losses[-1:], "val": [*self.validation[-1:], *self.fidelity[-1:]]}
        found = [
            f"{kind}/{key}" for kind, last in rows.items() for row in last for key in row if key != "step"
        ]
        return list(dict.fromkeys(found))


def beside_validation(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of fidelity.jsonl under names that validation.jsonl has not: both have a score, of other numbers."""
    return {"fidelity_score" if key == "score" else key: row[key] for key in row if key != "drift"}


def state_of(folder: Path, every_byte: bool = False) -> State:
    """The state of the run in `folder`. every_byte: check every byte of its checkpoints."""
    try:
        record = RunRecord.read(folder)
    except UserError as error:
        return State("damaged", 0, 0, str(error))
    trained = max((row["step"] for row in record.losses), default=0)
    if is_locked(folder):
        return State("running", trained, record.steps)
    try:
        exported = read_subject(folder / "model").step
    except UserError as error:
        return State("damaged", trained, record.steps, str(error))
    if exported is not None and exported >= record.steps:
        return State("finished", exported, record.steps)
    return _resumable(folder, record.steps, every_byte)


def _resumable(folder: Path, steps: int, every_byte: bool) -> State:
    """The newest checkpoint that loads; without any, the run starts again."""
    checkpoints = folder / "checkpoints"
    problem = ""
    for path in (checkpoints / LAST, *older_states(checkpoints)):
        if not path.is_file():
            continue
        try:
            if every_byte and (found := problem_with(path)):
                raise UserError(found)
            step = int(load_checkpoint(path)["global_step"])
            return State("finished" if step >= steps else "stopped", step, steps)
        except (UserError, LookupError, TypeError, ValueError) as error:
            problem = problem or str(error)
    return State("damaged", 0, steps, problem) if problem else State("stopped", 0, steps)


def is_locked(folder: Path) -> bool:
    """Whether a process has locked the run folder with `run_folder.lock`."""
    try:
        with open(folder / ".lock", "rb", opener=no_link) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def size_on_disk(folder: Path) -> int:
    """Bytes of all files in `folder`; hard links to one file count once."""
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in _files(folder)}.values())


def _files(folder: Path) -> Iterator[os.stat_result]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                yield os.lstat(os.path.join(parent, name))


def read_starts(folder: Path) -> Rows:
    """The notes of each start of the run."""
    return [_read_object(path) for path in sorted((folder / CONFIG).parent.glob("start-*.json"))]


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it cannot be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        return value if isinstance(value, dict) else {}
    return {}


def _read_list(path: Path) -> Rows:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_bytes())
        return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    return []
