"""Means with their uncertainty."""

import math
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from ldm.randomness import generator


def bootstrap_interval(
    values: Sequence[float] | Tensor,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron, 1979); equal calls give equal answers.

    clusters: which values belong together, such as the prompt of each image. Images of one prompt are nearly
    copies of each other, so whole clusters are drawn, with all that is in them (Davison and Hinkley, 1997,
    section 3.8: drawing again within them would count the spread inside clusters twice). A single cluster says
    nothing about others, and its values are drawn instead.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    names = list(dict.fromkeys(clusters or ()))
    if len(names) < 2:
        names, clusters = list(range(len(values))), range(len(values))
    place = {name: index for index, name in enumerate(names)}
    index = torch.tensor([place[name] for name in clusters or ()])
    totals = torch.zeros(len(names), dtype=torch.float64).index_add_(0, index, values)
    counts = torch.bincount(index).double()
    picks = torch.randint(len(names), (resamples, len(names)), generator=generator(seed, "bootstrap"))
    means = totals[picks].sum(dim=1) / counts[picks].sum(dim=1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def summary(
    values: Sequence[float] | Tensor, clusters: Sequence[Hashable] | None = None
) -> dict[str, float | int | None]:
    """Mean of `values`, its 95 % bootstrap interval, and how many there are; nothing measured gives None.

    clusters: as for `bootstrap_interval`.
    """
    values = torch.as_tensor(values, dtype=torch.float64)
    there = (~values.isnan()).tolist()
    if not any(there):
        return {"value": None, "low": None, "high": None, "count": 0}
    values = values[there]
    kept = (
        None
        if clusters is None
        else [name for name, is_there in zip(clusters, there, strict=True) if is_there]
    )
    low, high = bootstrap_interval(values, kept)
    return {"value": float(values.mean()), "low": low, "high": high, "count": len(values)}


def mean(values: Sequence[float]) -> float | None:
    """Mean of what is a number among `values`; None where nothing is."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else None
