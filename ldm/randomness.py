"""Counter-keyed randomness: every random draw is keyed by its purpose and its counters.

A draw never depends on how many draws came before it, so an interrupted run, or one with more processes, draws
the same numbers. All draws are made in fp32 on the CPU, whatever the training device.
"""

import hashlib

import torch
from torch import Tensor


def generator(seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A CPU generator for draw `counters` of `purpose`; equal arguments give equal draws on all machines.

    The key is a BLAKE2b hash, since Python's own `hash` differs from process to process. It is cut to 32
    bits because torch's CPU engine (mt19937) ignores the upper half of a longer seed.
    """
    key = "/".join([purpose, str(seed), *map(str, counters)])
    digest = hashlib.blake2b(key.encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def image_generator(seed: int) -> torch.Generator:
    """The generator of the image with this `seed` in `txt2img`.

    Seeded as diffusers' pipelines are, so `generator=torch.Generator().manual_seed(seed)` there starts
    from the same noise.
    """
    return torch.Generator().manual_seed(seed)


def permutation(size: int, seed: int, purpose: str, *counters: int) -> Tensor:
    """A shuffled order of `range(size)`, [size] int64."""
    return torch.randperm(size, generator=generator(seed, purpose, *counters))
