"""What the network is to predict of the class prior, where that is not the noise of eq. 2: the untrained prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.models.latent_diffusion import LatentDiffusion


@torch.no_grad()
def untrained_prior_target(base: LatentDiffusion, batch: Batch, prompts: Sequence[str]) -> Tensor:
    """Targets of `batch`, [2B, C, h, w] in fp32: eq. 1's for the subject, for the prior what `base` predicts.

    base: the untrained model. prompts: the batch's, with their identifiers, [2B].
    `base` is asked about the whole batch, because a prediction's last bits depend on the batch's size: so before the
    first step the prior loss is exactly 0, at the cost of predictions of the subject that nobody needs.
    """
    noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    of_noise = base.schedule.target(batch.latents, batch.noise, batch.timesteps)
    of_base = base.predict(noisy, batch.timesteps, base.embed(prompts, batch.size_ids))
    return torch.cat([batch.halves(of_noise)[0], batch.halves(of_base)[1]])
