"""Prior samples of one class, shared by its subjects."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.concepts import Concept
from ldm.data.buckets import Shape
from ldm.data.images import (
    check_images,
    image_files,
    load_image,
    original_size,
    resize_and_crop,
    size_ids,
    to_tensor,
)
from ldm.data.latents import LatentSource
from ldm.data.order import PriorOrder
from ldm.data.prior import NOT_IN_LATENTS, PriorBank
from ldm.data.prior_cache import PriorCache
from ldm.files import user_cache
from ldm.randomness import generator


class ClassPrior:
    """The class of one or several subjects, with samples of the untrained model or pictures from a folder."""

    def __init__(
        self,
        concepts: Mapping[int, Concept],
        shapes: Sequence[Shape],
        seed: int,
        settings: Mapping[str, Any],
    ):
        """concepts: the subjects of this class by their index in the config's list.

        shapes: of the pictures, in px; prior samples have the shape of their batch, so that the denoiser takes both
        halves together, and a square shape does not identify the class.
        settings: as in `ldm.data.prior.PriorSettings`.
        Raises UserError for pictures that cannot be read.
        """
        first = next(iter(concepts.values()))
        self.members = tuple(concepts)
        self.class_word = first.class_word
        self.prompt = first.prior_prompt
        self.shapes, self.seed, self.settings = list(shapes), seed, settings
        self.files = image_files(first.reg_data_root) if first.reg_data_root else []
        check_images(self.files)  # too many to keep in memory
        self.original_sizes = [original_size(path) for path in self.files]
        self.order = PriorOrder(seed, len(self.files) or settings["count"])
        self.banks: list[PriorBank] = []
        """One per shape."""
        self.name = ""
        """Of its folder in the run: prior, or a number and the class word where there are several classes."""

    @property
    def count(self) -> int:
        """The number of different prior samples."""
        return self.order.count

    def size_ids(self, number: int, shape: Shape) -> list[int]:
        """SDXL's size conditioning for sample `number` in `shape` (see `images.size_ids`); drawn ones are uncropped."""
        return size_ids(self.original_sizes[number] if self.files else shape, shape)

    @property
    def bank(self) -> PriorBank:
        """The bank of the first shape, for measurements and sheets of the class."""
        return self.banks[0]

    @property
    def is_drawn(self) -> bool:
        """Whether the untrained model is no longer needed."""
        return bool(self.files) or all(bank.full for bank in self.banks)

    def connect(self, source: LatentSource, folder: Path, images: str, wanted: Sequence[int]) -> None:
        """Create the banks. folder: for their chunks. images: fingerprint of the folder of pictures, if any.

        wanted: how many samples of each shape the run needs.
        """
        self.source, self.name = source, folder.name
        several = len(self.shapes) > 1
        self.banks = [
            self._bank(shape, folder / f"{shape[0]}x{shape[1]}" if several else folder, images, count)
            for shape, count in zip(self.shapes, wanted, strict=True)
        ]

    def _bank(self, shape: Shape, folder: Path, images: str, wanted: int) -> PriorBank:
        source = self.source
        size: int | Shape = shape[0] if shape[0] == shape[1] else shape
        settings: dict[str, object] = {"base": source.fingerprint, "size": size, "seed": self.seed}
        if self.files:
            settings |= {"images": images}
            draw = partial(self._encode_files, shape=shape)
        else:
            settings |= {"prompt": self.prompt}
            settings |= {key: value for key, value in self.settings.items() if key not in NOT_IN_LATENTS}
            draw = partial(self._draw, shape=shape)
        cache = None if self.files else self._cache()
        chunk_size = self.settings["chunk_size"]
        return PriorBank(folder, self.count, chunk_size, settings, draw, cache, source.computed_by, wanted)

    def _cache(self) -> PriorCache | None:
        place = self.settings.get("cache")
        if place is None:
            return None
        folder = user_cache("prior") if place == "auto" else Path(place).expanduser()
        return PriorCache(folder, self.settings["cache_gigabytes"])

    def _draw(self, numbers: Sequence[int], shape: Shape) -> Tensor:
        return self.source.draw_prior(self.prompt, numbers, self.seed, self.settings, shape)

    def _encode_files(self, numbers: Sequence[int], shape: Shape) -> Tensor:
        images = (load_image(self.files[number], max(shape)) for number in numbers)
        pixels = torch.stack([to_tensor(resize_and_crop(image, shape)) for image in images])
        mean, std = self.source.posterior(pixels)
        latent = self.source.latent_shape(shape[1], shape[0])
        noise = [torch.randn(latent, generator=generator(self.seed, "prior posterior", i)) for i in numbers]
        return mean + std * torch.stack(noise).to(mean.device)


def classes_of(
    concepts: Sequence[Concept], shapes: Sequence[Shape], seed: int, settings: Mapping[str, object]
) -> list[ClassPrior]:
    """One prior per class of `concepts`: subjects with the same class prompt and folder of pictures."""
    members: dict[tuple[str, Path | None], dict[int, Concept]] = {}
    for place, concept in enumerate(concepts):
        members.setdefault((concept.prior_prompt, concept.reg_data_root), {})[place] = concept
    return [ClassPrior(those, shapes, seed, settings) for those in members.values()]
