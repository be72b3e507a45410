"""The denoising error of a diffusion model, as a pure function (DreamBooth, arXiv 2208.12242, eq. 1)."""

from collections.abc import Callable

import torch
from einops import reduce
from torch import Tensor

from ldm.diffusion.schedule import NoiseSchedule
from ldm.diffusion.weighting import Weighting

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(noisy latents [B, C, h, w], timesteps [B]) -> prediction [B, C, h, w]`."""


def denoising_error(
    denoise: Denoiser,
    x: Tensor,
    eps: Tensor,
    timesteps: Tensor,
    schedule: NoiseSchedule,
    weighting: Weighting | None = None,
    target: Tensor | None = None,
) -> Tensor:
    """Mean squared denoising error per sample, [B] in fp32.

    x, eps: clean latents and noise, [B, C, h, w] in fp32; timesteps: [B] integers in [0, T).
    weighting: w_t of eq. 1; None weighs all timesteps alike, as the paper does. target: what `denoise` is to
    predict, [B, C, h, w]; None for the schedule's own, the noise or the velocity.
    """
    prediction = denoise(schedule.add_noise(x, eps, timesteps), timesteps)
    if target is None:
        target = schedule.target(x, eps, timesteps)
    error = reduce(torch.square(prediction.float() - target), "b c h w -> b", "mean")
    return error if weighting is None else error * weighting(schedule, timesteps)
