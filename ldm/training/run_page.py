"""A run's page, `report.html` in its folder: one self-contained file, made from the folder's files."""

import functools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import config as configs
from ldm.data.sheet import Cell, picture_of, read_sheet
from ldm.errors import UserError, quoted
from ldm.files import PROJECT
from ldm.pages.page import render
from ldm.pages.pictures import Figure, figure
from ldm.pages.plots import Plot, Series, plot, smoothed
from ldm.training.curves import curve_of
from ldm.training.messages import duration
from ldm.training.run_record import RunRecord, State

PAGE = "report.html"
RECIPE = PROJECT / "configs" / "dreambooth.yaml"

HIGHER_IS_BETTER = ("val/fidelity_score", "val/dino", "val/clip_i", "val/clip_t")
"""Prefixes of the names of such curves; with several subjects each has one."""


@dataclass(frozen=True)
class Track:
    """Pictures of one prompt and seed over the steps."""

    label: str
    """Its seed or run, which distinguishes it from the prompt's other tracks."""
    frames: Sequence[tuple[int, Figure]]


@dataclass
class Album:
    """The pictures of a run's sheets, each of which is read again only if it has changed."""

    _read: dict[Path, tuple[tuple[int, int], list[tuple[Cell, Figure]]]] = field(default_factory=dict)

    def pictures(self, path: Path) -> list[tuple[Cell, Figure]]:
        """The pictures of a sheet, or the whole sheet if it does not say where they are."""
        stat = path.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        if path not in self._read or self._read[path][0] != stamp:
            self._read[path] = (stamp, _pictures(path))
        return self._read[path][1]

    def tracks(self, sheets: Sequence[Path]) -> tuple[list[tuple[str, list[Track]]], list[int]]:
        """The tracks of each prompt, and the steps."""
        found: dict[str, dict[int | None, list[tuple[int, Figure]]]] = {}
        steps: list[int] = []
        for path in sheets:
            digits = path.stem.removeprefix("step-")
            if not digits.isdecimal():
                continue
            samples = [pair for pair in self.pictures(path) if not is_photograph(pair[0])]
            steps += [int(digits)] if samples else []
            for cell, picture in samples:
                found.setdefault(cell.title, {}).setdefault(cell.seed, []).append((int(digits), picture))
        tracks = [
            (title, [Track("" if seed is None else f"seed {seed}", frames) for seed, frames in own.items()])
            for title, own in found.items()
        ]
        return tracks, steps

    def photographs(self, sheets: Sequence[Path]) -> list[Figure]:
        """The photographs as the model sees them, from the newest sheet."""
        return (
            [picture for cell, picture in self.pictures(sheets[-1]) if is_photograph(cell)] if sheets else []
        )


def is_photograph(cell: Cell) -> bool:
    """Whether a cell of a sheet of samples is neither a sample nor the whole sheet."""
    return cell.seed is None and cell.scale > 0


def _pictures(path: Path) -> list[tuple[Cell, Figure]]:
    try:
        sheet, cells, _ = read_sheet(path)
    except UserError:  # the page is useful without it
        return []
    if not cells:
        whole = Cell("all prompts", None, 0, 0, *sheet.size, scale=0)
        return [(whole, figure(sheet, f"the samples of {path.stem}", side=1024))]
    return [(cell, figure(picture_of(sheet, cell), _alt(cell))) for cell in cells]


def _alt(cell: Cell) -> str:
    return cell.title if cell.seed is None else f"{cell.title}, seed {cell.seed}"


def run_page(record: RunRecord, state: State, album: Album) -> str:
    """The page of a run. album: keeps the pictures of its earlier pages."""
    sheets = record.sheets
    tracks, steps = album.tracks(sheets)
    prior = [
        pair for path in sorted(record.folder.glob("images/prior*.png")) for pair in album.pictures(path)
    ]
    return render(
        "run.html",
        title=f"{record.name}: {state.words}",
        data={"name": record.name, "state": state.kind, "step": state.step, "validation": record.validation},
        run=record,
        state=state,
        command=command(record, state),
        facts=facts(record, state),
        tracks=tracks,
        steps=steps,
        photographs=album.photographs(sheets),
        prior=[picture for _, picture in prior],
        own_class_pictures=any(
            value for key, value in record.settings.items() if key.endswith(".reg_data_root")
        ),
        prior_prompt="”, “".join(dict.fromkeys(cell.title for cell, _ in prior if cell.scale)),
        plots=plots(record),
        validation=validation_table(record),
        differences=differences(record),
        settings=[(key, text(value)) for key, value in sorted(record.settings.items())],
        starts=starts(record),
        curves=[curve_of(name) for name in record.names() if curve_of(name).description],
    )


def command(record: RunRecord, state: State) -> list[tuple[str, str]]:
    """Commands for the run in this state: (purpose, command line)."""
    folder = quoted(record.folder)
    if state.kind != "finished":
        return [("go on, where it was cut off", f"python main.py --resume {folder}")]
    placeholder, word = record.subjects[0]
    prompt = quoted(f"a photo of {placeholder} {word} on the moon")
    return [
        ("sample", f"python scripts/txt2img.py --ckpt {folder} --prompt {prompt}"),
        ("measure", f"python scripts/evaluate.py --ckpt {folder}"),
    ]


def facts(record: RunRecord, state: State) -> list[tuple[str, str, str]]:
    """The most important numbers: (name, value, small print)."""
    found = [("steps", f"{state.step:,} of {state.steps:,}", "")]
    for name in ("val/subject_loss", "val/drift", "val/score", *HIGHER_IS_BETTER):
        if points := record.series(name):
            (_, first), (step, last) = points[0], points[-1]
            choose = max if name in HIGHER_IS_BETTER else min
            best = choose(points[1:] or points, key=lambda point: point[1])
            more = f"was {first:.4f} at the base" if first else ""
            if name.endswith("score") and best[0] != step:
                more = f"best {best[1]:.4f} at step {best[0]}"
            found.append((curve_of(name).title, f"{last:.4f}", more))
    if record.seconds:
        found.append(("time", duration(record.seconds), "of training, start-up included"))
    peaks = [row["peak_memory"] for row in record.usage if isinstance(row.get("peak_memory"), int)]
    if peaks:
        found.append(("memory", f"{max(peaks) / 1e9:.2f} GB", "the process's peak"))
    peaks = [row["peak_gpu_memory"] for row in record.usage if isinstance(row.get("peak_gpu_memory"), int)]
    if peaks:
        found.append(("GPU memory", f"{max(peaks) / 1e9:.2f} GB", "peak"))
    return found


def plots(record: RunRecord) -> list[Plot]:
    """The curves of a run."""
    found: list[Plot | None] = []
    of_training = [name for name in record.names() if name.startswith("train/") and name != "train/loss"]
    for number, name in enumerate(of_training):
        points = record.series(name)
        curve = curve_of(name)
        lines = [
            Series("each step", points, number, is_raw=True),
            Series(f"{curve.title}, smoothed", smoothed(points), number),
        ]
        found.append(
            plot(capitalized(curve.title), lines, hint="in training: noisy, as each step draws its own noise")
        )
    for name in (n for n in record.names() if n.startswith("val/") and n != "val/score"):
        curve = curve_of(name)
        hint = "higher is better" if name.startswith(HIGHER_IS_BETTER) else "lower is better"
        kind = 1 if "drift" in name else 0
        series = Series(curve.title, record.series(name), kind, has_dots=True)
        found.append(plot(capitalized(curve.title), [series], hint=hint))
    return [drawn for drawn in found if drawn]


def validation_table(record: RunRecord) -> tuple[list[str], list[list[str]]]:
    """Header and rows of all validations."""
    names = [name for name in record.names() if name.startswith("val/")]
    by_name = {name: dict(record.series(name)) for name in names}
    steps = sorted({step for points in by_name.values() for step in points})
    rows = [
        [str(int(step)), *(f"{by_name[name][step]:.4f}" if step in by_name[name] else "–" for name in names)]
        for step in steps
    ]
    return ["step", *(curve_of(name).title for name in names)], rows


def differences(record: RunRecord) -> list[tuple[str, str, str]]:
    """Settings that differ from the recipe: (key, the recipe's, the run's)."""
    if record.config.get("model", {}).get("target") != _recipe().get("model.target"):
        return []
    ours, recipe = record.settings, dict(_recipe())
    seed = ours.get("seed")
    found = [
        (key, text(recipe.get(key)), text(ours.get(key)))
        for key in sorted(ours.keys() | recipe.keys())
        if ours.get(key) != recipe.get(key) and not (key.endswith(".seed") and ours.get(key) == seed)
    ]
    places = tuple(f"{key}." for key, _, now in found if now == "none")
    return [row for row in found if not row[0].startswith(places or ("\0",))]


@functools.cache
def _recipe() -> dict[str, Any]:
    return configs.flat(configs.load_config([RECIPE]))


def text(value: object) -> str:
    """A setting as readable text."""
    if value is None:
        return "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def starts(record: RunRecord) -> list[list[tuple[str, str]]]:
    """Command, steps, time, machine and versions of each start, with their names."""
    return [_start(start, record.usage, number) for number, start in enumerate(record.starts)]


def _start(start: dict[str, Any], usage: Sequence[dict[str, Any]], number: int) -> list[tuple[str, str]]:
    used = next((row for row in usage if row.get("start") == number), {})
    machine, packages, words = start.get("machine"), start.get("packages"), start.get("command")
    seconds = used.get("seconds")
    device = [
        used.get("device"),
        *(machine.values() if isinstance(machine, dict) else ()),
        start.get("platform"),
    ]
    versions = (
        [f"{name} {version}" for name, version in packages.items()] if isinstance(packages, dict) else []
    )
    return [
        ("begun", str(start.get("time", "?"))),
        ("command", shlex.join(map(str, words)) if isinstance(words, list) else "?"),
        ("steps", f"{used.get('from_step', '?')} to {used.get('to_step', '?')}"),
        ("time", duration(seconds) if isinstance(seconds, int | float) else "?"),
        ("machine", ", ".join(str(fact) for fact in device if fact)),
        ("versions", ", ".join([f"Python {start.get('python', '?')}", *versions])),
        ("this project", f"git {start.get('git', '?')}"),
    ]


def capitalized(words: str) -> str:
    """`words` as the title of a plot."""
    return words[:1].upper() + words[1:]
