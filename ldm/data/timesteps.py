"""How training draws the timestep of a sample, t of eq. 1 of DreamBooth; `data.params.timesteps` names one."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from ldm.errors import UserError
from ldm.values import Count, NonNegativeInt, PositiveFloat


@runtime_checkable
class TimestepSampling(Protocol):
    """A distribution of timesteps."""

    def __call__(self, source: torch.Generator, num_timesteps: int) -> int:
        """A timestep in [0, num_timesteps). Raises UserError where the distribution is of a longer schedule."""


@dataclass(frozen=True)
class Uniform:
    """Every timestep of a range is equally likely, as in the paper."""

    first: NonNegativeInt = 0
    end: Count | None = None
    """One past the last timestep; None for the schedule's end."""

    def __call__(self, source: torch.Generator, num_timesteps: int) -> int:
        first, end = _range(self.first, self.end, num_timesteps)
        return int(torch.randint(first, end, (), generator=source))


UNIFORM = Uniform()
"""The paper's."""


@dataclass(frozen=True)
class LogitNormal:
    """The logit of t / T is normal, cut to a range by drawing again (Esser et al., arXiv 2403.03206, section 3.1)."""

    mean: float = 0.0
    """Above 0 favours the noisy end."""
    std: PositiveFloat = 1.0
    first: NonNegativeInt = 0
    end: Count | None = None

    def __call__(self, source: torch.Generator, num_timesteps: int) -> int:
        first, end = _range(self.first, self.end, num_timesteps)
        for _ in range(TRIES):
            normal = torch.randn((), generator=source, dtype=torch.float64)
            timestep = int(torch.sigmoid(self.mean + self.std * normal) * num_timesteps)
            if first <= timestep < end:
                return timestep
        raise UserError(
            f"data.params.timesteps: {TRIES} draws with mean {self.mean:g} and std {self.std:g} missed [{first}, {end})"
        )


TRIES = 10_000
"""Draws after which a range counts as out of a distribution's reach."""


def _range(first: int, end: int | None, num_timesteps: int) -> tuple[int, int]:
    end = num_timesteps if end is None else end
    if not first < end <= num_timesteps:
        raise UserError(
            f"data.params.timesteps: from {first} to below {end} is no range in the base's {num_timesteps} timesteps"
        )
    return first, end
