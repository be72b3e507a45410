"""Common parts of trainings from random weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ldm.errors import UserError
from ldm.randomness import generator


@contextmanager
def settings_of(key: str) -> Iterator[None]:
    """In the block, turn errors of libraries about `model.params.key` into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # libraries raise anything for inconsistent sizes
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"config: model.params.{key}: {type(error).__name__}: {reason}") from error


@contextmanager
def keyed_weights(seed: int, network: str) -> Iterator[None]:
    """In the block, draw initial weights from `seed`; the global random state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "starting weights of " + network).initial_seed())
        yield


@torch.no_grad()
def update_average(average: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Update `average` with `trained`, faster at first, so that the initial weights are forgotten."""
    keep = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.parameters(), trained.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b.detach() for _, b in pairs], 1 - keep)


def warm_stable_decay(step: int, warmup_steps: int, total_steps: int, decay_steps: int) -> float:
    """Learning-rate factor: linear warm-up, constant, then linear to zero over the last `decay_steps`.

    During the constant part the length of the run can still be changed: a resume with another `total_steps` continues
    as if it had been set from the start (Hu et al., arXiv 2404.06395, section 4).
    """
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    left = max(total_steps - step, 0) / max(decay_steps, 1)
    return min(warm, left)
