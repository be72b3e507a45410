"""Weightings of the denoising error by timestep: w_t in eq. 1 of DreamBooth.

A config names one in `model.params.weighting`, with `target` and `params`. Each is defined here for the error of the
clean image and converted to the error of the network's prediction.
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
    """Convert `weights` [B] of the clean image's error to weights of the network's prediction error, [B].

    The squared error of the noise is snr times that of the clean image; that of the velocity, snr + 1 times.
    """
    snr = schedule.snr(timesteps)
    return weights / snr if schedule.prediction_type == "epsilon" else weights / (snr + 1)


def weighting_of(make: Callable[..., Weighting] | None, min_snr_gamma: float | None) -> Weighting | None:
    """The weighting chosen by the settings `weighting` and `min_snr_gamma`. Raises UserError if both are set."""
    if make is None:
        return None if min_snr_gamma is None else MinSnr(min_snr_gamma)
    if min_snr_gamma is not None:
        raise UserError("model.params.weighting and model.params.min_snr_gamma are both set: set one to null")
    return make()
