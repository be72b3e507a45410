"""Classifier-free guidance: one batched forward pass for both predictions."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ldm.diffusion.loss import Denoiser

Predictor = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(noisy latents [B, C, h, w], timesteps [B], text states [B, L, D]) -> prediction [B, C, h, w]`."""


def guided(
    predict: Predictor,
    states: Tensor,
    unconditional: Tensor,
    scale: float,
    interval: Sequence[int] | None = None,
) -> Denoiser:
    """A denoiser that extrapolates from the unconditional prediction (Ho and Salimans, arXiv 2207.12598, eq. 6).

    states: text states of the prompts, [B, L, D]; unconditional: those of the empty or negative prompts,
    same shape. With scale 1 the unconditional half cancels out, and is not computed. interval: guide only at
    timesteps from the first to below the second (Kynkäänniemi et al., arXiv 2404.07724); None: at all.
    """
    if scale == 1:
        return lambda x, timesteps: predict(x, timesteps, states)
    both_states = torch.cat([unconditional, states])

    def denoise(x: Tensor, timesteps: Tensor) -> Tensor:
        if interval is not None and not interval[0] <= timesteps[0] < interval[1]:
            return predict(x, timesteps, states)
        both = predict(torch.cat([x, x]), torch.cat([timesteps, timesteps]), both_states)
        without, with_text = both.chunk(2)
        return without + scale * (with_text - without)

    return denoise
