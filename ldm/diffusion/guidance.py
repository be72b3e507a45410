"""Classifier-free guidance: one batched forward pass for both predictions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.conditioning import Conditioning
from ldm.diffusion.loss import Denoiser

Predictor = Callable[[Tensor, Tensor, Conditioning], Tensor]
"""`(noisy latents [B, C, h, w], timesteps [B], conditioning of B rows) -> prediction [B, C, h, w]`."""


def is_guided(timestep: float, scale: float, interval: Sequence[int] | None) -> bool:
    """Whether the unconditional prediction is asked for at `timestep`; `guided` has the parameters."""
    return scale != 1 and (interval is None or interval[0] <= timestep < interval[1])


def guided(
    predict: Predictor,
    wanted: Conditioning,
    unwanted: Conditioning,
    scale: float,
    interval: Sequence[int] | None = None,
) -> Denoiser:
    """A denoiser that extrapolates from the unconditional prediction (Ho and Salimans, arXiv 2207.12598, eq. 6).

    wanted: conditioning of the prompts, B rows; unwanted: of the empty or negative prompts, as many. With
    scale 1 the second half cancels out and is not computed. interval: guide only at timesteps from the first
    to below the second (Kynkäänniemi et al., arXiv 2404.07724); None guides at every timestep.
    """
    if scale == 1:
        return lambda x, timesteps: predict(x, timesteps, wanted)
    both_conditionings = unwanted.joined_with(wanted)

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        if not is_guided(float(timesteps[0]), scale, interval):
            return predict(x, timesteps, wanted)
        both = predict(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both_conditionings)
        without, with_text = both.chunk(2)
        return without + scale * (with_text - without)

    return denoise
