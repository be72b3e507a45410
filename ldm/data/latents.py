"""The data's interface to the model, and the subject's latents."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ldm.data.batch import LoadedBatch
from ldm.data.buckets import Shape
from ldm.data.subject import SubjectImages


class LatentSource(Protocol):
    """The data's only interface to the model; all latents are in fp32 on the model's device."""

    num_timesteps: int
    """Timesteps are drawn from [0, num_timesteps)."""
    fingerprint: str
    """Hash of the base model's contents."""
    computed_by: str
    """What prior samples depend on besides the base's contents: software, hardware, and how the run reads the base."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(C, h, w) of the latent of a picture of `height` x `width` px."""

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [B, C, h, w], of the latents of `pixels` [B, 3, H, W] in [-1, 1]."""

    def draw_prior(
        self, prompt: str, numbers: Sequence[int], seed: int, settings: Mapping[str, object], shape: Shape
    ) -> Tensor:
        """Prior samples `numbers` of the untrained model, [len(numbers), C, h, w], a pure function of the arguments.

        shape: width and height of the pictures in px.
        """


class SubjectLatents:
    """Latents of the photographs. The VAE is frozen: views are encoded once, unless crops are random."""

    def __init__(self, subjects: Sequence[SubjectImages], source: LatentSource):
        """Encode the views one by one, so that a view's posterior does not depend on others."""
        self.source = source
        self.posteriors: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        """(subject, view) -> mean and standard deviation, [1, C, h, w] each."""
        if not subjects[0].random_crop:
            views = [(place, view) for place, subject in enumerate(subjects) for view in subject.views]
            self.posteriors = {
                (place, view): source.posterior(subjects[place].pixels(view)[None]) for place, view in views
            }

    def of(self, batch: LoadedBatch) -> Tensor:
        """Latents [B, C, h, w] for the subjects' half of `batch`, drawn from the VAE's posterior."""
        if batch.pixels is not None:
            mean, std = self.source.posterior(batch.pixels)
        else:
            found = [self.posteriors[key] for key in zip(batch.concepts, batch.views, strict=True)]
            mean, std = (torch.cat(parts) for parts in zip(*found, strict=True))
        return mean + std * batch.posterior_noise
