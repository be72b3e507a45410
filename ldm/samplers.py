"""The samplers and their names, without heavy imports, so that configs and command lines can list them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

SPACINGS = ("base", "leading", "trailing", "linspace")
"""How timesteps are chosen, by diffusers' names (Lin et al., arXiv 2305.08891, table 2).

trailing and linspace start at the last timestep, pure noise, with any number of steps; leading starts lower if the
steps do not divide the schedule. base: as in diffusers' pipelines, from the base's scheduler settings or diffusers'
default for the sampler.
"""


@dataclass(frozen=True)
class Sampler:
    """A scheduler of diffusers and how it is set up."""

    scheduler: str
    """Class in diffusers."""
    spacing: str
    """Default spacing."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Settings added to the base's noise schedule."""
    respaced: bool = False
    """Whether it steps by a fixed stride, and so needs a schedule of only the visited timesteps."""


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
