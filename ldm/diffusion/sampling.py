"""Sampling: from noise to latents over a diffusers scheduler.

A sampler sees only `denoise(x, t)`; guidance and text live behind it. Every image owns a generator, so
what it becomes does not depend on the batch it is drawn in.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import torch
from torch import Tensor

from ldm.diffusion.loss import Denoiser
from ldm.errors import UserError

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Name in configs and on the command line -> diffusers class and what it is told beside the base's schedule."""


def make_scheduler(sampler: str, scheduler_config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler `sampler` on the base's noise schedule and prediction type."""
    if sampler not in SAMPLERS:
        raise UserError(f"unknown sampler '{sampler}': one of {', '.join(SAMPLERS)}")
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
