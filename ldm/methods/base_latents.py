"""The model's interface for the data (`ldm.data.latents.LatentSource`): latents of pictures, and prior samples."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ldm.console import phase
from ldm.data.buckets import Shape
from ldm.devices import computing_device
from ldm.diffusion.sampling import Sampling
from ldm.files import PROJECT
from ldm.methods.tuning import Untrained
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator

SAMPLING_CODE = ("ldm/diffusion", "ldm/models")
"""The rooms that draw a picture's bits."""


def prior_sampling(settings: Mapping[str, Any]) -> Sampling:
    """The sampling settings of the config section `data.params.prior`."""
    return Sampling(
        settings["sampler"], settings["steps"], settings["guidance_scale"], settings.get("guidance_interval")
    )


def reading_of(model: LatentDiffusion) -> str:
    """How a run reads its base, as far as predictions depend on it and the base's fingerprint does not say it."""
    precisions = sorted({str(network.dtype) for network in model.trainable.values()})
    schedule = json.dumps(model.scheduler_config, sort_keys=True, default=str)
    return f"clip skip {model.clip_skip}, weights in {' and '.join(precisions)}, schedule {schedule}"


@functools.cache
def software() -> str:
    """The versions of the libraries that sample, and a hash of the project's own code that does."""
    own = hashlib.blake2b(digest_size=8)
    for path in sorted(path for room in SAMPLING_CODE for path in (PROJECT / room).rglob("*.py")):
        own.update(path.read_bytes())
    versions = [f"{name} {metadata.version(name)}" for name in ("diffusers", "transformers")]
    return f"{', '.join(versions)}, own code {own.hexdigest()}"


class BaseLatents:
    """Latents of the frozen VAE, and class-prior samples of the untrained model."""

    def __init__(self, model: LatentDiffusion, untrained: Untrained, compiled: bool = False):
        """untrained: kept until `release_untrained`. compiled: whether blocks of the model will be compiled."""
        self.model = model
        self.untrained: Untrained | None = untrained
        self.num_timesteps = model.schedule.num_timesteps
        self.fingerprint = model.fingerprint
        self.computed_by = f"{software()}, {computing_device(model.device)}; {reading_of(model)}"
        self.computed_by += ", compiled" if compiled else ""

    def release_untrained(self) -> None:
        """Free the untrained model's memory: no more prior samples will be drawn."""
        self.untrained = None

    def untrained_model(self) -> AbstractContextManager[LatentDiffusion]:
        """`with latents.untrained_model() as base:` gives the model before training."""
        assert self.untrained is not None, "the untrained model was released while it was still needed"
        return self.untrained()

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture of `height` x `width` px."""
        return self.model.latent_shape(height, width)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [B, C, h, w], of the latents of `pixels` [B, 3, H, W] in [-1, 1]."""
        mean, std = self.model.posterior(pixels.to(self.model.device))
        return mean, std

    def draw_prior(
        self, prompt: str, numbers: Sequence[int], seed: int, settings: Mapping[str, object], shape: Shape
    ) -> Tensor:
        """Class-prior latents [len(numbers), C, h, w] in fp32, number i drawn with generator (seed, "prior", i).

        shape: width and height of the pictures in px.
        """
        sampling = prior_sampling(settings)
        title = f"prior samples {numbers[0] + 1}-{numbers[-1] + 1} of {settings['count']}"
        with (
            self.untrained_model() as base,
            torch.autocast(base.device.type, enabled=False),
            phase(title, base.passes(sampling)) as advance,
        ):
            return base.sample(
                [prompt] * len(numbers),
                [generator(seed, "prior", number) for number in numbers],
                self.latent_shape(shape[1], shape[0]),
                sampling,
                on_step=advance,
            )
