"""Masks: where the subject is in a photograph, and the weight of each latent cell in the loss."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ldm.data.images import load_alpha, load_image, mask_path, refuse_way_out
from ldm.errors import UserError

TOLERANCE = 0.02
"""Maximum relative difference between the aspect ratios of a mask and its photograph."""


def mask_of(photograph: Path, size: tuple[int, int]) -> Image.Image | None:
    """The mask of a photograph in `size`, (width, height): white where the subject is; None without a mask.

    It is `image-mask.png` beside `image.jpg`, or the photograph's alpha channel.
    Raises UserError for a mask that cannot be read, has another aspect ratio, or marks nothing.
    """
    path = mask_path(photograph)
    if path.exists() or path.is_symlink():
        refuse_way_out(path, photograph.parent)
        mask = load_image(path).convert("L")
    elif alpha := load_alpha(photograph):
        path, mask = photograph, alpha
    else:
        return None
    if abs(mask.width / mask.height * size[1] / size[0] - 1) > TOLERANCE:
        raise UserError(
            f"mask {path}: its proportions, {mask.width} x {mask.height}, are not those of {photograph.name}"
        )
    if mask.getextrema()[1] == 0:
        raise UserError(f"mask {path}: it marks nothing; paint the subject white, or remove it")
    return mask if mask.size == size else mask.resize(size, Image.Resampling.BOX)


def cell_weights(mask: Image.Image | None, height: int, width: int, unmasked_weight: float) -> Tensor:
    """Weights [1, height, width] of latent cells: 1 inside the mask, `unmasked_weight` outside, averaged per cell.

    Without a mask all weights are 1.
    """
    if mask is None:
        return torch.ones(1, height, width)
    inside = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None] / 255.0  # [1, H, W]
    return unmasked_weight + (1 - unmasked_weight) * adaptive_avg_pool2d(inside, (height, width))
