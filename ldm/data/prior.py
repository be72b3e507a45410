"""The bank of class-prior samples: latents drawn by the untrained base when training first needs them."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ldm import processes
from ldm.data.prior_cache import PriorCache
from ldm.devices import sent
from ldm.files import replacing
from ldm.values import (
    Count,
    NonNegativeFloat,
    PositiveFloat,
    Precision,
    SamplerName,
    Text,
    TimestepInterval,
    Unaffecting,
    is_unaffecting,
)


@dataclass(frozen=True)
class PriorSettings:
    """How class-prior samples are drawn; `configs/dreambooth.yaml` explains each setting."""

    count: Count
    chunk_size: Count
    sampler: SamplerName
    steps: Count
    guidance_scale: NonNegativeFloat
    guidance_interval: TimestepInterval | None = None
    precision: Precision = "fp32"
    fill_at_start: Annotated[bool, Unaffecting] = False
    cache: Annotated[Text | None, Unaffecting] = None
    cache_gigabytes: Annotated[PositiveFloat, Unaffecting] = 5.0


NOT_IN_LATENTS = tuple(setting.name for setting in fields(PriorSettings) if is_unaffecting(setting.type))
"""Settings that do not affect latents."""

Draw = Callable[[Sequence[int]], Tensor]
"""`prior sample numbers -> latents [len, C, h, w]`, a pure function of the numbers."""


class PriorBank:
    """`count` latents in fixed chunks, each drawn at once, kept in memory and in `folder`.

    A chunk is always drawn whole and in the same batches, so its latents do not depend on when it is drawn. A chunk
    file that is missing, damaged, or of other settings is drawn again. With several processes each draws its share of
    a chunk, and all have the whole bank.
    """

    def __init__(
        self,
        folder: Path,
        count: int,
        chunk_size: int,
        settings: Mapping[str, object],
        draw: Draw,
        cache: PriorCache | None = None,
        computed_by: str = "",
        wanted: int | None = None,
    ):
        """settings: everything the latents depend on, as plain values; stored in each chunk file and compared.

        cache: shared with other runs. computed_by: software and hardware, for the cache's key. wanted: how many, the
        first ones, the run will need; by default all.
        """
        self.folder = Path(folder)
        self.count = count
        self.chunk_size = chunk_size
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.draw = draw
        self.cache = cache
        self.computed_by = computed_by
        self.wanted = count if wanted is None else wanted
        self.chunks: dict[int, Tensor] = {}

    @property
    def full(self) -> bool:
        """Whether every chunk that the run needs is in memory, so that no more will be drawn."""
        return set(range(-(-self.wanted // self.chunk_size))) <= self.chunks.keys()

    @property
    def chunk_count(self) -> int:
        """Chunks in the full bank; the last may be short."""
        return -(-self.count // self.chunk_size)

    def fill(self, indices: Sequence[int]) -> None:
        """Read or draw the chunks of `indices`. All processes must pass the same indices."""
        for chunk in sorted({index // self.chunk_size for index in indices} - self.chunks.keys()):
            latents = self._read_together(chunk)
            if latents is None and self.cache is not None:
                if processes.rank() == 0:
                    self.cache.take(self._facts(chunk), self._path(chunk))
                latents = self._read_together(chunk)
            if latents is None:
                latents = self._draw_together(chunk)
                if processes.rank() == 0:
                    self._write(chunk, latents)
            self.chunks[chunk] = latents

    def load_existing(self) -> None:
        """Read the chunks drawn by earlier starts of this run."""
        for chunk in range(self.chunk_count):
            latents = self._read_together(chunk)
            if latents is not None:
                self.chunks[chunk] = latents

    def latents(self, indices: Sequence[int], device: torch.device | str) -> Tensor:
        """Latents of `indices`, [len(indices), C, h, w] in fp32; their chunks must have been filled."""
        rows = [self.chunks[index // self.chunk_size][index % self.chunk_size] for index in indices]
        return sent(torch.stack(rows), device)

    def _read_together(self, chunk: int) -> Tensor | None:
        """The chunk if every process can read it, otherwise None on all of them."""
        processes.gather(None)  # the first process may just have written it
        latents = self._read(chunk)
        return None if any(processes.gather(latents is None)) else latents

    def _facts(self, chunk: int) -> dict[str, object]:
        """Everything that a chunk's bits depend on; the size of the bank is not part of it."""
        numbers = self._numbers(chunk)
        return {
            "settings": _without_count(self.settings),
            "numbers": [numbers.start, numbers.stop],
            "processes": processes.world_size(),
            "computed_by": self.computed_by,
        }

    def _numbers(self, chunk: int) -> range:
        first = chunk * self.chunk_size
        return range(first, min(first + self.chunk_size, self.count))

    def _draw_together(self, chunk: int) -> Tensor:
        numbers = self._numbers(chunk)
        if not processes.several():
            return self.draw(numbers).cpu()
        share = -(-len(numbers) // processes.world_size())
        own = numbers[processes.rank() * share : (processes.rank() + 1) * share]
        # A process without a share draws a sample that is then dropped: collectives need equal shapes.
        drawn = self.draw(own or numbers[:1])[: len(own)]
        padded = torch.zeros(share, *drawn.shape[1:], device=drawn.device)
        padded[: len(drawn)] = drawn
        shares = [torch.empty_like(padded) for _ in range(processes.world_size())]
        dist.all_gather(shares, padded)
        return torch.cat(shares)[: len(numbers)].cpu()

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:05d}.safetensors"

    def _write(self, chunk: int, latents: Tensor) -> None:
        # One metadata key, since safetensors writes several in random order, and equal chunks must be equal files.
        about = json.dumps({"settings": self.settings, "sha256": _digest(latents)})
        try:
            with replacing(self._path(chunk), sync=False) as temporary:  # a chunk's hash is checked when read
                temporary.write_bytes(save({"latents": latents.contiguous()}, {"about": about}))
            if self.cache is not None:
                self.cache.keep(self._facts(chunk), self._path(chunk))
        except OSError as error:
            warnings.warn(
                f"{self._path(chunk)} cannot be written ({error}); a resume draws it again", stacklevel=2
            )

    def _read(self, chunk: int) -> Tensor | None:
        """The latents in a chunk's file; None if it is missing, damaged, or of other settings."""
        try:
            with safe_open(self._path(chunk), framework="pt") as file:
                about, latents = json.loads((file.metadata() or {})["about"]), file.get_tensor("latents")
            same = _without_count(about["settings"]) == _without_count(self.settings)
            valid = same and about["sha256"] == _digest(latents)
            return latents if valid and len(latents) == len(self._numbers(chunk)) else None
        except (OSError, SafetensorError, LookupError, ValueError, TypeError, AttributeError, RecursionError):
            return None


def _without_count(settings: str) -> dict[str, object]:
    facts: dict[str, object] = json.loads(settings)
    return {key: value for key, value in facts.items() if key != "count"}


def _digest(latents: Tensor) -> str:
    return hashlib.sha256(latents.contiguous().numpy().tobytes()).hexdigest()
