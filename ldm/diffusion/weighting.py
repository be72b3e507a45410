"""Weights of the denoising error over timesteps, each a function of the schedule: w_t in eq. 1 of DreamBooth.

A config names one under `model.params.weighting`, as `target` and `params`. Each is written here for the error of the
clean image, and turned into that of what the network predicts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from ldm.diffusion.schedule import NoiseSchedule
from ldm.errors import UserError
from ldm.values import NonNegativeFloat, PositiveFloat


@runtime_checkable
class Weighting(Protocol):
    """w_t of eq. 1."""

    def __call__(self, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
        """Weights [B] of the error at `timesteps` [B]."""


@dataclass(frozen=True)
class MinSnr:
    """Min-SNR-gamma: min(snr, gamma) weighs the clean image's error (Hang et al., arXiv 2303.09556, section 3.4)."""

    gamma: PositiveFloat = 5.0

    def __call__(self, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
        return of_prediction(schedule.snr(timesteps).clamp(max=self.gamma), schedule, timesteps)


@dataclass(frozen=True)
class Debiased:
    """sqrt(snr) weighs the clean image's error, 1 / sqrt(snr) the noise's (Yu et al., arXiv 2310.08442)."""

    def __call__(self, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
        return of_prediction(schedule.snr(timesteps).sqrt(), schedule, timesteps)


@dataclass(frozen=True)
class P2:
    """1 / (k + snr)^gamma weighs the noise's error (Choi et al., arXiv 2204.00227)."""

    gamma: NonNegativeFloat = 1.0
    k: PositiveFloat = 1.0

    def __call__(self, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
        snr = schedule.snr(timesteps)
        return of_prediction(snr / (self.k + snr) ** self.gamma, schedule, timesteps)


def of_prediction(weights: Tensor, schedule: NoiseSchedule, timesteps: Tensor) -> Tensor:
    """`weights` [B] of the clean image's error as weights of the error of what the network predicts, [B].

    The noise's squared error is snr times the clean image's, the velocity's is snr + 1 times it.
    """
    snr = schedule.snr(timesteps)
    return weights / snr if schedule.prediction_type == "epsilon" else weights / (snr + 1)


def weighting_of(make: Callable[..., Weighting] | None, min_snr_gamma: float | None) -> Weighting | None:
    """The weighting that the settings `weighting` and `min_snr_gamma` choose. Raises UserError where both do."""
    if make is None:
        return None if min_snr_gamma is None else MinSnr(min_snr_gamma)
    if min_snr_gamma is not None:
        raise UserError("model.params.weighting and model.params.min_snr_gamma are both set: set one to null")
    return make()
