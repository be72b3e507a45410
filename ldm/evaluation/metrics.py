"""The DreamBooth paper's metrics as pure functions of features (Ruiz et al., arXiv 2208.12242, section 4).

Features are [N, D] rows of any length; every similarity is a cosine, in [-1, 1].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.randomness import generator


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of `a` [N, D] with every row of `b` [M, D]: [N, M] in fp64."""
    return _unit(a) @ _unit(b).T


def subject_fidelity(generated: Tensor, real: Tensor) -> Tensor:
    """Each generated image's mean cosine with the real ones, [N].

    Its mean is DINO (self-supervised ViT features) or CLIP-I (CLIP's image features) of Table 1. On images
    of the bare class it is PRES of Table 3, with DINO features: lower means that the class survived.
    """
    return cosine(generated, real).mean(dim=1)


def real_fidelity(real: Tensor) -> Tensor:
    """Each real image's mean cosine with the *other* real ones, [N]: the upper bound, first row of Table 1.

    NaN where there is only one image.
    """
    similar = cosine(real, real)
    others = len(real) - 1
    total = similar.sum(dim=1) - similar.diagonal()
    return total / others if others else torch.full((1,), torch.nan, dtype=torch.float64)


def prompt_fidelity(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP-T of Table 1 for every image, [N]: cosine of image i with text i, both [N, D]."""
    return (_unit(images) * _unit(texts)).sum(dim=1)


def feature_distances(features: Tensor) -> Tensor:
    """1 - cosine of every row with every other, [N, N]: distances in a named feature space.

    The stand-in for LPIPS in DIV where LPIPS's weights are not at hand.
    """
    return 1 - cosine(features, features)


def diversity(distances: Tensor) -> Tensor:
    """Each image's mean distance to the others of its group, [N], from distances [N, N].

    Their mean is the mean over all pairs: DIV of Table 3, where a group is the images of one prompt. NaN for
    a group of one.
    """
    others = len(distances) - 1
    total = distances.double().sum(dim=1) - distances.diagonal().double()
    return total / others if others else torch.full((1,), torch.nan, dtype=torch.float64)


def bootstrap_interval(
    values: Sequence[float] | Tensor, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values` (Efron, 1979); equal calls give equal answers."""
    values = torch.as_tensor(values, dtype=torch.float64)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator(seed, "bootstrap"))
    means = values[picks].mean(dim=1)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


def summary(values: Sequence[float] | Tensor) -> dict[str, float | int | None]:
    """Mean of `values`, its 95 % bootstrap interval, and how many there are; nothing measured gives None."""
    values = torch.as_tensor(values, dtype=torch.float64)
    values = values[~values.isnan()]
    if not len(values):
        return {"value": None, "low": None, "high": None, "count": 0}
    low, high = bootstrap_interval(values)
    return {"value": float(values.mean()), "low": low, "high": high, "count": len(values)}


def auc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a score of `positive` [N] is above one of `negative` [M]; a tie counts half."""
    order = negative.double().sort().values
    below = torch.searchsorted(order, positive.double(), side="left").double()
    up_to = torch.searchsorted(order, positive.double(), side="right").double()
    return float(((below + up_to) / 2).mean() / len(negative))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=-1)
