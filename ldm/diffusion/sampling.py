"""Sampling: from noise to latents over a diffusers scheduler.

A sampler sees only `denoise(x, t)`; guidance and text live behind it. Every image owns a generator, so
what it becomes does not depend on the batch it is drawn in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from ldm.diffusion.loss import Denoiser
from ldm.diffusion.samplers import SAMPLERS
from ldm.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How images are drawn, apart from what of and from which seeds."""

    sampler: str
    """A name of SAMPLERS."""
    steps: int
    """Scheduler steps."""
    guidance_scale: float
    """Weight of classifier-free guidance; 1 for none."""
    guidance_interval: tuple[int, int] | None = None
    """The timesteps that are guided, from the first to below the second; None guides at every timestep."""
    negative_prompt: str = ""
    """What guidance leads away from."""
    eta: float = 0.0
    """DDIM's stochasticity, 0 to 1."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{self.sampler}': one of {', '.join(SAMPLERS)}")


def make_scheduler(sampler: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler `sampler` on the base's noise schedule and prediction type."""
    name, options = SAMPLERS[sampler]
    # Samples are clipped in pixel models only; a latent's range is open.
    config = {**scheduler_config, "clip_sample": False, **options}
    return getattr(diffusers, name).from_config(config)


def initial_noise(generators: Sequence[torch.Generator], latent_shape: Sequence[int]) -> Tensor:
    """Standard normal latents, [len(generators), *latent_shape], one generator an image, on the CPU."""
    return torch.stack([torch.randn(tuple(latent_shape), generator=generator) for generator in generators])


@torch.no_grad()
def sample(
    denoise: Denoiser,
    scheduler: Any,
    noise: Tensor,
    generators: Sequence[torch.Generator],
    steps: int,
    eta: float = 0.0,
    on_step: Callable[[], None] | None = None,
) -> Tensor:
    """Latents [B, C, h, w] from `noise` of that shape in `steps` scheduler steps.

    generators: one an image, advanced by the stochastic samplers. eta: DDIM's stochasticity (0 to 1),
    ignored by other samplers. on_step: called after each scheduler step, for progress bars.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    options: dict[str, Any] = {}
    if _accepts(scheduler, "generator"):
        options["generator"] = list(generators)
    if _accepts(scheduler, "eta"):
        options["eta"] = eta
    x = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        prediction = denoise(scheduler.scale_model_input(x, timestep), timestep.expand(len(x)))
        x = scheduler.step(prediction, timestep, x, **options).prev_sample
        if on_step is not None:
            on_step()
    return x


def _accepts(scheduler: Any, parameter: str) -> bool:
    return parameter in scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
