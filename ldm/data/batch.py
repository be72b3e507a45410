"""One micro-batch of training: the subject's examples, then equally many of the class prior."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from ldm.data.timesteps import UNIFORM, TimestepSampling
from ldm.randomness import generator


@dataclass(frozen=True)
class Draws:
    """The diffusion draws of one training example, in fp32: timestep and noise."""

    posterior_noise: Tensor  # [C, h, w], for the VAE's posterior
    noise: Tensor  # [C, h, w], the diffusion noise
    timestep: int  # in [0, num_timesteps)

    @classmethod
    def of(
        cls,
        seed: int,
        kind: str,
        n: int,
        latent_shape: Sequence[int],
        num_timesteps: int,
        timesteps: TimestepSampling = UNIFORM,
        offset_noise: float = 0.0,
    ) -> "Draws":
        """Draws of sample number `n`; subject and prior differ by `kind`, as in eq. 2 of the paper.

        offset_noise: standard deviation of a shift that all of a channel's noise shares (Guttenberg, "Diffusion with
        offset noise", 2023). It is drawn last, so that the other draws do not depend on it.
        """
        source, shape = generator(seed, f"{kind} draws", n), tuple(latent_shape)
        timestep = timesteps(source, num_timesteps)
        noise = torch.randn(shape, generator=source)
        posterior_noise = torch.randn(shape, generator=source)
        if offset_noise:
            noise = noise + offset_noise * torch.randn(shape[0], 1, 1, generator=source)
        return cls(posterior_noise, noise, timestep)


class SubjectExample(TypedDict):
    """A photograph to train on: the number of a view that is encoded once, or the pixels of a random crop."""

    prompt: str
    size_ids: list[int]
    view: NotRequired[int]
    pixels: NotRequired[Tensor]
    cell_weights: NotRequired[Tensor]


class Sample(SubjectExample):
    """Sample number n, drawn by the loader."""

    number: int
    concept: int
    draws: Draws
    prior_number: NotRequired[int]
    prior_prompt: NotRequired[str]
    prior_size_ids: NotRequired[list[int]]
    prior_draws: NotRequired[Draws]


@dataclass(frozen=True)
class Batch:
    """Examples to denoise: B of the subject, then B of the prior, or none without prior loss."""

    prompts: list[str]
    latents: Tensor
    """Clean latents x of eq. 1, [2B, C, h, w] in fp32."""
    noise: Tensor
    """eps of eq. 1, [2B, C, h, w] in fp32."""
    timesteps: Tensor
    """[2B] integers."""
    size_ids: Tensor
    """Original size, crop corner and target size of the pictures (see `images.size_ids`), [2B, 6] in fp32."""
    subject_count: int
    """B."""
    concepts: list[int] = field(default_factory=list)
    """The subject of each example of the first half, [B]; example i + B is of the class of example i."""
    cell_weights: Tensor | None = None
    """Weight of each latent cell in the error, [2B, 1, h, w]; None: all equal."""

    def halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`values` [2B, ...] split into the subject's examples and the prior's, each [B, ...]."""
        return values[: self.subject_count], values[self.subject_count :]


@dataclass(frozen=True)
class LoadedBatch:
    """A batch from the loader, before the data module adds latents on the model's device.

    Prompts and numbers stay on the host; `to` moves the tensors.
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
    """The subject of each sample, [B]."""
    cell_weights: Tensor | None
    """[B, 1, h, w] if there are masks; the prior's cells all have weight 1."""
    views: list[int]
    """The view of each subject example, [B]; empty for random crops."""
    pixels: Tensor | None
    """[B, 3, S, S] in [-1, 1] for random crops."""
    prior_numbers: list[int]
    """The prior sample of each example of the second half, [B], or none."""

    def to(self, device: torch.device | str, **options: Any) -> "LoadedBatch":
        """The batch with its tensors on `device`. Lightning calls this to move it.

        The host does not wait for the copies from page-locked memory, so it stays ahead of a GPU.
        """
        options = {"non_blocking": torch.device(device).type == "cuda", **options}
        return self._with_tensors(lambda tensor: tensor.to(device, **options))

    def pin_memory(self) -> "LoadedBatch":
        """The batch with its tensors in page-locked memory. The loader calls this if there is a GPU."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def with_latents(self, latents: Tensor) -> Batch:
        """The batch to train on, with its latents [2B, C, h, w]."""
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
    """Combine samples into one batch, the prior's half last."""
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
