"""A feature network's own preprocessing, as its `preprocessor_config.json` describes it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ldm.data.images import to_tensor
from ldm.errors import UserError


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalize; every result records these settings.

    resize: shorter side, px, or (height, width) to squash the image. crop: (height, width), or None. resample:
    Pillow's filter number. mean, std: of the channels, for pixels in [0, 1].
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int] | None
    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, path: Path) -> "Preprocessing":
        """Read a file written by the image processors of transformers 4 or 5."""
        try:
            config = json.loads(path.read_text())
            return cls.of(config.get("image_processor", config))
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"feature network: {path} cannot be read ({error!r}); copy the network's own file there"
            ) from error

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Preprocessing":
        """Read the content of such a file."""
        size = config["size"]
        if isinstance(size, int):
            # Old files have one number: the shorter side if a crop follows (CLIP), else both sides (ViT).
            size = (
                {"shortest_edge": size} if config.get("do_center_crop") else {"height": size, "width": size}
            )
        resize = size["shortest_edge"] if "shortest_edge" in size else (size["height"], size["width"])
        crop = None
        if config.get("do_center_crop"):
            side = config["crop_size"]
            crop = (side, side) if isinstance(side, int) else (side["height"], side["width"])
        mean, std = config["image_mean"], config["image_std"]
        return cls(resize, crop, config.get("resample", Image.Resampling.BILINEAR), tuple(mean), tuple(std))

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as [3, H, W] in fp32, normalized."""
        width, height = image.size
        if isinstance(self.resize, int):
            shorter = min(width, height)
            # Integer division as in the library; rounding would move the crop by half a pixel.
            new = (width * self.resize // shorter, height * self.resize // shorter)
        else:
            new = (self.resize[1], self.resize[0])
        image = image.resize(new, self.resample)
        if self.crop:
            top, left = (new[1] - self.crop[0]) // 2, (new[0] - self.crop[1]) // 2
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        pixels = (to_tensor(image) + 1) / 2
        mean, std = (rearrange(torch.tensor(values), "c -> c 1 1") for values in (self.mean, self.std))
        return (pixels - mean) / std

    def facts(self) -> dict[str, object]:
        """The settings as JSON values, with the filter's name."""
        plain = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        return {**plain, "resample": Image.Resampling(self.resample).name.lower()}
