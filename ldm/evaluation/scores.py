"""Scores of the protocol's images: one row an image, and the paper's metrics over them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.data.images import load_image
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.features import Clip, Dino, Lpips
from ldm.evaluation.protocol import Item, groups

METRICS = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "pres": "PRES",
    "div": "DIV",
    "class_clip_t": "CLIP-T, class",
    "class_div": "DIV, class",
}
"""Key in metrics.json -> what tables call it. The last two are of the bare-class images, and not the paper's."""

LOWER_IS_BETTER = {"pres"}


@dataclass
class Row:
    """One image's scores; a score that its kind of image has not is NaN."""

    file: str
    kind: str
    prompt: str
    text: str
    seed: int | None
    dino: float
    clip_i: float
    clip_t: float
    pres: float
    div: float


COLUMNS = tuple(field.name for field in fields(Row))


@dataclass(frozen=True)
class Networks:
    """What sees the images. diversity: whose features give DIV where there is no LPIPS: "dino" or "clip"."""

    dino: Dino
    clip: Clip
    lpips: Lpips | None = None
    diversity: str = "dino"

    def __post_init__(self):
        if self.diversity not in ("dino", "clip"):
            raise UserError(f"config networks.diversity is '{self.diversity}': dino or clip")

    def facts(self) -> dict[str, Any]:
        """Which networks, revisions and preprocessing were used, and what DIV is."""
        name = {"dino": self.dino, "clip": self.clip}[self.diversity].facts["network"]
        div = (
            f"LPIPS ({self.lpips.facts['network']})"
            if self.lpips
            else f"mean pairwise 1 - cosine in {name} features"
        )
        return {"dino": self.dino.facts, "clip": self.clip.facts, "div": div}


def score(
    items: Sequence[Item],
    references: Mapping[str, Sequence[Path]],
    networks: Networks,
    class_group: int = 4,
    root: Path | None = None,
) -> tuple[dict[str, Any], list[Row]]:
    """Metrics and rows of the images `items`, which lie on disk.

    references: real images by what they are ("held_out", "training", ...); the first are the ones the rows
    and the metrics are against. class_group: how many class images DIV compares at a time. root: files in the
    rows are named relative to it.
    """
    dino = networks.dino.images(load_image(item.path) for item in items)
    clip = networks.clip.images(load_image(item.path) for item in items)
    texts = networks.clip.texts([item.text for item in items])
    real = {
        name: (networks.dino.images(map(load_image, paths)), networks.clip.images(map(load_image, paths)))
        for name, paths in references.items()
    }
    real_dino, real_clip = next(iter(real.values()))
    subject = torch.tensor([item.kind == "subject" for item in items])

    columns = {
        "dino": metrics.subject_fidelity(dino, real_dino).where(subject, torch.nan),
        "clip_i": metrics.subject_fidelity(clip, real_clip).where(subject, torch.nan),
        "clip_t": metrics.prompt_fidelity(clip, texts),
        "pres": metrics.subject_fidelity(dino, real_dino).where(~subject, torch.nan),
        "div": _diversity(
            items, {"dino": dino, "clip": clip}[networks.diversity], networks.lpips, class_group
        ),
    }
    values = {name: column.tolist() for name, column in columns.items()}
    rows = [
        Row(
            file=os.path.relpath(item.path, root) if root else str(item.path),
            kind=item.kind,
            prompt=item.prompt,
            text=item.text,
            seed=item.seed,
            **{name: values[name][index] for name in values},
        )
        for index, item in enumerate(items)
    ]
    result = {
        "networks": networks.facts(),
        "metrics": summarize(rows),
        "real": {
            "dino": metrics.summary(metrics.real_fidelity(real_dino)),
            "clip_i": metrics.summary(metrics.real_fidelity(real_clip)),
        },
        "against": {
            name: _fidelity(dino[subject], clip[subject], *features) for name, features in real.items()
        },
        "prompts": per_prompt(rows),
    }
    return result, rows


def summarize(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Every metric as mean, bootstrap interval over images, and count."""
    subject = [row for row in rows if row.kind == "subject"]
    bare = [row for row in rows if row.kind == "class"]
    columns = {key: [getattr(row, key) for row in subject] for key in ("dino", "clip_i", "clip_t", "div")}
    columns |= {
        "pres": [row.pres for row in bare],
        "class_clip_t": [row.clip_t for row in bare],
        "class_div": [row.div for row in bare],
    }
    return {key: metrics.summary(columns[key]) for key in METRICS}


def per_prompt(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean scores of each prompt's images, prompts in the order they came."""
    by_prompt: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        by_prompt.setdefault((row.kind, row.prompt), []).append(row)
    keys = ("dino", "clip_i", "clip_t", "pres", "div")
    return [
        {
            "kind": kind,
            "prompt": prompt,
            "text": those[0].text,
            **{key: metrics.summary([getattr(row, key) for row in those])["value"] for key in keys},
        }
        for (kind, prompt), those in by_prompt.items()
    ]


def _diversity(items: Sequence[Item], features: Tensor, lpips: Lpips | None, class_group: int) -> Tensor:
    """Mean distance of each image to the others of its prompt, [N]."""
    spread = torch.full((len(items),), torch.nan, dtype=torch.float64)
    for group in groups(items, class_group):
        if lpips:
            distances = lpips.distances([load_image(items[index].path) for index in group])
        else:
            distances = metrics.feature_distances(features[group])
        spread[group] = metrics.diversity(distances)
    return spread


def _fidelity(dino: Tensor, clip: Tensor, real_dino: Tensor, real_clip: Tensor) -> dict[str, Any]:
    return {
        "images": len(real_dino),
        "dino": metrics.summary(metrics.subject_fidelity(dino, real_dino))["value"],
        "clip_i": metrics.summary(metrics.subject_fidelity(clip, real_clip))["value"],
    }
