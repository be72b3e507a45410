"""Pictures for pages: as data URIs, small enough that a page with hundreds of them opens at once."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ldm.data.images import load_image

SIDE = 256
"""Larger pictures are shrunk to this many pixels."""


@dataclass(frozen=True)
class Figure:
    """A picture of a page."""

    source: str
    """A data URI."""
    alt: str
    """What it shows, in words."""
    width: int
    height: int
    """Of the picture before it was shrunk, px."""

    @property
    def is_tiny(self) -> bool:
        """Whether it is to be enlarged pixel by pixel."""
        return self.width < SIDE / 2


def figure(image: Image.Image | Path, alt: str, side: int = SIDE) -> Figure:
    """The figure of a picture, or of the file that holds it; shrunk to `side` px where it is larger."""
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
