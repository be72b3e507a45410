"""Compares subjects trained together in one model with each trained alone."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from torch import Tensor

from ldm.concepts import PLACEHOLDER, name_of
from ldm.data.images import image_files, load_image
from ldm.errors import UserError
from ldm.evaluation.benchmark import interval_text
from ldm.evaluation.features import Dino
from ldm.evaluation.several import shares_of_likest
from ldm.evaluation.statistics import summary
from ldm.files import PROJECT
from ldm.world.datasets import TUNING, make_dataset
from ldm.world.drawing import World
from ldm.world.runs import Command, must, trained

ASSETS = PROJECT / "assets" / "benchmark"
NOUNS = {"cat": "cat", "backpack": "backpack", "boot": "boot", "vase": "vase", "car": "car"}
NOUNS |= {"teddy_bear": "teddy bear", "taxi": "car"}
GROUPS = {
    "one noun": ("car", "taxi"),
    "two nouns": ("cat", "car"),
    "six": ("cat", "backpack", "boot", "vase", "car", "teddy_bear"),
}
"""Withheld subjects to train together."""


@dataclass(frozen=True)
class Experiment:
    """Output folder, and how runs are trained and measured."""

    out: Path
    base: Sequence[str]
    """Configs of the runs."""
    overrides: Sequence[str]
    evaluation: Sequence[str]
    """Overrides of the evaluation's config."""
    steps: int
    """Optimizer steps for each subject of a run."""
    train: Command
    evaluate: Command
    alone: Path | None = None
    """Output folder of another comparison whose results of single subjects are taken; None: this one's own."""

    def result(self, subjects: Sequence[str], seed: int) -> dict[str, Any]:
        """Train and measure `subjects` together; existing results are reused."""
        evaluation = self.evaluation_of(subjects, seed)
        path = evaluation / ("concepts.json" if len(subjects) > 1 else "metrics.json")
        if not path.is_file():
            run = self._trained(subjects, seed, evaluation.parent)
            words = ["--ckpt", str(run), "--outdir", str(evaluation), "--no_base"]
            must(self.evaluate, [*words, *self.evaluation])
        return read(path)

    def refuse_missing(self, groups: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> None:
        """Raise UserError if `alone` lacks a result of a single subject."""
        for subject, seed in product({name for those in groups.values() for name in those}, seeds):
            path = self.evaluation_of([subject], seed) / "metrics.json"
            if self.alone and not path.is_file():
                raise UserError(f"--alone {self.alone}: no result of {subject} with seed {seed} ({path})")

    def evaluation_of(self, subjects: Sequence[str], seed: int) -> Path:
        """The folder of the evaluation of `subjects` with `seed`, beside their run."""
        out = self.alone if self.alone and len(subjects) == 1 else self.out
        return out / "+".join(subjects) / f"seed-{seed}" / "evaluation"

    def pictures(self, subject: str, seed: int) -> list[Path]:
        """The pictures of `subject`, trained alone, that were measured."""
        return sorted((self.evaluation_of([subject], seed) / "subject").glob("*.png"))

    def photographs(self, name: str) -> Path:
        """The folder with the photographs of the subject `name`."""
        if name not in TUNING:
            return ASSETS / name
        data = self.out / "data"
        if not (data / "prompts_and_classes.txt").is_file():
            make_dataset(World(), data, TUNING, "tuning")
        return data / name

    def _trained(self, subjects: Sequence[str], seed: int, folder: Path) -> Path:
        overlay = folder / "concepts.yaml"
        overlay.parent.mkdir(parents=True, exist_ok=True)
        concepts = [
            {"data_root": str(self.photographs(name)), "class_word": NOUNS[name]} for name in subjects
        ]
        overlay.write_text(yaml.safe_dump({"data": {"params": {"concepts": concepts}}}))
        steps = f"lightning.trainer.max_steps={self.steps * len(subjects)}"
        words = ["--base", *self.base, str(overlay), "--seed", str(seed), steps, *self.overrides]
        return trained(self.train, folder / "runs", words)


def read(path: Path) -> dict[str, Any]:
    """The result of an evaluation."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


Row = dict[str, Any]


def compare(experiment: Experiment, groups: Mapping[str, Sequence[str]], seeds: Sequence[int]) -> list[Row]:
    """For each group and subject: metrics alone and together, over `seeds`, and how its pictures are like others.

    scenes: DINO without the prompts of another colour, which ask for less likeness. confusion: the highest DINO with
    another subject. mistaken: the share of pictures likest to another subject of the group; mistaken_alone: the same of
    the run on this subject alone. together: pictures of this subject and each other one, the mean DINO of the less
    similar of both.
    """
    rows = []
    for group, subjects in groups.items():
        together = [experiment.result(subjects, seed) for seed in seeds]
        alone = [[experiment.result([name], seed) for seed in seeds] for name in subjects]
        shares = mistaken_alone(experiment, subjects, seeds)
        for place, name in enumerate(subjects):
            row: Row = {"group": group, "subject": name, "seeds": list(seeds)}
            for key in ("dino", "clip_t", "pres"):
                row[f"{key}_alone"] = [one["metrics"][key]["value"] for one in alone[place]]
                row[key] = [one["subjects"][place]["metrics"][key]["value"] for one in together]
            row["scenes_alone"] = [in_scenes(one) for one in alone[place]]
            own = name_of(together[0]["subjects"][place]["placeholder"])
            row["scenes"] = [
                in_scenes(read(experiment.evaluation_of(subjects, seed) / own / "metrics.json"))
                for seed in seeds
            ]
            others = [
                [one["confusion"][place][j] for j in range(len(subjects)) if j != place] for one in together
            ]
            row["confusion"] = [max(values) for values in others]
            row["mistaken_alone"] = shares[place]
            row["mistaken"] = [1 - one["nearest"][place][place] for one in together]
            row["together"] = [
                fmean(pair["dino_lower"] for pair in one["pairs"] if place in pair["subjects"])
                for one in together
            ]
            rows.append(row)
    return rows


def in_scenes(result: Mapping[str, Any]) -> float:
    """Mean DINO over the prompts that set the subject in a scene; the others, "a red [V] car", ask for another colour.

    result: the content of a metrics.json.
    """
    return fmean(
        prompt["dino"]
        for prompt in result["prompts"]
        if prompt["kind"] == "subject" and prompt["prompt"].startswith(f"a photo of {PLACEHOLDER}")
    )


def mistaken_alone(
    experiment: Experiment, subjects: Sequence[str], seeds: Sequence[int]
) -> list[list[float]]:
    """For each subject and seed, the share of its pictures, trained alone, that are likest to another of `subjects`."""
    network = experiment.result(subjects[:1], seeds[0])["networks"]["dino"]
    dino = Dino(network["network"], network["revision"])

    def features(paths: Sequence[Path]) -> Tensor:
        return dino.images(map(load_image, paths))

    photographs = [features(image_files(experiment.photographs(name))) for name in subjects]
    return [
        [
            1 - shares_of_likest(features(experiment.pictures(name, seed)), photographs)[place]
            for seed in seeds
        ]
        for place, name in enumerate(subjects)
    ]


TABLES = (
    {
        "dino_alone": "DINO alone",
        "dino": "DINO",
        "scenes_alone": "in scenes, alone",
        "scenes": "in scenes",
        "mistaken_alone": "likest to another, alone",
        "mistaken": "likest to another",
    },
    {
        "clip_t_alone": "CLIP-T alone",
        "clip_t": "CLIP-T",
        "pres_alone": "PRES alone",
        "pres": "PRES",
        "confusion": "highest DINO with another",
        "together": "both in one picture",
    },
)
"""Columns of the tables of subjects: of a row's values, their titles."""


def markdown(rows: Sequence[Row]) -> str:
    """Tables: means over the seeds with standard deviations, and what each group's subjects lose together."""
    lines = []
    for columns in TABLES:
        lines += [
            f"| group | subject | {' | '.join(columns.values())} |",
            "|---|---|" + "---:|" * len(columns),
        ]
        lines += [
            f"| {row['group']} | {row['subject']} | {' | '.join(spread(row[key]) for key in columns)} |"
            for row in rows
        ]
        lines.append("")
    return "\n".join([*lines, "Together less alone, paired by subject and seed:", "", *losses(rows)])


def losses(rows: Sequence[Row]) -> list[str]:
    """The table of each group's means together less alone.

    With 95 % intervals over subjects where a group has enough of them, over its seeds where it has two.
    """
    titles = {
        "dino": "DINO",
        "scenes": "DINO in scenes",
        "mistaken": "likest to another (lower)",
        "clip_t": "CLIP-T",
        "pres": "PRES (lower)",
    }
    lines = [f"| group | {' | '.join(titles.values())} |", "|---|" + "---:|" * len(titles)]
    for group in dict.fromkeys(row["group"] for row in rows):
        its = [row for row in rows if row["group"] == group]
        cells = []
        for key in titles:
            pairs = [
                (row["subject"], seed, a - b)
                for row in its
                for seed, a, b in zip(row["seeds"], row[key], row[f"{key}_alone"], strict=True)
            ]
            units = [subject if len(its) > 2 else seed for subject, seed, _ in pairs]
            cells.append(interval_text(summary([value for *_, value in pairs], units), signed=True))
        lines.append(f"| {group} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
