"""The subject's photographs, and what sample number n draws from them."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ldm.concepts import PLACEHOLDER
from ldm.data.batch import SubjectExample
from ldm.data.captions import caption_of
from ldm.data.images import (
    image_files,
    load_image,
    original_size,
    resize_and_crop,
    size_ids,
    to_tensor,
)
from ldm.data.order import shuffled_index
from ldm.errors import printable
from ldm.randomness import generator


class SubjectImages(Dataset[SubjectExample]):
    """Photographs of one subject, decoded once and kept in memory: cropped and resized, unless crops are random.

    Item n is {"view": int, "prompt": str}, a pure function of `seed` and n. A view is an image, or its mirror
    image; with `random_crop` no two samples need be alike, and "pixels" [3, size, size] stand in its place.
    """

    def __init__(
        self,
        files: Sequence[Path],
        prompt: str,
        size: int,
        seed: int,
        flip_probability: float = 0.0,
        random_crop: bool = False,
        captions: bool = False,
        placeholder: str = PLACEHOLDER,
        order: str = "subject order",
    ):
        """captions: the text file beside an image that is named like it, if there is one, is its prompt.

        placeholder: what a [V] in a caption is. order: key of the shuffled order.
        """
        self.files = list(files)
        found = [caption_of(path, path.parent) if captions else None for path in self.files]
        self.prompts = [prompt if text is None else text.replace(PLACEHOLDER, placeholder) for text in found]
        self.images, sizes = [], []
        for path in self.files:
            image = load_image(path, size)
            sizes.append(image.size)
            self.images.append(image if random_crop else resize_and_crop(image, size))
        _warn_of_small(self.files, sizes, size)
        self.original_sizes = [original_size(path) for path in self.files]
        self.size = size
        self.seed = seed
        self.flip_probability = flip_probability
        self.random_crop = random_crop
        self.order = order

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "SubjectImages":
        """All pictures of `folder`; `options` as above."""
        return cls(image_files(folder), **options)

    def without_augmentation(self) -> "SubjectImages":
        """The same images, neither mirrored nor cropped at random; both share their memory."""
        plain = copy.copy(self)
        plain.flip_probability, plain.random_crop = 0.0, False
        return plain

    @property
    def nbytes(self) -> int:
        """Memory that the images take: 4 bytes a pixel."""
        return sum(4 * image.width * image.height for image in self.images)

    def __getitem__(self, n: int) -> SubjectExample:
        return self.example(n, n)

    def example(self, k: int, n: int) -> SubjectExample:
        """The subject's k-th sample, which is the run's sample number n."""
        index = shuffled_index(self.seed, self.order, k, len(self.images))
        flip, x, y = torch.rand(3, generator=generator(self.seed, "augmentation", n)).tolist()
        view = 2 * index + (flip < self.flip_probability)
        if self.random_crop:
            place = (x, y)
            return {
                "pixels": self.pixels(view, place),
                "prompt": self.prompts[index],
                "size_ids": self.size_ids(view, place),
            }
        return {"view": view, "prompt": self.prompts[index], "size_ids": self.size_ids(view)}

    @property
    def views(self) -> range:
        """Every view that training can meet: even numbers are images, odd ones their mirror images."""
        return range(0, 2 * len(self.images), 1 if self.flip_probability > 0 else 2)

    def pixels(self, view: int, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """One view cropped at `place`, [3, size, size] in [-1, 1]."""
        index, mirrored = divmod(view, 2)
        pixels = to_tensor(resize_and_crop(self.images[index], self.size, place))
        return pixels.flip(-1) if mirrored else pixels

    def size_ids(self, view: int, place: tuple[float, float] = (0.5, 0.5)) -> list[int]:
        """Original size, crop corner and target size of one view cropped at `place`; see `images.size_ids`."""
        index, mirrored = divmod(view, 2)
        return size_ids(self.original_sizes[index], (self.size, self.size), place, bool(mirrored))


def split_held_out(files: Sequence[Path], hold_out: int) -> tuple[list[Path], list[Path]]:
    """The images to train on, and the last `hold_out` images, which training never sees."""
    return list(files[: len(files) - hold_out]), list(files[len(files) - hold_out :])


def _warn_of_small(files: Sequence[Path], sizes: Sequence[tuple[int, int]], size: int) -> None:
    small = [f"{p.name} ({w} x {h})" for p, (w, h) in zip(files, sizes, strict=True) if min(w, h) < size]
    if small:
        message = f"images smaller than the training size of {size} px are enlarged, and train blurred: "
        warnings.warn(
            printable(message + ", ".join(small)),
            stacklevel=1,  # the same place each time, so that it is said once
        )
