"""Classifier-free guidance, with both predictions in one batched forward pass."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.loss import Denoiser

Predictor = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""`(noisy latents [B, C, h, w], timesteps [B], conditioning of B rows) -> prediction [B, C, h, w]`."""


def is_guided(timestep: float, scale: float, interval: Sequence[int] | None) -> bool:
    """Whether the unconditional prediction is needed at `timestep`; parameters as in `guided`."""
    return scale != 1 and (interval is None or interval[0] <= timestep < interval[1])


def guided(
    predict: Predictor,
    positive: Conditioning,
    negative: Conditioning,
    scale: float,
    interval: Sequence[int] | None = None,
) -> Denoiser:
    """A denoiser that extrapolates from the unconditional prediction (Ho and Salimans, arXiv 2207.12598, eq. 6).

    positive: conditioning of the prompts, B rows; negative: of the empty or negative prompts, B rows. With scale 1
    the negative prediction cancels out and is not computed. interval: guide only at timesteps from the first to
    below the second (Kynkäänniemi et al., arXiv 2404.07724); None guides at every timestep.
    """
    if scale == 1:
        return lambda x, timesteps: predict(x, timesteps, positive)
    both_conditionings = negative.joined_with(positive)

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        if not is_guided(float(timesteps[0]), scale, interval):
            return predict(x, timesteps, positive)
        both = predict(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both_conditionings)
        unconditional, conditional = both.chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return denoise
