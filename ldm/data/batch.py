"""One micro-batch of training: the subject's examples first, then as many of the class prior."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ldm.randomness import generator


@dataclass(frozen=True)
class Draws:
    """The diffusion draws of one training example, all in fp32: where it is noised to, and with what."""

    posterior_noise: Tensor  # [C, h, w], for the VAE's posterior
    noise: Tensor  # [C, h, w], the diffusion noise
    timestep: int  # in [0, num_timesteps)

    @classmethod
    def of(cls, seed: int, kind: str, n: int, latent_shape: Sequence[int], num_timesteps: int) -> "Draws":
        """Draws of sample number `n`; subject and prior differ by `kind`, as eq. 2 of the paper asks."""
        source = generator(seed, f"{kind} draws", n)
        timestep = int(torch.randint(num_timesteps, (), generator=source))
        noise = torch.randn(tuple(latent_shape), generator=source)
        return cls(torch.randn(tuple(latent_shape), generator=source), noise, timestep)


class SubjectExample(TypedDict):
    """A photograph to train on: a view of it that is encoded once, or a random crop's pixels."""

    prompt: str
    size_ids: list[int]
    view: NotRequired[int]
    pixels: NotRequired[Tensor]
    cell_weights: NotRequired[Tensor]


class Sample(SubjectExample):
    """Sample number n as the loader draws it."""

    number: int
    concept: int
    draws: Draws
    prior_number: NotRequired[int]
    prior_prompt: NotRequired[str]
    prior_size_ids: NotRequired[list[int]]
    prior_draws: NotRequired[Draws]


@dataclass(frozen=True)
class Batch:
    """Examples to denoise: B of the subject come first, then as many of the prior, or none without prior loss."""

    prompts: list[str]
    latents: Tensor
    """Clean latents x of eq. 1, [2B, C, h, w] in fp32."""
    noise: Tensor
    """eps of eq. 1, [2B, C, h, w] in fp32."""
    timesteps: Tensor
    """[2B] integers."""
    size_ids: Tensor
    """Original size, crop corner and target size of the pictures, as `images.size_ids` has them, [2B, 6] in fp32."""
    subject_count: int
    """B."""
    concepts: list[int] = field(default_factory=list)
    """Which subject each example of the first half is of, [B]; that of its class stands B further on."""
    cell_weights: Tensor | None = None
    """How much each cell of a latent counts in its error, [2B, 1, h, w]; None: all alike."""

    def halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`values` [2B, ...] of the subject's examples and of the prior's, each [B, ...]."""
        return values[: self.subject_count], values[self.subject_count :]


@dataclass(frozen=True)
class LoadedBatch:
    """A batch as the loader makes it, before the data module adds latents on the model's device.

    Prompts and numbers stay on the host; tensors move with `to`.
    """

    prompts: list[str]
    noise: Tensor
    timesteps: Tensor
    size_ids: Tensor
    posterior_noise: Tensor
    """Noise of the draws from the VAE's posterior, [B, C, h, w]."""
    numbers: list[int]
    """Sample numbers, [B]."""
    concepts: list[int]
    """Which subject each sample is of, [B]."""
    cell_weights: Tensor | None
    """[B, 1, h, w], where there are masks; the prior's cells all weigh 1."""
    views: list[int]
    """Which view of the photographs each subject example is, [B]; empty where crops are random."""
    pixels: Tensor | None
    """[B, 3, S, S] in [-1, 1], where crops are random."""
    prior_numbers: list[int]
    """Which prior sample each example of the second half is, [B], or none."""

    def to(self, device: torch.device | str, **options: Any) -> "LoadedBatch":
        """The batch with its tensors on `device`. Lightning calls this to move it."""
        return self._with_tensors(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> "LoadedBatch":
        """The batch with its tensors in page-locked memory. The loader calls this where there is a GPU."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def with_latents(self, latents: Tensor) -> Batch:
        """The batch to train on, given its latents [2B, C, h, w]."""
        weights = self.cell_weights
        if weights is not None and self.prior_numbers:
            weights = torch.cat([weights, torch.ones_like(weights)])
        return Batch(
            self.prompts,
            latents,
            self.noise,
            self.timesteps,
            self.size_ids,
            len(self.numbers),
            self.concepts,
            weights,
        )

    def _with_tensors(self, act: Callable[[Tensor], Tensor]) -> "LoadedBatch":
        tensors: dict[str, Any] = {k: act(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)


def collate(samples: Sequence[Sample]) -> LoadedBatch:
    """Samples to one batch, the prior's half last."""
    with_prior = "prior_draws" in samples[0]
    draws = [s["draws"] for s in samples] + ([s["prior_draws"] for s in samples] if with_prior else [])
    random_crops, masked = "pixels" in samples[0], "cell_weights" in samples[0]
    return LoadedBatch(
        prompts=[s["prompt"] for s in samples] + ([s["prior_prompt"] for s in samples] if with_prior else []),
        noise=torch.stack([d.noise for d in draws]),
        timesteps=torch.tensor([d.timestep for d in draws]),
        size_ids=torch.tensor(
            [s["size_ids"] for s in samples] + ([s["prior_size_ids"] for s in samples] if with_prior else []),
            dtype=torch.float32,
        ),
        posterior_noise=torch.stack([s["draws"].posterior_noise for s in samples]),
        numbers=[s["number"] for s in samples],
        concepts=[s["concept"] for s in samples],
        cell_weights=torch.stack([s["cell_weights"] for s in samples]) if masked else None,
        views=[] if random_crops else [s["view"] for s in samples],
        pixels=torch.stack([s["pixels"] for s in samples]) if random_crops else None,
        prior_numbers=[s["prior_number"] for s in samples] if with_prior else [],
    )
