"""The DreamBooth paper's metrics as pure functions of features (Ruiz et al., arXiv 2208.12242, section 4).

Features are [N, D] rows of any length; every similarity is a cosine, in [-1, 1]. METRICS, at the end, lists all
metrics: scores, tables, pages and the benchmark read it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of `a` [N, D] with every row of `b` [M, D]: [N, M] in fp64."""
    return _unit(a) @ _unit(b).T


def subject_fidelity(generated: Tensor, real: Tensor) -> Tensor:
    """Each generated image's mean cosine with the real ones, [N].

    Its mean is DINO (self-supervised ViT features) or CLIP-I (CLIP's image features) of Table 1. On images of
    the bare class, with DINO features, it is PRES of Table 3: lower means that the class survived.
    """
    return cosine(generated, real).mean(dim=1)


def real_fidelity(real: Tensor) -> Tensor:
    """Each real image's mean cosine with the *other* real ones, [N]: the upper bound, first row of Table 1.

    NaN if there is only one image.
    """
    similar = cosine(real, real)
    others = len(real) - 1
    total = similar.sum(dim=1) - similar.diagonal()
    return total / others if others else torch.full((1,), torch.nan, dtype=torch.float64)


def prompt_fidelity(images: Tensor, texts: Tensor) -> Tensor:
    """CLIP-T of Table 1 for every image, [N]: cosine of image i with text i, both [N, D]."""
    return (_unit(images) * _unit(texts)).sum(dim=1)


def feature_distances(features: Tensor) -> Tensor:
    """1 - cosine between all pairs of rows, [N, N].

    Replaces LPIPS in DIV if LPIPS's weights are not available.
    """
    return 1 - cosine(features, features)


def diversity(distances: Tensor) -> Tensor:
    """Each image's mean distance to the others of its group, [N], from distances [N, N].

    Their mean is the mean over all pairs: DIV of Table 3, with the images of one prompt as group. NaN for a group
    of one.
    """
    others = len(distances) - 1
    total = distances.double().sum(dim=1) - distances.diagonal().double()
    return total / others if others else torch.full((1,), torch.nan, dtype=torch.float64)


def auc(positive: Tensor, negative: Tensor) -> float:
    """Probability that a score of `positive` [N] exceeds one of `negative` [M]; ties count half."""
    order = negative.double().sort().values
    below = torch.searchsorted(order, positive.double(), side="left").double()
    up_to = torch.searchsorted(order, positive.double(), side="right").double()
    return float(((below + up_to) / 2).mean() / len(negative))


def _unit(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.double(), dim=-1)


@dataclass(frozen=True)
class Seen:
    """Features of N images of the protocol and R real ones."""

    dino: Tensor
    """[N, D]"""
    clip: Tensor
    """[N, E]"""
    texts: Tensor
    """CLIP's features of the images' prompts without the identifier, [N, E]."""
    real_dino: Tensor
    """[R, D]"""
    real_clip: Tensor
    """[R, E]"""
    others: Mapping[str, Tensor] = field(default_factory=dict)
    """Features of other networks, by name in `features.OTHERS`, [N, F] each."""
    real_others: Mapping[str, Tensor] = field(default_factory=dict)
    """[R, F] each"""
    groups: Sequence[Sequence[int]] = ()
    """Indices of images to compare with each other, such as those of one prompt."""
    distances: Callable[[Sequence[int]], Tensor] | None = None
    """Distances [n, n] between n images, given by indices."""

    def spread(self) -> Tensor:
        """Mean distance of each image to the others of its group, [N]."""
        assert self.distances is not None
        spread = torch.full((len(self.dino),), torch.nan, dtype=torch.float64)
        for group in self.groups:
            spread[list(group)] = diversity(self.distances(group))
        return spread


@dataclass(frozen=True)
class Metric:
    """One metric: a number for each image, whose mean over images is reported."""

    key: str
    """Key in metrics.json and images.csv."""
    title: str
    """Title in tables."""
    images: Literal["subject", "class"]
    """The images it measures: the subject's, or those of the bare class."""
    measure: Callable[[Seen], Tensor]
    """A number for every image, [N]; those for the other kind of image are ignored."""
    explanation: str = ""
    """One sentence for the report's readers; {dino}, {clip} and {div} are networks."""
    lower_is_better: bool = False
    of_real: Callable[[Seen], Tensor] | None = None
    """The same for each real image and the other real ones, [R]: an upper bound, if there is one."""
    compares_images: bool = False
    """Whether images of a group are compared with each other, so that their numbers are not independent."""


METRICS: Mapping[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric(
            "dino",
            "DINO",
            "subject",
            lambda seen: subject_fidelity(seen.dino, seen.real_dino),
            "DINO and CLIP-I: mean cosine with the real images ({dino}, {clip}).",
            of_real=lambda seen: real_fidelity(seen.real_dino),
        ),
        Metric(
            "clip_i",
            "CLIP-I",
            "subject",
            lambda seen: subject_fidelity(seen.clip, seen.real_clip),
            of_real=lambda seen: real_fidelity(seen.real_clip),
        ),
        Metric(
            "clip_t",
            "CLIP-T",
            "subject",
            lambda seen: prompt_fidelity(seen.clip, seen.texts),
            "CLIP-T: cosine of image and prompt without the identifier.",
        ),
        Metric(
            "pres",
            "PRES",
            "class",
            lambda seen: subject_fidelity(seen.dino, seen.real_dino),
            "PRES: DINO of bare-class images against the real ones; lower means the class survived.",
            lower_is_better=True,
        ),
        Metric(
            "div",
            "DIV",
            "subject",
            Seen.spread,
            "DIV: {div}, among the images of one prompt; the paper's is LPIPS.",
            compares_images=True,
        ),
        Metric(
            "class_clip_t",
            "CLIP-T, class",
            "class",
            lambda seen: prompt_fidelity(seen.clip, seen.texts),
            "CLIP-T and DIV, class: the same of images of the bare class; a class that survived has the base's.",
        ),
        Metric("class_div", "DIV, class", "class", Seen.spread, compares_images=True),
    )
}
