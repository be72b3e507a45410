"""The pre-trained model as it was before training, for as long as something still asks for it."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.devices import DTYPES
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator


class FrozenBase:
    """A copy of the base for prior samples and the drift gauge; freed when both are done.

    Not a Module, so that its weights are neither trained, saved, nor broadcast.
    """

    def __init__(self, model: LatentDiffusion):
        self.users = {"setup"}
        self._model: LatentDiffusion | None = None
        self._trained = model

    def take(self, precision: str) -> None:
        """Copy the model as it is now, in `precision`: before a checkpoint's weights can replace the base's."""
        if precision not in DTYPES:
            raise UserError(f"data.params.prior.precision is '{precision}': one of {', '.join(DTYPES)}")
        self._model = self._trained.frozen_copy(DTYPES[precision])

    def needed_for(self, user: str) -> None:
        """Keep the copy until `user` says `done_with`."""
        self.users.add(user)

    def done_with(self, user: str) -> None:
        """`user` will not ask again; the last one to say so frees the memory."""
        self.users.discard(user)
        if not self.users:
            self._model = None

    @property
    def model(self) -> LatentDiffusion:
        """The copy, on the device of the trained model."""
        self._model.unet.to(self._trained.unet.device)
        self._model.text_encoder.to(self._trained.unet.device)
        return self._model

    def sample_prior(
        self,
        indices: Sequence[int],
        prompt: str,
        latent_shape: Sequence[int],
        seed: int,
        settings: Mapping[str, Any],
    ) -> Tensor:
        """Class-prior latents [len(indices), C, h, w] in fp32, number i drawn by generator (seed, "prior", i)."""
        sampling = Sampling(
            settings["sampler"],
            settings["steps"],
            settings["guidance_scale"],
            settings.get("guidance_interval"),
        )
        title = f"prior samples {indices[0] + 1}-{indices[-1] + 1} of {settings['count']}"
        with (
            torch.autocast(self._trained.unet.device.type, enabled=False),
            tqdm(total=sampling.steps, desc=title, leave=False, file=sys.stderr) as bar,
        ):
            return self.model.sample(
                [prompt] * len(indices),
                [generator(seed, "prior", index) for index in indices],
                latent_shape,
                sampling,
                on_step=bar.update,
            )
