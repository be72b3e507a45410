"""The processes of a distributed run; a run of one process needs no special case."""

import atexit
import threading
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from ldm.errors import ReportedError, UserError

T = TypeVar("T")


def several() -> bool:
    """Whether this run has more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if several() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if several() else 1


def gather(value: T) -> list[T]:
    """The `value` of every process, in rank order."""
    if not several():
        return [value]
    values: list[T] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def agreed(act: Callable[..., T], *arguments: object) -> T:
    """`act(*arguments)`, called by every process at the same point.

    If one raises UserError, all do, so that none waits for it. The message is the lowest failing rank's, and the
    first process reports it.
    """
    if not several():
        return act(*arguments)
    result, problem = None, None
    try:
        result = act(*arguments)
    except UserError as error:
        problem = str(error)
    problems = [other for other in interruptible(gather, problem) if other is not None]
    if problems:
        raise UserError(problems[0]) if rank() == 0 else ReportedError(problems[0])
    return result  # type: ignore[return-value]  # act has returned it


def interruptible(act: Callable[..., T], *arguments: object) -> T:
    """`act(*arguments)` in a thread, so that Python's signal handlers run while C++ waits for other processes."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(act(*arguments))
        except BaseException as error:  # raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def leave_at_exit() -> None:
    """Have the interpreter leave the process group before it ends.

    Otherwise about one in a hundred processes of gloo aborts after its last line: C++ destroys threads that still run.
    """
    atexit.register(_leave)


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def lost_peer(error: RuntimeError) -> bool:
    """Whether `error` means that another process of the run cannot be reached."""
    return several() and (isinstance(error, dist.DistError) or "by peer" in str(error))
