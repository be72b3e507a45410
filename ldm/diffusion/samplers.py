"""The samplers by name. Nothing heavy is imported here, so that command lines can list them at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPACINGS = ("leading", "trailing", "linspace")
"""Which timesteps are visited, by diffusers' names (Lin et al., arXiv 2305.08891, table 2).

trailing and linspace start at the end of the schedule, where the noise is; leading starts lower unless the
steps divide the schedule's length, and is what Stable Diffusion's own settings in diffusers say.
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
    "euler": Sampler("EulerDiscreteScheduler", "linspace"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", "linspace"),
    "heun": Sampler("HeunDiscreteScheduler", "linspace"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", "linspace", {"algorithm_type": "dpmsolver++"}),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", "linspace", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": Sampler("UniPCMultistepScheduler", "linspace"),
}
"""By their names in configs and on command lines."""
