"""A denoising network's inputs beside noisy latents and timesteps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.devices import sent


def whole_image(height: int, width: int) -> Tensor:
    """Size ids of an uncropped image of `height` x `width` px, [6]."""
    return torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)


@dataclass(frozen=True)
class Conditioning:
    """One row per sample in every field that the model family uses."""

    states: Tensor
    """Text states, [B, L, D]."""
    pooled: Tensor | None = None
    """Pooled text embedding, [B, P] (SDXL)."""
    size_ids: Tensor | None = None
    """Original size, crop corner and target size in px, each vertical first, [B, 6] in fp32 (SDXL)."""

    def rows(self, indices: Sequence[int]) -> "Conditioning":
        """The rows `indices`, in order; rows may repeat."""
        chosen = sent(torch.tensor(list(indices), dtype=torch.long), self.states.device)
        return Conditioning(**{name: value[chosen] for name, value in self._tensors().items()})

    def without_text(self, rows: Sequence[int]) -> "Conditioning":
        """The same with the text states of `rows` set to zero."""
        texts = {name: self._tensors()[name] for name in ("states", "pooled") if name in self._tensors()}
        where = sent(torch.tensor(list(rows), dtype=torch.long), self.states.device)
        return replace(self, **{name: value.index_fill(0, where, 0) for name, value in texts.items()})

    def joined_with(self, other: "Conditioning") -> "Conditioning":
        """The rows of `self` followed by those of `other`, which must have the same fields."""
        theirs = other._tensors()
        return Conditioning(
            **{name: torch.cat([value, theirs[name]]) for name, value in self._tensors().items()}
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if value is not None}
