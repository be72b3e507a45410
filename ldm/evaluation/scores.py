"""Scores of the protocol's images, one row per image, and the metrics over them."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
from torch import Tensor

from ldm.data.images import load_image
from ldm.errors import UserError
from ldm.evaluation.features import Clip, Dino, FeatureNetwork, Lpips
from ldm.evaluation.metrics import METRICS, Seen, feature_distances
from ldm.evaluation.protocol import Item, groups
from ldm.evaluation.statistics import Estimate, mean, summary

FACTS = ("file", "kind", "prompt", "text", "seed")
"""Columns of images.csv before the metrics."""


class NetworkFacts(TypedDict):
    """The feature networks, and how DIV is measured."""

    dino: Mapping[str, object]
    clip: Mapping[str, object]
    div: str
    others: NotRequired[Mapping[str, Mapping[str, object]]]


class About(TypedDict, total=False):
    """What is measured: a model or a folder of images, and the subject."""

    model: str
    images: str
    weights: str
    step: int | None
    sampling: Mapping[str, object] | None
    identifier: str | None
    class_word: str
    prompts: str
    real_images: Mapping[str, Sequence[str]]
    """Names of files by their role."""
    note: str


class Result(TypedDict):
    """The content of metrics.json. Estimates are by metric."""

    networks: NetworkFacts
    metrics: Mapping[str, Estimate]
    real: Mapping[str, Estimate]
    against: Mapping[str, Mapping[str, float]]
    """By role of the real images: their number, and the metrics that depend on them."""
    prompts: Sequence[Mapping[str, Any]]
    """Kind, prompt and text, and the mean of each metric."""
    about: NotRequired[About]
    base: NotRequired[Mapping[str, Estimate]]
    """The metrics of the untrained base."""


@dataclass(frozen=True)
class Row:
    """One image and its scores."""

    file: str
    kind: str
    prompt: str
    text: str
    seed: int | None
    group: int
    """Number of the group of images it is compared with."""
    scores: Mapping[str, float]
    """By metric key; NaN for metrics of the other kind of image, or that need more images."""

    def cells(self) -> dict[str, object]:
        """A line of images.csv by column; None if not measured."""
        scores = {key: None if math.isnan(value) else value for key, value in self.scores.items()}
        return {name: getattr(self, name) for name in FACTS} | scores


class Features(NamedTuple):
    """Features [N, D] of N images by DINO, CLIP and the other networks."""

    dino: Tensor
    clip: Tensor
    others: Mapping[str, Tensor]


@dataclass(frozen=True)
class Networks:
    """The feature networks. diversity: "dino" or "clip", whose features give DIV without LPIPS."""

    dino: Dino
    clip: Clip
    lpips: Lpips | None = None
    diversity: str = "dino"
    others: Mapping[str, FeatureNetwork] = field(default_factory=dict)
    """Of single metrics, by name in `features.OTHERS`."""

    def __post_init__(self) -> None:
        if self.diversity not in ("dino", "clip"):
            raise UserError(f"config networks.diversity is '{self.diversity}': it must be dino or clip")

    def facts(self) -> NetworkFacts:
        """The networks, revisions and preprocessing, and how DIV is measured."""
        name = {"dino": self.dino, "clip": self.clip}[self.diversity].facts["network"]
        div = (
            f"LPIPS ({self.lpips.facts['network']})"
            if self.lpips
            else f"mean pairwise 1 - cosine in {name} features"
        )
        facts: NetworkFacts = {"dino": self.dino.facts, "clip": self.clip.facts, "div": div}
        if self.others:
            facts["others"] = {name: network.facts for name, network in self.others.items()}
        return facts

    def images(self, paths: Sequence[Path]) -> Features:
        """Every network's features of images."""
        return Features(
            self.dino.images(map(load_image, paths)),
            self.clip.images(map(load_image, paths)),
            {name: network.images(map(load_image, paths)) for name, network in self.others.items()},
        )


def score(
    items: Sequence[Item],
    references: Mapping[str, Sequence[Path]],
    networks: Networks,
    class_group: int = 4,
    root: Path | None = None,
) -> tuple[Result, list[Row]]:
    """Metrics and rows for the images `items`, which are on disk.

    references: real images by role ("held_out", "training", ...); rows and metrics use the first. class_group:
    how many class images DIV compares at a time. root: file names in rows are relative to it.
    """
    real = {name: networks.images(paths) for name, paths in references.items()}
    seen = extract_features(items, next(iter(real.values())), networks, class_group)
    place = {index: number for number, group in enumerate(seen.groups) for index in group}
    columns = {key: metric.measure(seen).tolist() for key, metric in METRICS.items()}
    rows = [
        Row(
            file=os.path.relpath(item.path, root) if root else str(item.path),
            kind=item.kind,
            prompt=item.prompt,
            text=item.text,
            seed=item.seed,
            group=place[index],
            scores={
                key: columns[key][index] if metric.images == item.kind else math.nan
                for key, metric in METRICS.items()
            },
        )
        for index, item in enumerate(items)
    ]
    result: Result = {
        "networks": networks.facts(),
        "metrics": summarize(rows),
        "real": {
            key: summary(metric.of_real(seen))
            for key, metric in METRICS.items()
            if metric.of_real is not None
        },
        "against": {
            name: against(
                items, replace(seen, real_dino=own.dino, real_clip=own.clip, real_others=own.others)
            )
            for name, own in real.items()
        },
        "prompts": per_prompt(rows),
    }
    return result, rows


def extract_features(items: Sequence[Item], real: Features, networks: Networks, class_group: int) -> Seen:
    """The networks' features of `items`, with those of the real images."""
    dino, clip, others = networks.images([item.path for item in items])
    texts = networks.clip.texts([item.text for item in items])
    diverse = {"dino": dino, "clip": clip}[networks.diversity]

    def distances(group: Sequence[int]) -> Tensor:
        if networks.lpips:
            return networks.lpips.distances([load_image(items[index].path) for index in group])
        return feature_distances(diverse[list(group)])

    return Seen(
        dino,
        clip,
        texts,
        real.dino,
        real.clip,
        others,
        real.others,
        groups(items, class_group),
        distances,
    )


def summarize(rows: Sequence[Row]) -> dict[str, Estimate]:
    """Every metric's mean, bootstrap interval, and number of images.

    The interval resamples prompts, since images of one prompt are much alike. Class images share one prompt and are
    resampled one by one, or by group if a metric compares images within groups.
    """
    found = {}
    for key, metric in METRICS.items():
        those = [row for row in rows if row.kind == metric.images]
        together = metric.images == "subject" or metric.compares_images
        clusters = [row.group for row in those] if together else None
        found[key] = summary([row.scores[key] for row in those], clusters)
    return found


def per_prompt(rows: Sequence[Row]) -> list[Mapping[str, object]]:
    """Mean scores of each prompt's images, in the order of the prompts."""
    by_prompt: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault((row.kind, row.prompt), []).append(row)
    return [
        {
            "kind": kind,
            "prompt": prompt,
            "text": those[0].text,
            **{key: mean([row.scores[key] for row in those]) for key in METRICS},
        }
        for (kind, prompt), those in by_prompt.items()
    ]


def against(items: Sequence[Item], seen: Seen) -> dict[str, float]:
    """The subject's metrics that depend on the real images, for those in `seen`."""
    subject = torch.tensor([item.kind == "subject" for item in items])
    values = {
        key: float(metric.measure(seen)[subject].mean())
        for key, metric in METRICS.items()
        if metric.of_real is not None
    }
    return {"images": len(seen.real_dino), **values}
