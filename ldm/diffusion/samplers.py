"""The samplers by name. Nothing heavy is imported here, so that command lines can list them at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPACINGS = ("base", "leading", "trailing", "linspace")
"""Which timesteps are visited, by diffusers' names (Lin et al., arXiv 2305.08891, table 2).

trailing and linspace start at the end of the schedule, where the noise is, with any number of steps; leading
starts lower where the steps do not divide the schedule. base: what the base's scheduler settings say, or
diffusers' default for the sampler, as a pipeline of diffusers has it.
"""


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers and how it is set up."""

    scheduler: str
    """Class in diffusers."""
    spacing: str
    """The spacing that is used unless another is asked for."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Settings beside the base's noise schedule."""
    respaced: bool = False
    """Whether it steps by a fixed stride, and so needs a schedule of the visited timesteps alone."""


SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", "trailing", respaced=True),
    "plms": Sampler("PNDMScheduler", "trailing", {"skip_prk_steps": True}, respaced=True),
    "ddpm": Sampler("DDPMScheduler", "trailing", respaced=True),
    "euler": Sampler("EulerDiscreteScheduler", "base"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "base"),
    "heun": Sampler("HeunDiscreteScheduler", "base"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "base", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", "base", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": Sampler("UniPCMultistepScheduler", "base"),
}
"""By their names in configs and on command lines."""
