"""A model's noise schedule: how noise is added to latents, and what the network predicts.

Symbols follow DreamBooth (arXiv 2208.12242, eq. 1): latents `x`, noise `eps`, and at timestep t the scales
`alpha_t = sqrt(alphas_cumprod[t])` and `sigma_t = sqrt(1 - alphas_cumprod[t])`.
"""

from dataclasses import dataclass
from typing import Protocol, get_args

import torch
from torch import Tensor

from ldm.values import PredictionType


class NoiseSchedule(Protocol):
    """The parts of a family's noise schedule that training needs."""

    @property
    def num_timesteps(self) -> int:
        """Timesteps are integers in [0, num_timesteps)."""

    @property
    def prediction_type(self) -> str:
        """The kind of `target`: "epsilon", "v_prediction", or another family's own."""

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio at `timesteps`, [B]."""

    def add_noise(self, x: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [B, C, h, w] of `x` at `timesteps` [B]."""

    def target(self, x: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """The network's training target, [B, C, h, w]."""


@dataclass(frozen=True)
class VariancePreserving:
    """The schedule of Stable Diffusion 1.x, 2.x and XL, whose networks predict the noise or the velocity."""

    alphas_cumprod: Tensor
    """[T] in fp32, on the device of the latents."""
    prediction_type: str = "epsilon"
    """A `PredictionType`."""

    def __post_init__(self) -> None:
        if self.prediction_type not in get_args(PredictionType):
            raise ValueError(f"unknown prediction type {self.prediction_type!r}: epsilon or v_prediction")

    @property
    def num_timesteps(self) -> int:
        """Length of the schedule (1000 for Stable Diffusion)."""
        return len(self.alphas_cumprod)

    def alpha_sigma(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise scales of `timesteps` [B], each [B, 1, 1, 1] in fp32."""
        alphas = self.alphas_cumprod.float()[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()

    def add_noise(self, x: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """alpha_t x + sigma_t eps, [B, C, h, w] in fp32."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return alpha * x + sigma * eps

    def target(self, x: Tensor, eps: Tensor, timesteps: Tensor) -> Tensor:
        """The noise eps (SD 1.x), or the velocity v = alpha eps - sigma x (SD 2.x at 768 px), [B, C, h, w].

        Velocity: Salimans and Ho, arXiv 2202.00512, appendix D.
        """
        if self.prediction_type == "epsilon":
            return eps
        alpha, sigma = self.alpha_sigma(timesteps)
        return alpha * eps - sigma * x

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha_t^2 / sigma_t^2, [B]."""
        alpha, sigma = self.alpha_sigma(timesteps)
        return torch.square(alpha / sigma).flatten()
