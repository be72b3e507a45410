"""A list of the runs in a folder, and a page that compares runs."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError, printable
from ldm.evaluation.metrics import METRICS
from ldm.formats.checkpoint_files import CONFIG
from ldm.pages.page import render, size
from ldm.pages.plots import Plot, Series, plot, smoothed
from ldm.training.curves import CURVES, curve_of
from ldm.training.messages import duration
from ldm.training.run_page import Album, Track, capitalized, text
from ldm.training.run_record import RunRecord, State, size_on_disk, state_of

SEEDS = 2
"""Number of pictures per prompt that are compared, for each run and step."""


def run_folders(logdir: Path) -> list[Path]:
    """The run folders in `logdir`, oldest first."""
    if not logdir.is_dir():
        raise UserError(f"{logdir}: no such folder of runs; --logdir names the one that main.py wrote to")
    found = [path.parent.parent for path in logdir.glob(f"*/{CONFIG}")]
    return sorted(found, key=lambda folder: (folder / CONFIG).stat().st_mtime)


def listing(logdir: Path, every_byte: bool = False) -> str:
    """The runs in `logdir` as a text table. every_byte: check every byte of their checkpoints."""
    rows = [("run", "subject", "state", "subject loss", "drift", "size")]
    for folder in run_folders(logdir):
        state = state_of(folder, every_byte)
        cells = ["", "", ""]
        with contextlib.suppress(UserError):
            record = RunRecord.read(folder)
            cells = [record.subject, _last(record, "val/subject_loss"), _last(record, "val/drift")]
        rows.append((folder.name, cells[0], state.words, cells[1], cells[2], size(size_on_disk(folder))))
    if len(rows) == 1:
        return f"no runs in {logdir}"
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(printable(line.rstrip()) for line in lines)


def _last(record: RunRecord, name: str) -> str:
    points = record.series(name)
    return f"{points[-1][1]:.4f}" if points else ""


def comparison(folders: Sequence[Path]) -> str:
    """The page that compares the runs in `folders`. Raises UserError if one is not a run."""
    records = [RunRecord.read(folder) for folder in folders]
    states = [state_of(folder) for folder in folders]
    labels = [_label(number, record) for number, record in enumerate(records)]
    tracks, steps = side_by_side(records, labels)
    return render(
        "compare.html",
        title=f"{len(records)} runs compared",
        data={record.name: {"validation": record.validation} for record in records},
        runs=[_facts(*run) for run in zip(labels, records, states, strict=True)],
        plots=plots(records, labels),
        tracks=tracks,
        steps=steps,
        labels=labels,
        differences=differences(records),
        metrics=list(METRICS.values()),
        lines=evaluations(records, labels),
    )


def _label(number: int, record: RunRecord) -> str:
    """A name for legends: a letter, and the run's name without its time."""
    letter = chr(ord("A") + number) if number < 26 else str(number)
    return f"{letter} {record.name.partition('_')[2] or record.name}"


def _facts(label: str, record: RunRecord, state: State) -> list[str]:
    time = duration(record.seconds) if record.seconds else "–"
    last = [_last(record, name) or "–" for name in ("val/subject_loss", "val/drift", "val/score")]
    return [label, record.name, record.subject, state.words, *last, time]


def plots(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Plot]:
    """A plot for every recorded number, with one curve per run; those of training are smoothed."""
    names = list(dict.fromkeys(name for record in records for name in record.names()))
    names = [name for name in CURVES if name in names] + [name for name in names if name not in CURVES]
    found = []
    for name in names:
        is_training = name.startswith("train/")
        lines = [
            Series(label, smoothed(points) if is_training else points, number, has_dots=not is_training)
            for number, (record, label) in enumerate(zip(records, labels, strict=True))
            if (points := record.series(name))
        ]
        hint = "in training, smoothed" if is_training else ""
        found.append(plot(capitalized(curve_of(name).title), lines, hint=hint))
    return [drawn for drawn in found if drawn]


def side_by_side(
    records: Sequence[RunRecord], labels: Sequence[str]
) -> tuple[list[tuple[str, list[Track]]], list[int]]:
    """The tracks of all runs for each prompt and its first seeds, and the steps."""
    found: dict[str, list[Track]] = {}
    steps: set[int] = set()
    album = Album()
    for record, label in zip(records, labels, strict=True):
        tracks, own = album.tracks(record.sheets)
        steps |= set(own)
        for prompt, of_prompt in tracks:
            for track in of_prompt[:SEEDS]:
                title = f"{prompt}, {track.label}" if track.label else prompt
                found.setdefault(title, []).append(Track(label, track.frames))
    return list(found.items()), sorted(steps)


def differences(records: Sequence[RunRecord]) -> list[list[str]]:
    """Settings that differ between runs: the key, then each run's value."""
    settings = [record.settings for record in records]
    keys = sorted({key for own in settings for key in own})
    values = {key: [text(own.get(key)) for own in settings] for key in keys}
    return [[key, *of_runs] for key, of_runs in values.items() if len(set(of_runs)) > 1]


def evaluations(
    records: Sequence[RunRecord], labels: Sequence[str]
) -> list[tuple[str, dict[str, object], str]]:
    """Rows of a table of metrics, one for each run evaluated by scripts/evaluate.py."""
    lines: list[tuple[str, dict[str, object], str]] = []
    for record, label in zip(records, labels, strict=True):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            metrics = json.loads((record.folder / "evaluation" / "metrics.json").read_bytes())["metrics"]
            lines.append((label, {key: dict(metrics[key]) for key in METRICS if key in metrics}, ""))
    return lines
