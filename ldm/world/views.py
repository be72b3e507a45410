"""Views of the embedded world's drawings for self-supervised learning: several of one drawing, without a label."""

from typing import Annotated

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.images import to_tensor
from ldm.data.sampler import CountingBatchSampler
from ldm.randomness import generator
from ldm.values import Count, NonNegativeInt, Seed, Text, Unaffecting
from ldm.world.drawing import World


class WorldViews(pl.LightningDataModule):
    """Endless batches {"large": [B, G, 3, S, S], "small": [B, L, 3, s, s]} in [-1, 1].

    All views of a sample show one drawing in one hue, each cropped, mirrored and lit differently, on its
    own background, so they share only the drawing (background augmentation, Ryali et al., arXiv
    2103.12719). small_size: s, px.
    """

    def __init__(
        self,
        art: Text = "assets/world",
        seed: Seed = 0,
        batch_size: Annotated[Count, Unaffecting] = 64,
        large: Count = 2,
        small: NonNegativeInt = 2,
        small_size: Count = 32,
        num_workers: Annotated[NonNegativeInt, Unaffecting] = 0,
    ):
        super().__init__()
        self.art, self.seed, self.batch_size, self.num_workers = art, seed, batch_size, num_workers
        self.large, self.small, self.small_size = large, small, small_size

    def setup(self, stage: str) -> None:
        self.world = World(self.art)

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        first = trainer.global_step * trainer.accumulate_grad_batches
        sampler = CountingBatchSampler(self.batch_size, first, trainer.global_rank, trainer.world_size)
        return DataLoader(
            Views(self),
            batch_sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )


class Views(Dataset):
    """Sample number n: views of one drawing, as a pure function of (seed, n)."""

    LARGE, SMALL = (0.75, 1.0), (0.4, 0.65)
    """Range of a view's side, in picture sides."""

    def __init__(self, data: WorldViews):
        self.data, self.world = data, data.world

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        data, world = self.data, self.world
        rng = np.random.default_rng(generator(data.seed, "world views", number).initial_seed())
        noun = world.nouns[int(rng.integers(len(world.nouns)))]
        name = world.known[noun][int(rng.integers(len(world.known[noun])))]
        colour = world.colours[int(rng.integers(len(world.colours)))] if rng.random() < 0.2 else None
        variant = int(rng.integers(world.VARIANTS))

        def view(share: tuple[float, float], side: int) -> Tensor:
            scene = world.scenes[int(rng.integers(len(world.scenes)))]
            return cropped(world.compose(name, scene, rng, colour, variant), rng, share, side)

        return {
            "large": torch.stack([view(self.LARGE, world.size) for _ in range(data.large)]),
            "small": torch.stack([view(self.SMALL, data.small_size) for _ in range(data.small)]),
        }


def cropped(picture: np.ndarray, rng: np.random.Generator, share: tuple[float, float], side: int) -> Tensor:
    """[3, side, side]: a random square of `picture` [S, S, 3], perhaps mirrored, in slightly different light."""
    size = len(picture)
    width = rng.uniform(*share) * size
    left, top = rng.uniform(0, size - width, 2)
    image = Image.fromarray(picture).resize(
        (side, side), Image.Resampling.BICUBIC, box=(left, top, left + width, top + width)
    )
    pixels = to_tensor(image)
    if rng.random() < 0.5:
        pixels = pixels.flip(-1)
    contrast, brightness = float(rng.uniform(0.85, 1.15)), float(rng.uniform(-0.15, 0.15))
    return (pixels * contrast + brightness).clamp(-1, 1)
