"""The alternative target for the class prior: the untrained model's prediction, instead of the noise of eq. 2."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.data.batch import Batch
from ldm.models.latent_diffusion import LatentDiffusion


@torch.no_grad()
def untrained_prior_target(base: LatentDiffusion, batch: Batch, prompts: Sequence[str]) -> Tensor:
    """Targets of `batch`, [2B, C, h, w] in fp32: eq. 1's for the subject, the predictions of `base` for the prior.

    base: the untrained model. prompts: the batch's, with identifiers, [2B].
    `base` predicts for the whole batch, because a prediction's last bits depend on the batch size: so the prior loss is
    exactly 0 before the first step, at the cost of unused predictions for the subject.
    """
    noisy = base.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    of_noise = base.schedule.target(batch.latents, batch.noise, batch.timesteps)
    of_base = base.predict(noisy, batch.timesteps, base.embed(prompts, batch.size_ids))
    return torch.cat([batch.halves(of_noise)[0], batch.halves(of_base)[1]])
