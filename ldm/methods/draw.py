"""Draws and saves pictures that can be drawn again from the facts in their PNGs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image

from ldm.data.images import save_image, to_image
from ldm.data.png import png_info
from ldm.devices import DTYPES
from ldm.diffusion.sampling import Sampling
from ldm.errors import DISK_IS_FULL, UserError
from ldm.methods.load import LoadedModel

Item = TypeVar("Item")


@dataclass(frozen=True)
class Picture:
    """One picture to draw."""

    prompt: str
    """With identifiers instead of placeholders."""
    seed: int
    noise_seed: int | None = None
    """Start from this seed's noise; None for the picture's own seed."""


@dataclass(frozen=True)
class Drawing:
    """How a model draws pictures: everything except prompts and seeds."""

    loaded: LoadedModel
    sampling: Sampling
    height: int
    """Pixels."""
    width: int
    about: Mapping[str, object]
    """Facts about the model to store in pictures, such as its path."""

    def draw(
        self, pictures: Sequence[Picture], on_step: Callable[[], object] | None = None
    ) -> list[Image.Image]:
        """The `pictures`, drawn together."""
        pixels = self.loaded.model.images(
            [picture.prompt for picture in pictures],
            [picture.seed for picture in pictures],
            self.sampling,
            self.height,
            self.width,
            noise_seeds=[picture.noise_seed for picture in pictures],
            on_step=on_step,
        )
        return [to_image(picture) for picture in pixels]

    def facts(self, picture: Picture) -> dict[str, str]:
        """Everything needed to draw `picture` again, by setting."""
        unet = self.loaded.model.unet
        precision = next(name for name, dtype in DTYPES.items() if dtype == unet.dtype)
        facts = {**asdict(picture), **asdict(self.sampling), "height": self.height, "width": self.width}
        facts |= {"precision": precision, "weights": self.loaded.weights, **self.about}
        return {key: str(value) for key, value in facts.items() if value is not None}


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """`items` in groups of `size`; the last may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def save_picture(image: Image.Image, path: Path, facts: Mapping[str, object]) -> None:
    """Write a PNG with `facts`. Raises UserError if it cannot be written."""
    try:
        save_image(image, path, pnginfo=png_info(facts))
    except OSError as error:
        remedy = "free some space" if error.errno in DISK_IS_FULL else "choose another folder"
        raise UserError(
            f"{path} cannot be written ({error.strerror}): {remedy}; the previous pictures are saved"
        ) from error


def next_path(folder: Path, pattern: str) -> Path:
    """The path in `folder` with the number after the highest existing one; pattern: such as "{:05d}.png"."""
    head, tail = pattern.split("{", 1)[0], pattern.rsplit("}", 1)[1]
    names = [path.name for path in folder.glob(f"{head}*{tail}")]
    numbers = [int(n) for name in names if (n := name[len(head) : len(name) - len(tail)]).isdecimal()]
    return folder / pattern.format(max(numbers, default=-1) + 1)
