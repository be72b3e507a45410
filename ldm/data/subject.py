"""The subject's photographs, and the example that sample number n takes from them."""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ldm.concepts import PLACEHOLDER
from ldm.data.batch import SubjectExample
from ldm.data.buckets import Shape, nearest
from ldm.data.captions import LISTS, Caption, CaptionChanges, find_caption, read_lists
from ldm.data.images import (
    image_files,
    load_image,
    mask_path,
    original_size,
    resize_and_crop,
    size_ids,
    to_tensor,
)
from ldm.data.masks import cell_weights, mask_of
from ldm.data.order import shuffled_index
from ldm.errors import printable
from ldm.randomness import generator


class SubjectImages(Dataset[SubjectExample]):
    """Photographs of one subject, decoded once and kept in memory: cropped and resized, unless crops are random.

    Item n is {"view": int, "prompt": str}, a pure function of `seed` and n. A view is an image or its mirror image;
    with `random_crop`, "pixels" [3, H, W] replace it.
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
        changes: CaptionChanges | None = None,
        shapes: Sequence[Shape] | None = None,
        unmasked_weight: float = 1.0,
        templates: Sequence[str] = (),
    ):
        """captions: whether images have their own prompts in text files or a list (`ldm.data.captions`).

        placeholder: replaces [V] in captions. order: key of the shuffled order. shapes: allowed ones in px; None for a
        square of `size`. unmasked_weight: as in `cell_weights`; with 1, masks are not read. templates: prompts of which
        each sample draws one, unless its photograph has a caption.
        """
        self.files = list(files)
        listed = read_lists(self.files[0].parent) if captions else {}
        self.captions = [find_caption(path, listed) if captions else None for path in self.files]
        self.prompts = [
            prompt if caption is None else caption.text.replace(PLACEHOLDER, placeholder)
            for caption in self.captions
        ]
        self.images: list[Image.Image] = []
        self.masks: list[Image.Image | None] = []
        self.shapes: list[Shape] = []
        self.original_sizes: list[tuple[int, int]] = []
        """The photographs' sizes in px."""
        for path in self.files:
            image = load_image(path, size)
            mask = mask_of(path, image.size) if unmasked_weight != 1 else None
            shape = nearest(*image.size, shapes or [(size, size)])
            self.original_sizes.append(original_size(path))
            self.shapes.append(shape)
            self.images.append(image if random_crop else resize_and_crop(image, shape))
            self.masks.append(mask if random_crop or mask is None else resize_and_crop(mask, shape))
        self._warn_of_small()
        self._warn_of_masks(unmasked_weight != 1)
        self.size = size
        self.seed = seed
        self.flip_probability = flip_probability
        self.random_crop = random_crop
        self.placeholder = placeholder
        self.order = order
        self.changes = changes or CaptionChanges()
        self.unmasked_weight = unmasked_weight
        self.templates = list(templates)
        self._warn_of_captions(captions, listed)
        self._warn_of_tags()

    @classmethod
    def from_folder(cls, folder: str | Path, **options: Any) -> "SubjectImages":
        """All pictures in `folder`; `options` as above."""
        return cls(image_files(folder), **options)

    def without_augmentation(self) -> "SubjectImages":
        """The same images without mirroring, random crops and templates; memory is shared."""
        plain = copy.copy(self)
        plain.flip_probability, plain.random_crop, plain.templates = 0.0, False, []
        return plain

    @property
    def nbytes(self) -> int:
        """Memory of the images: 4 bytes per pixel."""
        return sum(4 * image.width * image.height for image in self.images)

    def __getitem__(self, n: int) -> SubjectExample:
        return self.example(n, n)

    def example(
        self, k: int, n: int, shape: Shape | None = None, cells: tuple[int, int] | None = None
    ) -> SubjectExample:
        """The subject's k-th sample of a shape (None: of any), which is the run's sample number n.

        cells: (h, w) of its latent, to include weights of the latent's cells.
        """
        among = [i for i, own in enumerate(self.shapes) if shape in (None, own)]
        index = among[shuffled_index(self.seed, self.order, k, len(among))]
        flip, x, y = torch.rand(3, generator=generator(self.seed, "augmentation", n)).tolist()
        view = 2 * index + (flip < self.flip_probability)
        prompt = self.changes(self.prompt_of(index, n), self.placeholder, self.seed, n)
        place = (x, y) if self.random_crop else (0.5, 0.5)
        example: SubjectExample = {"prompt": prompt, "size_ids": self.size_ids(view, place)}
        if self.random_crop:
            example["pixels"] = self.pixels(view, place)
        else:
            example["view"] = view
        if cells is not None:
            example["cell_weights"] = self.cell_weights(view, cells, place)
        return example

    def prompt_of(self, index: int, n: int) -> str:
        """The prompt of sample number n, which shows photograph `index`, before its parts are changed."""
        if not self.templates or self.captions[index] is not None:
            return self.prompts[index]
        place = torch.randint(len(self.templates), (), generator=generator(self.seed, "template", n))
        return self.templates[int(place)]

    @property
    def views(self) -> range:
        """All views that training may use: even numbers are images, odd ones their mirror images."""
        return range(0, 2 * len(self.images), 1 if self.flip_probability > 0 else 2)

    def shape_of(self, view: int) -> Shape:
        """Width and height of a view in px."""
        return self.shapes[view // 2]

    def pixels(self, view: int, place: tuple[float, float] = (0.5, 0.5)) -> Tensor:
        """One view cropped at `place`, [3, H, W] in [-1, 1]."""
        index, mirrored = divmod(view, 2)
        pixels = to_tensor(resize_and_crop(self.images[index], self.shapes[index], place))
        return pixels.flip(-1) if mirrored else pixels

    def size_ids(self, view: int, place: tuple[float, float] = (0.5, 0.5)) -> list[int]:
        """Original size, crop corner and target size of one view cropped at `place`; see `images.size_ids`."""
        index, mirrored = divmod(view, 2)
        return size_ids(self.original_sizes[index], self.shapes[index], place, bool(mirrored))

    def cell_weights(
        self, view: int, cells: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)
    ) -> Tensor:
        """Weights [1, h, w] of one view's latent cells in the loss; cells: (h, w)."""
        index, mirrored = divmod(view, 2)
        mask = self.masks[index]
        cropped = None if mask is None else resize_and_crop(mask, self.shapes[index], place)
        weights = cell_weights(cropped, *cells, self.unmasked_weight)
        return weights.flip(-1) if mirrored else weights

    def _warn_of_masks(self, are_used: bool) -> None:
        if are_used:
            bare = [path.name for path, mask in zip(self.files, self.masks, strict=True) if mask is None]
            message = "photographs without a mask, whose pixels all count: "
        else:
            bare = [mask_path(path).name for path in self.files if mask_path(path).exists()]
            message = "masks are not used, since data.params.unmasked_weight is 1: "
        if bare:
            warnings.warn(printable(message + ", ".join(bare)), stacklevel=1)

    def _warn_of_captions(self, are_used: bool, listed: Mapping[str, Caption]) -> None:
        if are_used:
            bare = [path.name for path, own in zip(self.files, self.captions, strict=True) if own is None]
            otherwise = "one of the templates" if self.templates else "data.params.prompt"
            missing = [name for name in listed if not (self.files[0].parent / name).is_file()]
            messages = {
                f"photographs without a caption, which take {otherwise}: ": bare,
                "captions are listed for files that do not exist: ": missing,
            }
        else:
            beside = [path.with_suffix(".txt") for path in self.files]
            lists = [self.files[0].parent / name for name in LISTS]
            unused = [path.name for path in (*beside, *lists) if path.exists()]
            messages = {"captions are not used, since data.params.captions is false: ": unused}
        for message, names in messages.items():
            if names:
                warnings.warn(printable(message + ", ".join(names)), stacklevel=1)

    def _warn_of_tags(self) -> None:
        are_used = self.changes.tag_shuffle or self.changes.tag_dropout
        if are_used and not any("," in prompt for prompt in (*self.prompts, *self.templates)):
            warnings.warn(
                "tag_shuffle and tag_dropout change nothing: no prompt has parts between commas", stacklevel=1
            )

    def _warn_of_small(self) -> None:
        small: dict[Shape, list[str]] = {}
        for path, (width, height), shape in zip(self.files, self.original_sizes, self.shapes, strict=True):
            if width < shape[0] or height < shape[1]:
                small.setdefault(shape, []).append(f"{path.name} ({width} x {height})")
        for (width, height), names in small.items():
            size = f"{width} px" if width == height else f"{width} x {height} px"
            message = f"images smaller than the training size of {size} are enlarged and will be blurred: "
            warnings.warn(
                printable(message + ", ".join(names)),
                stacklevel=1,  # always the same place, so that Python shows it once
            )


def split_held_out(files: Sequence[Path], hold_out: int) -> tuple[list[Path], list[Path]]:
    """The images to train on, and the last `hold_out`, which are not used in training."""
    return list(files[: len(files) - hold_out]), list(files[len(files) - hold_out :])
