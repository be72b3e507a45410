"""Pixels to latents and back: the frozen VAE, the latent scale, and the shapes that follow from them.

Pixels are in [-1, 1] everywhere, and latents have about unit variance.
"""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ldm.errors import UserError

PIXELS_AT_ONCE = 512 * 512
"""Maximum per pass of the VAE: one image of Stable Diffusion's size, 64 of the embedded base's. Otherwise its
activations would need more memory than anything else in a run."""


class NotFiniteError(UserError):
    """Pictures with infinite or NaN values, which cannot be shown or scored."""


def factor(vae: AutoencoderKL) -> int:
    """Side of a latent cell in pixels (8 for Stable Diffusion)."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def latent_shape(vae: AutoencoderKL, height: int, width: int) -> tuple[int, int, int]:
    """Shape of one latent for an image of `height` x `width` pixels: (C, h, w).

    Raises UserError for a side that is not a multiple of the factor.
    """
    cell = factor(vae)
    for side in (height, width):
        if side % cell or side <= 0:
            nearest = max(round(side / cell), 1) * cell
            raise UserError(
                f"image size {width} x {height}: each side must be a multiple of {cell} pixels"
                f" for this base; the nearest to {side} is {nearest}"
            )
    return int(vae.config.latent_channels), height // cell, width // cell


@torch.no_grad()
def posterior(vae: AutoencoderKL, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each [B, C, h, w] in fp32, of the latents of `pixels` [B, 3, H, W].

    Never under autocast: in bf16 the mean's error would exceed the posterior's standard deviation.
    """
    with torch.autocast(vae.device.type, enabled=False):
        parts = pixels.to(vae.dtype).split(_images_at_once(*pixels.shape[2:]))
        posteriors = [vae.encode(part).latent_dist for part in parts]
    mean, std = torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])
    scale = vae.config.scaling_factor
    return mean.float() * scale, std.float() * scale


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Pictures [B, 3, H, W] in fp32 for `latents` [B, C, h, w], not clamped to [-1, 1]. Never under autocast."""
    sides = (side * factor(vae) for side in latents.shape[2:])
    with torch.autocast(vae.device.type, enabled=False):
        parts = (latents.to(vae.dtype) / vae.config.scaling_factor).split(_images_at_once(*sides))
        return torch.cat([vae.decode(part).sample.float() for part in parts])


def _images_at_once(height: int, width: int) -> int:
    return max(PIXELS_AT_ONCE // (height * width), 1)
