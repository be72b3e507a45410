"""What a denoising network is told beside the noisy latents and the timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
        return Conditioning(*(None if value is None else value[list(indices)] for value in self._values()))

    def joined_with(self, other: "Conditioning") -> "Conditioning":
        """The rows of `self`, then those of `other`, whose fields are the same."""
        pairs = zip(self._values(), other._values(), strict=True)
        return Conditioning(*(None if a is None or b is None else torch.cat([a, b]) for a, b in pairs))

    def _values(self) -> tuple[Tensor | None, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))
