"""Weights of the denoising error over timesteps, each a function of the schedule: w_t in eq. 1 of DreamBooth."""

from collections.abc import Callable

from torch import Tensor

from ldm.diffusion.schedule import NoiseSchedule

Weighting = Callable[[NoiseSchedule, Tensor], Tensor]
"""`(schedule, timesteps [B]) -> weights [B]`."""


def min_snr(schedule: NoiseSchedule, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma weights, [B] (Hang et al., arXiv 2303.09556, section 3.4).

    min(snr, gamma) weighs the error of the clean image. Written for another prediction it is divided by snr
    for epsilon, and by snr + 1 for v.
    """
    snr = schedule.snr(timesteps)
    clipped = snr.clamp(max=gamma)
    return clipped / snr if schedule.prediction_type == "epsilon" else clipped / (snr + 1)
