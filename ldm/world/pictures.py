"""Numbered pictures of the embedded world as training samples."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.images import pixels_of
from ldm.data.sampler import CountingBatchSampler
from ldm.files import replacing
from ldm.randomness import generator, permutation
from ldm.values import Count, Must, NonNegativeInt, Probability, Seed, Text, Unaffecting
from ldm.world.drawing import World, caption
from ldm.world.scenes import SCENES

LatentShape = Annotated[
    Sequence[Count], Must(lambda shape: len(shape) == 3, "channels, height and width, as in [4, 16, 16]")
]


class WorldPictures(pl.LightningDataModule):
    """Endless shuffled passes over the world's first `count` pictures.

    art: folder of the world's art. cache: folder for the drawn pictures (12 KB each).
    latent_shape: (C, h, w) of each sample's noise.
    caption_dropout: share of samples whose caption is empty, for classifier-free guidance.
    name_share: share of samples whose caption uses the individual's name, if it has one.
    """

    def __init__(
        self,
        art: Text = "assets/world",
        count: Count = 60_000,
        seed: Seed = 0,
        batch_size: Annotated[Count, Unaffecting] = 32,
        latent_shape: LatentShape = (4, 16, 16),
        num_timesteps: Count = 1000,
        caption_dropout: Probability = 0.1,
        name_share: Probability = 0.0,
        cache: Annotated[Text, Unaffecting] = ".cache/world",
        num_workers: Annotated[NonNegativeInt, Unaffecting] = 0,
    ):
        super().__init__()
        self.art, self.count, self.seed, self.batch_size = art, count, seed, batch_size
        self.latent_shape, self.num_timesteps = tuple(latent_shape), num_timesteps
        self.caption_dropout, self.name_share = caption_dropout, name_share
        self.cache, self.num_workers = Path(cache), num_workers

    def prepare_data(self) -> None:
        drawn(World(self.art), self.seed, self.count, self.cache)

    def setup(self, stage: str) -> None:
        self.world = World(self.art)
        self.pixels = drawn(self.world, self.seed, self.count, self.cache)
        """[N, S, S, 3] in 0..255, memory-mapped."""

    def every_caption(self, count: int = 3000) -> list[str]:
        """The captions of the first `count` pictures, with and without names, which have every word of the world."""
        facts = [self.world.facts(self.seed, index) for index in range(min(count, self.count))]
        return [caption(fact, by_name) for fact in facts for by_name in (False, True)]

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        first = trainer.global_step * trainer.accumulate_grad_batches
        sampler = CountingBatchSampler(self.batch_size, first, trainer.global_rank, trainer.world_size)
        return DataLoader(
            WorldSamples(self),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class WorldSamples(Dataset):
    """Sample number n with all its draws, as a pure function of (seed, n)."""

    def __init__(self, data: WorldPictures):
        self.data = data

    def __getitem__(self, number: int) -> dict[str, Tensor | str | int]:
        """index: which picture; pixels [3, S, S] in [-1, 1]; caption; noise [C, h, w]; timestep."""
        data = self.data
        index = int(_order(data.count, data.seed, number // data.count)[number % data.count])
        draws = generator(data.seed, "world sample", number)
        noise = torch.randn(data.latent_shape, generator=draws)
        timestep = int(torch.randint(data.num_timesteps, (), generator=draws))
        dropped = float(torch.rand((), generator=draws)) < data.caption_dropout
        by_name = float(torch.rand((), generator=draws)) < data.name_share
        return {
            "index": index,
            "pixels": pixels_of(data.pixels[index]),
            "caption": "" if dropped else caption(data.world.facts(data.seed, index), by_name),
            "noise": noise,
            "timestep": timestep,
        }


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return permutation(count, seed, "world order", epoch)


def drawn(world: World, seed: int, count: int, cache: Path) -> NDArray[np.uint8]:
    """The world's first `count` pictures, [N, S, S, 3], drawn once and then read from `cache`."""
    path = cache / f"{fingerprint(world)}-{seed}-{count}.npy"
    if not path.is_file():
        shape = (count, world.size, world.size, 3)
        with replacing(path, shared=True) as temporary:
            pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            for i in range(count):
                pixels[i] = world.picture(seed, i)[0]
            pixels.flush()
    return np.load(path, mmap_mode="r")


def fingerprint(world: World) -> str:
    """A hash of the art, the withheld members, and the look of the scenes."""
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(world.art.glob("*.json")) + sorted(world.art.glob("*.png")):
        digest.update(path.read_bytes())
    for i in range(len(SCENES)):
        digest.update(world.picture(0, i, "fingerprint")[0].tobytes())
    return digest.hexdigest()
