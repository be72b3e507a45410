"""What a denoising network is told beside the noisy latents and the timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """One row per sample in every field that the model's family has."""

    states: Tensor
    """Text states, [B, L, D]."""
    pooled: Tensor | None = None
    """Pooled text embedding, [B, P] (SDXL)."""
    size_ids: Tensor | None = None
    """Original size, crop corner and target size in pixels, [B, 6] (SDXL)."""

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The rows `indices`, in that order; a row may be repeated."""
        chosen = list(indices)
        return Conditioning(**{name: value[chosen] for name, value in self._tensors().items()})

    def joined_with(self, other: "Conditioning") -> "Conditioning":
        """The rows of `self`, then those of `other`, which has the same fields."""
        theirs = other._tensors()
        return Conditioning(
            **{name: torch.cat([value, theirs[name]]) for name, value in self._tensors().items()}
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}
