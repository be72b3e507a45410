"""Sampling: from noise to latents with a diffusers scheduler.

A sampler sees only `denoise(x, t)`, which hides guidance and text. Every image has its own generator, so it does
not depend on its batch.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from ldm.diffusion.loss import Denoiser
from ldm.errors import UserError
from ldm.samplers import SAMPLERS, SPACINGS

ZERO_TERMINAL_SNR = "rescale_betas_zero_snr"
"""diffusers' name, in a scheduler's config, for a schedule that ends in noise alone (arXiv 2305.08891)."""


@dataclass(frozen=True)
class Sampling:
    """Settings for drawing images, except prompts and seeds. Raises UserError for invalid values."""

    sampler: str
    """A name of SAMPLERS."""
    steps: int
    """Scheduler steps, at least 1."""
    guidance_scale: float
    """Scale of classifier-free guidance; 1 for none."""
    guidance_interval: Sequence[int] | None = None
    """Timesteps with guidance, from the first to below the second; None guides at every timestep."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    eta: float = 0.0
    """DDIM's stochasticity, 0 to 1."""
    spacing: str = ""
    """A name of SPACINGS; empty for the sampler's default."""
    deepcache: int | None = None
    """One pass in this many computes the UNet's deep features, which the others reuse, at some cost in accuracy
    (`ldm.models.deep_features`); None computes them in every pass."""

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"unknown sampler '{self.sampler}': one of {', '.join(SAMPLERS)}")
        if not self.spacing:
            object.__setattr__(self, "spacing", SAMPLERS[self.sampler].spacing)
        if self.spacing not in SPACINGS:
            raise UserError(f"unknown spacing '{self.spacing}': one of {', '.join(SPACINGS)}")
        if self.guidance_interval is not None:
            object.__setattr__(self, "guidance_interval", tuple(self.guidance_interval))
        if self.deepcache is not None and self.deepcache < 1:
            raise UserError(f"deep features once in {self.deepcache} passes: at least 1 is needed")
        if self.steps < 1:
            raise UserError(f"{self.steps} sampler steps: at least 1 is needed")
        if self.eta and self.sampler != "ddim":
            raise UserError(
                f"eta {self.eta:g} is only for the sampler ddim; with {self.sampler} it must be 0"
            )


def respects_zero_terminal_snr(scheduler: str) -> bool:
    """Whether diffusers' class `scheduler` reads that setting; others ignore it without a word."""
    return ZERO_TERMINAL_SNR in inspect.signature(getattr(diffusers, scheduler).__init__).parameters


def make_scheduler(sampler: str, scheduler_config: Mapping[str, Any], **options: Any) -> Any:
    """The diffusers scheduler `sampler` on the base's noise schedule and prediction type."""
    chosen = SAMPLERS[sampler]
    # Clipping samples is for pixel models; latents are unbounded.
    config = {**scheduler_config, "clip_sample": False, **chosen.options, **options}
    return getattr(diffusers, chosen.scheduler).from_config(config)


def scheduler_for(
    sampling: Sampling, scheduler_config: Mapping[str, object], device: torch.device | str = "cpu"
) -> tuple[Any, Tensor]:
    """The scheduler, ready to step, and the timestep of each model evaluation, [S].

    S exceeds `sampling.steps` for samplers that evaluate the model twice in a step (plms in one, heun in nearly all).
    Raises UserError if the base's schedule does not allow this sampler or this number of steps.
    """
    if scheduler_config.get(ZERO_TERMINAL_SNR):
        able = [name for name, own in SAMPLERS.items() if respects_zero_terminal_snr(own.scheduler)]
        if sampling.sampler not in able:
            raise UserError(
                f"sampler {sampling.sampler} cannot begin where all is noise, as this model's schedule does: take one"
                f" of {', '.join(able)}"
            )
    spacing = {} if sampling.spacing == "base" else {"timestep_spacing": sampling.spacing}
    scheduler = make_scheduler(sampling.sampler, scheduler_config, **spacing)
    settings = scheduler.config
    refusal = UserError(
        f"{sampling.steps} steps of {sampling.sampler} with {settings.timestep_spacing} spacing do not fit the "
        f"schedule of {settings.num_train_timesteps} timesteps: take "
        + ("fewer" if sampling.steps >= settings.num_train_timesteps - 1 else "another number")
    )
    if sampling.steps > settings.num_train_timesteps:
        raise refusal
    if SAMPLERS[sampling.sampler].respaced:
        scheduler, timesteps = _respaced(scheduler, _visited(settings, sampling.steps), device)
    else:
        scheduler.set_timesteps(sampling.steps, device=device)
        timesteps = scheduler.timesteps
    end = settings.num_train_timesteps - 1
    outside = timesteps.min() < 0 or timesteps.max() > end
    late = settings.timestep_spacing != "leading" and timesteps[0] < end  # not at pure noise
    visits = 2 if sampling.sampler in ("heun", "plms") else 1  # these evaluate twice at a timestep
    if outside or late or max(Counter(timesteps.tolist()).values()) > visits:
        raise refusal
    return scheduler, timesteps


def _respaced(full: Any, visited: Tensor, device: torch.device | str) -> tuple[Any, Tensor]:
    """The scheduler `full` on a schedule of only the `visited` timesteps, and these in the order of its steps.

    diffusers' ddim and plms step from t to t - 1000 // steps, which is the next timestep only if the steps divide
    1000: with 600 steps they denoise by 1 timestep but move on by 1.67, and noise remains. On a respaced schedule
    (Nichol and Dhariwal, arXiv 2102.09672, section 4) the next timestep is always one below.
    """
    inside = visited.clamp(max=len(full.alphas_cumprod) - 1)
    renumbered = {"num_train_timesteps": len(visited), "timestep_spacing": "leading", "steps_offset": 0}
    scheduler = type(full).from_config(full.config, **renumbered)
    scheduler.alphas_cumprod = full.alphas_cumprod[inside]
    if hasattr(full, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = full.final_alpha_cumprod
    scheduler.set_timesteps(len(visited), device=device)
    return scheduler, visited.to(device)[scheduler.timesteps]


def _visited(settings: Any, steps: int) -> Tensor:
    """The timesteps of a scheduler with these `settings`, ascending, [steps], rounded as in diffusers.

    diffusers' trailing has an extra timestep, -1, for 62 numbers of steps, the first of them 61.
    """
    length, timesteps = settings.num_train_timesteps, np.arange(steps, dtype=np.float64)
    if settings.timestep_spacing == "leading":
        timesteps = timesteps * (length // steps) + settings.steps_offset
    elif settings.timestep_spacing == "trailing":
        timesteps = np.arange(length, 0, -length / steps)[:steps].round()[::-1] - 1
    else:
        timesteps = np.linspace(0, length - 1, steps).round()
    return torch.from_numpy(timesteps.astype(np.int64))


def initial_noise(generators: Sequence[torch.Generator], latent_shape: Sequence[int]) -> Tensor:
    """Standard normal latents on the CPU, [len(generators), *latent_shape], one generator per image."""
    return torch.stack([torch.randn(tuple(latent_shape), generator=generator) for generator in generators])


@torch.no_grad()
def sample(
    denoise: Denoiser,
    sampling: Sampling,
    scheduler_config: Mapping[str, object],
    noise: Tensor,
    generators: Sequence[torch.Generator],
    on_step: Callable[[], object] | None = None,
) -> Tensor:
    """Sampled latents [B, C, h, w] from `noise` of that shape.

    scheduler_config: the base's, with diffusers' keys. generators: one per image, advanced by stochastic samplers.
    on_step: called after each model evaluation, for progress bars; `scheduler_for` gives their number.
    """
    scheduler, timesteps = scheduler_for(sampling, scheduler_config, noise.device)
    options: dict[str, Any] = {}
    if _accepts(scheduler, "generator"):
        options["generator"] = list(generators)
    if _accepts(scheduler, "eta"):
        options["eta"] = sampling.eta
    x: Tensor = noise * scheduler.init_noise_sigma
    for timestep, own in zip(timesteps, scheduler.timesteps, strict=True):
        prediction = denoise(scheduler.scale_model_input(x, own), timestep.expand(len(x)))
        x = scheduler.step(prediction, own, x, **options).prev_sample
        if on_step is not None:
            on_step()
    return x


def _accepts(scheduler: Any, parameter: str) -> bool:
    return parameter in scheduler.step.__code__.co_varnames[: scheduler.step.__code__.co_argcount]
