"""The processes of a distributed run, as plain values; a run of one process needs no special case."""

from typing import Any

import torch.distributed as dist


def several() -> bool:
    """Whether this run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if several() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if several() else 1


def gather(value: Any) -> list[Any]:
    """`value` of every process, in the order of their ranks."""
    if not several():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def lost_another(error: RuntimeError) -> bool:
    """Whether `error` says that another process of the run can no longer be reached."""
    return several() and (isinstance(error, dist.DistError) or "by peer" in str(error))
