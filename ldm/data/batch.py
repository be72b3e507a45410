"""One micro-batch of training: the subject's examples first, then as many of the class prior."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ldm.data.subject import Draws


class Sample(TypedDict):
    """Sample number n as the loader makes it, without latents."""

    number: int
    prompt: str
    draws: Draws
    view: NotRequired[int]
    pixels: NotRequired[Tensor]
    prior_number: NotRequired[int]
    prior_prompt: NotRequired[str]
    prior_draws: NotRequired[Draws]


@dataclass(frozen=True)
class Batch:
    """Examples to denoise. B subject examples come first, then B of the prior, or none without prior loss.

    Prompts and numbers stay on the host; tensors move with `to`.
    """

    prompts: list[str]
    noise: Tensor
    """eps of eq. 1, [2B, C, h, w] in fp32."""
    timesteps: Tensor
    """[2B] integers."""
    latents: Tensor | None = None
    """Clean latents, [2B, C, h, w] in fp32. The data module adds them once the batch is on the device."""
    numbers: list[int] = field(default_factory=list)
    """Sample numbers of the subject's half, [B]."""
    views: list[int] = field(default_factory=list)
    """Which view of the photographs each subject example is, [B]; empty where crops are random."""
    pixels: Tensor | None = None
    """[B, 3, S, S] in [-1, 1], where crops are random."""
    posterior_noise: Tensor | None = None
    """Noise of the draws from the VAE's posterior, [B, C, h, w]."""
    prior_numbers: list[int] = field(default_factory=list)
    """Which prior sample each example of the second half is, [B]."""

    def to(self, device: torch.device | str, **options: Any) -> "Batch":
        """The batch with its tensors on `device`. Lightning calls this to move it."""
        return self._with_tensors(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> "Batch":
        """The batch with its tensors in page-locked memory. The loader calls this where there is a GPU."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`values` [2B, ...] of the subject's examples and of the prior's, each [B, ...]."""
        subject, prior = values.split([len(self.numbers), len(self.prior_numbers)])
        return subject, prior

    def _with_tensors(self, act: Any) -> "Batch":
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: act(tensor) for name, tensor in tensors.items()})


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples to one batch, without latents."""
    with_prior = "prior_draws" in samples[0]
    draws = [s["draws"] for s in samples] + ([s["prior_draws"] for s in samples] if with_prior else [])
    random_crops = "pixels" in samples[0]
    return Batch(
        prompts=[s["prompt"] for s in samples] + ([s["prior_prompt"] for s in samples] if with_prior else []),
        noise=torch.stack([d.noise for d in draws]),
        timesteps=torch.tensor([d.timestep for d in draws]),
        numbers=[s["number"] for s in samples],
        views=[] if random_crops else [s["view"] for s in samples],
        pixels=torch.stack([s["pixels"] for s in samples]) if random_crops else None,
        posterior_noise=torch.stack([s["draws"].posterior_noise for s in samples]),
        prior_numbers=[s["prior_number"] for s in samples] if with_prior else [],
    )
