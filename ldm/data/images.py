"""Pictures from disk to tensors and back: the project's only conversion of the pixel range."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ldm.errors import UserError
from ldm.files import find, replacing

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
"""Told by a file's content. Pillow knows others, and runs Ghostscript for one that calls itself a .png."""

MAX_PIXELS = 200_000_000
"""A larger picture is refused unread: a small file can unpack to more memory than the machine has."""

_FULL_SCALE = {"I": (255, 65535), "F": (1.0, 255.0, 65535.0)}
"""White in greyscale modes that do not say what white is: the first value that none exceeds."""


def image_files(folder: str | Path) -> list[Path]:
    """The pictures in `folder` (see `files.find`), sorted by name; raises UserError where there are none."""
    folder = find(folder)
    if not folder.is_dir():
        raise UserError(f"image folder {folder}: no such folder")
    files = sorted(
        p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".")
    )
    if not files:
        raise UserError(f"image folder {folder}: no images in it (looked for {', '.join(EXTENSIONS)})")
    return files


def load_image(path: str | Path) -> Image.Image:
    """The picture at `path` upright (EXIF) and in RGB; transparency is laid on white.

    Raises UserError, naming the file, for what is unreadable, cut short, or larger than MAX_PIXELS.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"image {path}: {image.width} x {image.height} pixels are more than {MAX_PIXELS:,}; shrink it"
                )
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # damaged files bring out anything in Pillow's decoders
        raise UserError(f"image {path}: cannot be read ({error}); replace or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _FULL_SCALE or image.mode.startswith("I;16"):  # Pillow would clip these, not scale them
        values = np.asarray(image, dtype=np.float64)
        full = next(
            (f for f in _FULL_SCALE.get(image.mode, (65535,)) if values.max(initial=0) <= f), values.max()
        )
        image = Image.fromarray((values / full * 255.0).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, size: int, place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """A `size` x `size` picture: the shorter side scaled to `size`, the longer one cropped, never squashed.

    place: where the crop lies along x and y, from 0 (left, top) to 1 (right, bottom).
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS, centering=place)


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] fp32 in [-1, 1] of an RGB picture."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32))
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1.0


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit RGB picture of [3, H, W] in [-1, 1]."""
    values = (pixels.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5
    return Image.fromarray(values.round().byte().permute(1, 2, 0).numpy())


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One white sheet with equally large `images` in rows of `columns`."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def save_image(image: Image.Image, path: str | Path, **options) -> None:
    """Write a PNG at `path`, under that name only when complete. `options` go to Pillow."""
    with replacing(Path(path), sync=False) as temporary:
        image.save(temporary, format="PNG", **options)
