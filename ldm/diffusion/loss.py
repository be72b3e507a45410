"""The denoising error of a diffusion model, as pure functions.

Symbols follow DreamBooth (arXiv 2208.12242, eq. 1 and 2): latents `x`, noise `eps`, and the schedule's
`alpha = sqrt(alphas_cumprod[t])`, `sigma = sqrt(1 - alphas_cumprod[t])`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""`(noisy latents [B, C, h, w], timesteps [B]) -> prediction [B, C, h, w]`."""


def alpha_sigma(alphas_cumprod: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scales of `timesteps` [B], each [B, 1, 1, 1] in fp32. `alphas_cumprod`: [T]."""
    kept = alphas_cumprod.float()[timesteps].view(-1, 1, 1, 1)
    return kept.sqrt(), (1 - kept).sqrt()


def prediction_target(prediction_type: str, x: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network is to predict, [B, C, h, w]: the noise (SD 1.x) or the velocity (SD 2.x at 768 px).

    Velocity: v = alpha eps - sigma x (Salimans and Ho, arXiv 2202.00512, appendix D).
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return alpha * eps - sigma * x
    raise ValueError(f"unknown prediction type {prediction_type!r}: epsilon or v_prediction")


def min_snr_weight(prediction_type: str, alpha: Tensor, sigma: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma loss weights, [B] (Hang et al., arXiv 2303.09556, section 3.4).

    min(snr, gamma) weighs the error of the clean image; written for another prediction it is divided by
    snr for epsilon and by snr + 1 for v.
    """
    snr = (alpha / sigma).square().flatten()
    clipped = snr.clamp(max=gamma)
    return clipped / snr if prediction_type == "epsilon" else clipped / (snr + 1)


def denoising_error(
    denoise: Denoiser,
    x: Tensor,
    eps: Tensor,
    timesteps: Tensor,
    alphas_cumprod: Tensor,
    prediction_type: str = "epsilon",
    min_snr_gamma: float | None = None,
) -> Tensor:
    """Mean squared denoising error of every sample, [B] in fp32.

    x, eps: clean latents and noise, [B, C, h, w] in fp32; timesteps: [B] integers in [0, T).
    """
    alpha, sigma = alpha_sigma(alphas_cumprod, timesteps)
    prediction = denoise(alpha * x + sigma * eps, timesteps)
    target = prediction_target(prediction_type, x, eps, alpha, sigma)
    error = torch.square(prediction.float() - target).mean(dim=(1, 2, 3))
    if min_snr_gamma is not None:
        error = error * min_snr_weight(prediction_type, alpha, sigma, min_snr_gamma)
    return error
