"""Distances between the distributions of samples and of world pictures, which see more than a classifier does.

Frechet distance (Heusel et al., arXiv 1706.08500) and kernel distance (Binkowski et al., arXiv 1801.01401), by
torchmetrics, in features of the embedded networks instead of Inception's. The floor is the distance between two sets of
real pictures. Only compare distances between sets of the same size.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from ldm.console import counted
from ldm.data.images import pixels_of, to_image
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.evaluation.features import Dino
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator
from ldm.world.drawing import World, caption
from ldm.world.judge import Judge, trained_judge

RESAMPLES = 30
"""Resamples of the bootstrap for a standard error."""

FLOOR = "other real pictures"

Look = Callable[[Tensor], Tensor]
"""Features [B, D] of pictures [B, 3, S, S] in [-1, 1]."""


@dataclass(frozen=True)
class Pictures:
    """Pictures. Picture k has the same caption in every set."""

    pixels: Tensor
    """[B, 3, S, S] in [-1, 1]."""
    captions: Sequence[str]
    nouns: Sequence[str]


@dataclass(frozen=True)
class Distance:
    """A distance, and its values for resampled captions: the same ones for every set, so that distances are paired."""

    value: float
    resampled: Tensor

    def values(self) -> tuple[float, float, float]:
        """The distance and the ends of its 95 % interval, 1.96 standard errors on both sides.

        The bootstrap's percentiles would be biased: repeated pictures increase the distance between resampled sets.
        """
        error = 1.96 * float(self.resampled.std())
        return self.value, self.value - error, self.value + error

    def __sub__(self, other: "Distance") -> "Distance":
        return Distance(self.value - other.value, self.resampled - other.resampled)


def looks(judge: Judge, dino: Dino) -> dict[str, Look]:
    """The features in which sets are compared: two of the content, one of the sharpness."""

    @torch.no_grad()
    def by_judge(pixels: Tensor) -> Tensor:
        return torch.cat([judge.features(part) for part in pixels.split(200)])

    return {"judge": by_judge, **dino_looks(dino)}


def dino_looks(dino: Dino) -> dict[str, Look]:
    """The last layer's [CLS] token, and the spread of a picture's patches before the first layer.

    The first depends on the content and hardly on blur; the second on contrast and edges, not on the content.
    """

    @torch.no_grad()
    def detail(pixels: Tensor) -> Tensor:
        parts = []
        for part in pixels.split(200):
            patches = torch.stack([dino.preprocessing(to_image(picture)) for picture in part])
            parts.append(dino.model.embeddings.patch_embeddings(patches).std(dim=1))
        return torch.cat(parts)

    return {"DINO": lambda pixels: dino.images(to_image(picture) for picture in pixels), "detail": detail}


def world_pictures(world: World, purpose: str, count: int) -> Pictures:
    """`count` pictures of always the same captions; the stream `purpose` draws everything else."""
    pixels, captions, nouns = [], [], []
    for number in range(count):
        facts = world.facts(0, number, "distance")
        rng = np.random.default_rng(generator(0, purpose, number).initial_seed())
        members = world.known[facts.noun]
        member = members[int(rng.integers(len(members)))]
        scene = facts.scene if facts.tells_scene else world.scenes[int(rng.integers(len(world.scenes)))]
        variant = 0 if rng.random() < 0.5 else 1 + int(rng.integers(world.VARIANTS - 1))
        pixels.append(world.compose(member, scene, rng, facts.colour, variant))
        captions.append(caption(facts))
        nouns.append(facts.noun)
    return Pictures(pixels_of(np.stack(pixels)), captions, nouns)


def drawn_pictures(
    model: LatentDiffusion, asked: Pictures, sampling: Sampling, first_seed: int = 50_000
) -> Pictures:
    """Samples for the captions of `asked`."""
    seeds = range(first_seed, first_seed + len(asked.captions))
    pixels = model.images(list(asked.captions), seeds, sampling, batch_size=40)
    return replace(asked, pixels=pixels.float().cpu())


def compare(
    real: Pictures, drawn: Pictures, look_by: Mapping[str, Look], by_noun: bool = True
) -> dict[str, Distance]:
    """Distances by name: in each kind of features, both over all pictures and the kernel distance for each noun."""
    found: dict[str, Distance] = {}
    for name, look in look_by.items():
        sides = standardised(look(real.pixels), look(drawn.pixels))
        found[f"{name}, Frechet"] = resampled(frechet, *sides)
        found[f"{name}, kernel"] = resampled(kernel, *sides)
        for noun in dict.fromkeys(real.nouns if by_noun else ()):
            own = torch.tensor([other == noun for other in real.nouns])
            if own.sum() > 2:
                found[f"{name}, kernel, {noun}"] = resampled(kernel, *(side[own] for side in sides))
    return found


def standardised(real: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Both, scaled so that each of `real`'s features has mean 0 and standard deviation 1."""
    mean, deviation = real.mean(dim=0), real.std(dim=0)
    unit = deviation + 1e-3 * deviation.mean()  # constant features stay as they are
    return (real - mean) / unit, (drawn - mean) / unit


def resampled(distance: Callable[[Tensor, Tensor], float], real: Tensor, drawn: Tensor) -> Distance:
    """The distance between features [N, D] and [N, D], and its values for resampled captions."""
    draws = generator(0, "distance bootstrap")
    picks = torch.randint(len(real), (RESAMPLES, len(real)), generator=draws)
    return Distance(
        distance(real, drawn), torch.tensor([distance(real[chosen], drawn[chosen]) for chosen in picks])
    )


def frechet(real: Tensor, drawn: Tensor) -> float:
    """Frechet distance between features [N, D] and [M, D]."""
    return float(_measured(FrechetInceptionDistance(_Given(real.shape[1])), real, drawn))


def kernel(real: Tensor, drawn: Tensor) -> float:
    """1000 x the kernel distance between features [N, D] each; 0 on average for equal distributions.

    Negative if pictures of the same captions are closer to each other than to others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so that all features are kept
        metric = KernelInceptionDistance(_Given(real.shape[1]), subsets=1, subset_size=len(real))
    with torch.random.fork_rng(devices=[]):  # the only subset contains all; the order does not matter
        return 1000 * float(_measured(metric, real, drawn)[0])


class _Given(nn.Module):
    """Passes features through, since torchmetrics expects a network that computes them."""

    def __init__(self, length: int):
        super().__init__()
        self.num_features = length

    def forward(self, features: Tensor) -> Tensor:
        return features


def _measured(metric: Any, real: Tensor, drawn: Tensor) -> Any:
    metric.update(real.double(), real=True)
    metric.update(drawn.double(), real=False)
    return metric.compute()


def judge_distances(
    base: str, world: World, cache: Path, dino: str, ways: Sequence[Sampling], count: int
) -> dict[str, dict[str, dict[str, float]]]:
    """`rows` of the distances to the world for each way of sampling, starting with the floor, other real pictures.

    cache: folder of the trained judge. dino: folder of a feature network. count: pictures on each side.
    """
    model = LatentDiffusion.from_base(base).eval()
    look_by = looks(trained_judge(world, cache), Dino(dino))
    real, other = (world_pictures(world, purpose, count) for purpose in ("distance real", "distance floor"))
    floor = compare(real, other, look_by)
    found = {FLOOR: rows(floor, floor)}
    for way in counted(ways, "distances", "way"):
        found[describe(way)] = rows(compare(real, drawn_pictures(model, other, way), look_by), floor)
    return found


def rows(found: Mapping[str, Distance], floor: Mapping[str, Distance]) -> dict[str, dict[str, float]]:
    """Each distance and its difference from the floor, paired by caption, with intervals."""
    return {
        name: {
            **dict(zip(("value", "low", "high"), distance.values(), strict=True)),
            **dict(zip(("above", "above_low", "above_high"), (distance - floor[name]).values(), strict=True)),
        }
        for name, distance in found.items()
    }


def lines(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """`judge_distances` as text: for each way of sampling, the distances over all pictures, then the worst nouns."""
    told = []
    for way, distances in found.items():
        told.append(way)
        nouns = {name: row for name, row in distances.items() if name.count(",") > 1}
        for name, row in distances.items():
            if name not in nouns:
                told.append(
                    f"    {name:24s} {row['value']:9.2f} ({row['low']:.2f} to {row['high']:.2f}),"
                    f" above the floor {row['above']:.2f} ({row['above_low']:.2f} to {row['above_high']:.2f})"
                )
        worst = sorted(nouns, key=lambda name: -nouns[name]["above"])[:3]
        if way != FLOOR and worst:
            told.append("    farthest: " + "; ".join(f"{n} {nouns[n]['above']:.0f}" for n in worst))
    return told


def read_way(word: str) -> Sampling:
    """Parse SAMPLER/STEPS/SCALE, as in "euler_a/25/2"."""
    sampler, *numbers = word.split("/")
    try:
        steps, scale = numbers
        return Sampling(sampler, int(steps), float(scale))
    except ValueError:
        raise UserError(f"'{word}' is not SAMPLER/STEPS/SCALE, as in euler_a/25/2") from None


def describe(sampling: Sampling) -> str:
    """Such as "euler_a, 25 steps, guidance 2"."""
    return f"{sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance_scale:g}"
