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
    cell_weights: Tensor | None = None,
) -> Tensor:
    """Mean squared denoising error per sample, [B] in fp32.

    x, eps: clean latents and noise, [B, C, h, w] in fp32; timesteps: [B] integers in [0, T).
    weighting: w_t of eq. 1; None weighs all timesteps alike, as the paper does. target: what `denoise` is to
    predict, [B, C, h, w]; None for the schedule's own, the noise or the velocity. cell_weights: of a latent's cells
    in its mean, [B, 1, h, w], at least 0; None weighs all alike.
    """
    prediction = denoise(schedule.add_noise(x, eps, timesteps), timesteps)
    if target is None:
        target = schedule.target(x, eps, timesteps)
    squared = torch.square(prediction.float() - target)
    error = weighted_mean(squared, cell_weights)
    return error if weighting is None else error * weighting(schedule, timesteps)


def weighted_mean(values: Tensor, cell_weights: Tensor | None) -> Tensor:
    """sum(w v) / sum(w) over channels and cells, [B], of `values` [B, C, h, w] and w [B, 1, h, w]; None: all 1.

    It is a mean, so a subject that fills a tenth of its photograph counts no less beside the class prior than one that
    fills all of it. 0 where all weights are 0, as where a random crop has missed the subject.
    """
    if cell_weights is None:
        return reduce(values, "b c h w -> b", "mean")
    weights = cell_weights.expand_as(values)
    total = reduce(weights, "b c h w -> b", "sum").clamp(min=torch.finfo(weights.dtype).tiny)
    return reduce(weights * values, "b c h w -> b", "sum") / total
