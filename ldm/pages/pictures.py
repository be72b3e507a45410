"""Pictures as data URIs, small enough for pages with hundreds of them."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.data.images import load_image

SIDE = 256
"""Larger pictures are scaled down to this side, px."""


@dataclass(frozen=True)
class Figure:
    """A picture on a page."""

    source: str
    """A data URI."""
    alt: str
    """Alternative text."""
    width: int
    height: int
    """Size of the original, px."""

    @property
    def is_tiny(self) -> bool:
        """Whether to enlarge it without interpolation."""
        return self.width < SIDE / 2


def figure(image: Image.Image | Path, alt: str, side: int = SIDE) -> Figure:
    """The figure of a picture or its file, scaled down to `side` px if larger."""
    image = load_image(image) if isinstance(image, Path) else image
    width, height = image.size
    buffer = io.BytesIO()
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=88)
        kind = "jpeg"
    else:
        image.save(buffer, "PNG")
        kind = "png"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Figure(source, alt, width, height)
