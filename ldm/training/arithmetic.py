"""The arithmetic of a run, counted on networks without data."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.diffusion.guidance import is_guided
from ldm.diffusion.sampling import Sampling, scheduler_for
from ldm.models.latent_diffusion import LatentDiffusion


class Arithmetic(NamedTuple):
    """FLOPs of a run's two parts; a multiplication and an addition count as two."""

    prior_samples: float
    training: float


def arithmetic_of(
    model: LatentDiffusion, sampling: Sampling, size: int, prior_samples: int, examples: int, rows: int
) -> Arithmetic:
    """FLOPs of drawing `prior_samples` with `sampling`, and of training on `examples`, at `size` px.

    rows: batch rows per example, 2 with prior loss. Only matrix products and convolutions of denoiser and text
    encoders count; the VAE, the optimizer and elementwise operations do not.
    """
    _, timesteps = scheduler_for(sampling, model.scheduler_config)
    guided = (is_guided(t, sampling.guidance_scale, sampling.guidance_interval) for t in timesteps.tolist())
    rows_an_image = len(timesteps) + sum(guided)
    empty = without_data(model)
    prompts = [str(row) for row in range(rows)]  # distinct, since equal prompts are encoded once
    with torch.no_grad():
        conditioning = empty.embed(prompts[:1])

    def predict() -> None:
        with torch.no_grad():
            empty.predict(*_noisy(empty, size, 1), conditioning)

    def step() -> None:
        empty.predict(*_noisy(empty, size, rows), empty.embed(prompts)).sum().backward()

    return Arithmetic(prior_samples * rows_an_image * flops_of(predict), examples * flops_of(step))


def flops_of(act: Callable[[], object]) -> int:
    """FLOPs in one call of `act`."""
    with FlopCounterMode(display=False) as counter:
        act()
    return counter.get_total_flops()


def without_data(model: LatentDiffusion) -> LatentDiffusion:
    """A copy of `model` on the meta device, without copying its weights."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _noisy(model: LatentDiffusion, size: int, count: int) -> tuple[Tensor, Tensor]:
    """Latents [count, C, h, w] of `size` px and timesteps [count], without data."""
    latents = torch.empty(count, *model.latent_shape(size, size), device="meta")
    return latents, torch.empty(count, dtype=torch.long, device="meta")
