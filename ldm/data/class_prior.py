"""Prior samples of one class, which the subjects of that class share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.concepts import Concept
from ldm.data.images import (
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
    """The class of one or several subjects: samples that the untrained model draws of it, or a folder's pictures."""

    def __init__(self, concepts: Mapping[int, Concept], size: int, seed: int, settings: Mapping[str, Any]):
        """concepts: the subjects of this class by their place in the config's list; they agree in all but the subject.

        size: side of the pictures in px. settings: those of `ldm.data.prior.PriorSettings`.
        Raises UserError for pictures that cannot be read.
        """
        first = next(iter(concepts.values()))
        self.members = tuple(concepts)
        self.class_word = first.class_word
        self.prompt = first.prior_prompt
        self.size, self.seed, self.settings = size, seed, settings
        self.files = image_files(first.reg_data_root) if first.reg_data_root else []
        for path in self.files:
            # Too many to keep in memory, but an unreadable one must be reported before the run starts.
            load_image(path, size)
        self.original_sizes = [original_size(path) for path in self.files]
        self.order = PriorOrder(seed, len(self.files) or settings["count"])
        self.bank: PriorBank

    @property
    def count(self) -> int:
        """How many different prior samples there are."""
        return self.order.count

    def size_ids(self, number: int) -> list[int]:
        """What SDXL is told of sample `number`, see `images.size_ids`: nothing is cut from what is drawn."""
        size = (self.size, self.size)
        return size_ids(self.original_sizes[number] if self.files else size, size)

    @property
    def is_drawn(self) -> bool:
        """Whether the untrained model will not be asked any more."""
        return bool(self.files) or self.bank.full

    def connect(self, source: LatentSource, folder: Path, images: str, wanted: int) -> None:
        """Make the bank. folder: for its chunks. images: fingerprint of the pictures, for a folder of them.

        wanted: how many of the samples the run will ask for.
        """
        self.source = source
        settings = {"base": source.fingerprint, "size": self.size, "seed": self.seed}
        if self.files:
            settings |= {"images": images}
            draw = self._encode_files
        else:
            settings |= {"prompt": self.prompt}
            settings |= {key: value for key, value in self.settings.items() if key not in NOT_IN_LATENTS}
            draw = self._draw
        cache = None if self.files else self._cache()
        chunk_size = self.settings["chunk_size"]
        self.bank = PriorBank(
            folder, self.count, chunk_size, settings, draw, cache, source.computed_by, wanted
        )

    def _cache(self) -> PriorCache | None:
        place = self.settings.get("cache")
        if place is None:
            return None
        folder = user_cache("prior") if place == "auto" else Path(place).expanduser()
        return PriorCache(folder, self.settings["cache_gigabytes"])

    def _draw(self, numbers: Sequence[int]) -> Tensor:
        return self.source.draw_prior(self.prompt, numbers, self.seed, self.settings)

    def _encode_files(self, numbers: Sequence[int]) -> Tensor:
        images = [load_image(self.files[number], self.size) for number in numbers]
        pixels = torch.stack([to_tensor(resize_and_crop(image, self.size)) for image in images])
        mean, std = self.source.posterior(pixels)
        shape = self.source.latent_shape
        noise = [torch.randn(shape, generator=generator(self.seed, "prior posterior", i)) for i in numbers]
        return mean + std * torch.stack(noise).to(mean.device)


def classes_of(
    concepts: Sequence[Concept], size: int, seed: int, settings: Mapping[str, Any]
) -> list[ClassPrior]:
    """One prior for each class among `concepts`: subjects of equal class prompts, or of one folder of pictures."""
    members: dict[tuple[str, Path | None], dict[int, Concept]] = {}
    for place, concept in enumerate(concepts):
        members.setdefault((concept.prior_prompt, concept.reg_data_root), {})[place] = concept
    return [ClassPrior(those, size, seed, settings) for those in members.values()]
