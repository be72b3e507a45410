"""Images from disk to tensors and back, with the project's only conversion of the pixel range."""

import contextlib
import functools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, features
from torch import Tensor

from ldm.errors import UserError, printable
from ldm.files import find_image_folder, replacing

MAX_PIXELS = 200_000_000
"""Larger pictures are refused unread: a small file could decompress to more than the machine's memory."""

LARGE = 64_000_000
"""Pixels above which `load_image` may read a picture at a fraction of its size."""

MARGIN = 8
"""A picture read at a fraction of its size has sides at least this many times as long as needed."""

DECODED_PIXELS = 100_000_000
"""Pixels of class pictures that are decoded before a run starts, in about a second."""

HEIC_ADVICE = "pip install pillow-heif, or convert to JPEG"
RAW_ADVICE = "develop to JPEG"
SKIPPED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC_ADVICE),
    ".avif": "pip install 'pillow>=11.3', or convert to JPEG",
    ".gif": "convert to PNG",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), RAW_ADVICE),
}
"""How to make a picture readable, by file extension."""

NOT_IMAGES = (".caption", ".csv", ".db", ".ini", ".json", ".jsonl", ".md", ".txt", ".yaml")
"""Extensions of other files beside pictures, which are skipped without a warning."""

_FULL_SCALE = {"I": (255, 65535), "F": (1.0, 255.0, 65535.0)}
"""Possible values of white in greyscale modes that do not define it; the first that no pixel exceeds is used."""


@functools.cache
def readable() -> dict[str, str]:
    """File extension -> Pillow's name of the format, for every supported format.

    A file's content decides its format. Pillow is limited to these, since it would run Ghostscript on an EPS file
    named .png.
    """
    formats = {".bmp": "BMP", ".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF"}
    formats[".webp"] = "WEBP"
    if features.check("avif"):
        formats[".avif"] = "AVIF"
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
        formats.update(dict.fromkeys((".heic", ".heif", ".hif"), "HEIF"))
    return formats


def image_files(folder: str | Path, below: bool = False) -> list[Path]:
    """The pictures in `folder` (see `files.find`), sorted by path; one warning says what is skipped, and why.

    Masks are left out (see `masks_among`). below: include subfolders.
    Raises UserError if there are none, and for a link to a file outside of `folder`.
    """
    folder = find_image_folder(folder)
    found = [
        path
        for path in sorted(folder.rglob("*") if below else folder.iterdir())
        if not (path.name.startswith(".") or path.is_dir() or path.suffix.lower() in NOT_IMAGES)
    ]
    masks = masks_among(found)
    files = [path for path in found if path.suffix.lower() in readable() and path not in masks]
    skipped = _advice(path for path in found if path.suffix.lower() not in readable())
    if not files:
        reason = f"skipped: {skipped}" if skipped else f"looked for {', '.join(readable())}"
        raise UserError(f"image folder {folder}: no images in it ({reason})")
    for path in files:
        refuse_way_out(path, folder)
    if skipped:
        count = len(found) - len(masks)
        message = f"image folder {folder}: {len(files)} of {count} files are used; skipped: {skipped}"
        warnings.warn(
            printable(message),
            stacklevel=1,  # always the same place, so that Python shows it once
        )
    return files


def mask_path(image: Path) -> Path:
    """The path of a picture's mask: `image-mask.png` beside it."""
    return image.with_name(f"{image.stem}-mask.png")


def masks_among(pictures: Iterable[Path]) -> set[Path]:
    """Those of `pictures` that are masks of others, readable or not."""
    known = list(pictures)
    return {mask_path(path) for path in known} & set(known)


def _advice(skipped: Iterable[Path]) -> str:
    """The skipped files and how to make them readable, in one line: "2 .heic (a.heic, b.heic: convert to JPEG)"."""
    by_extension: dict[str, list[str]] = {}
    for path in skipped:
        by_extension.setdefault(path.suffix.lower(), []).append(path.name)
    return "; ".join(
        f"{len(names)} {extension or 'without extension'} ({', '.join(names[:3])}{', ...' if names[3:] else ''}: "
        f"{SKIPPED.get(extension, 'not a supported format')})"
        for extension, names in by_extension.items()
    )


def refuse_way_out(path: Path, folder: Path) -> None:
    """Raise UserError if `path` is not a regular file, or is a link out of `folder`.

    A stranger's folder could link to a file of the user's, which would then be trained on or printed.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path} is a link to a file outside of {folder}: replace it by a copy of the file")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: remove it")


def load_image(path: str | Path, side: int | None = None) -> Image.Image:
    """The picture at `path`, upright (EXIF) and in RGB; transparency becomes white.

    side: length in px that the shorter side will be resized to. Then a picture of more than LARGE pixels may be
        returned at a half, a quarter or an eighth of its size, with a shorter side of at least MARGIN x `side`; a JPEG
        decoder then never produces the other pixels.

    Raises UserError, naming the file, if it is unreadable, truncated, or larger than MAX_PIXELS.
    """
    with _opened(path) as image:
        width, height = image.size
        divisor = _divisor(width, height, side)
        if divisor > 1:
            image.draft(None, (width // divisor, height // divisor))  # only JPEG can do this
            divisor //= round(width / image.width)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        upright = _to_rgb(image)
        return upright.reduce(divisor) if divisor > 1 else upright


def load_alpha(path: str | Path) -> Image.Image | None:
    """The alpha channel of the picture at `path`, upright; None if it is opaque. Raises UserError like `load_image`."""
    with _opened(path) as image:
        if not image.has_transparency_data:
            return None
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        alpha = image.convert("RGBA").getchannel("A")
        return None if alpha.getextrema() == (255, 255) else alpha


def check_images(paths: Iterable[str | Path], pixels: int = DECODED_PIXELS) -> None:
    """Raise UserError, like `load_image`, for unreadable files.

    pixels: the first files, up to this number of pixels, are decoded; of the others only headers are read, so that any
    number of files takes seconds. Damage after such a header is reported when the file is needed.
    """
    for path in paths:
        with _opened(path) as image:
            if pixels > 0:
                pixels -= image.width * image.height
                image.load()


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The picture at `path`, not decoded yet; errors in the block become a UserError that names the file."""
    try:
        with _pixel_limit(), Image.open(path, formats=tuple({*readable().values()})) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(
                    f"image {path}: {width} x {height} pixels are more than {MAX_PIXELS:,}; shrink it"
                )
            yield image
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds of errors for damaged files
        raise UserError(
            f"image {path}: cannot be read ({error}); {_advice_on_content(path) or 'replace or remove it'}"
        ) from error


@contextlib.contextmanager
def _pixel_limit() -> Iterator[None]:
    """In the block, MAX_PIXELS replaces Pillow's limit, which warns of ordinary photographs."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _divisor(width: int, height: int, side: int | None) -> int:
    """The factor to shrink a picture by on loading: 1, 2, 4 or 8."""
    if side is None or width * height <= LARGE:
        return 1
    return next((n for n in (8, 4, 2) if min(width, height) // n >= MARGIN * side), 1)


def _advice_on_content(path: str | Path) -> str | None:
    """Advice for a file whose format differs from its extension; phones export HEIC as .jpg."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(12)
        if start[4:8] == b"ftyp":
            brand = start[8:12].decode("ascii", "replace")
            return (
                f"its content is {'AVIF' if brand.startswith('av') else 'HEIC'}: "
                + SKIPPED[".avif" if brand.startswith("av") else ".heic"]
            )
    return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _FULL_SCALE or image.mode.startswith("I;16"):  # Pillow would clip these, not scale them
        image = _to_8_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A greyscale picture of 16 or 32 bits per pixel, scaled to 8 bits; in strips, since it may be large."""
    values = np.asarray(image)  # [H, W]
    full = next(
        (f for f in _FULL_SCALE.get(image.mode, (65535,)) if values.max(initial=0) <= f), values.max()
    )
    scaled = np.empty(values.shape, np.uint8)
    rows = max(1, 1_000_000 // image.width)
    for start in range(0, image.height, rows):
        strip = values[start : start + rows].astype(np.float64)
        scaled[start : start + rows] = (strip / full * 255.0).round().clip(0, 255)
    return Image.fromarray(scaled)


def resize_and_crop(
    image: Image.Image, size: int | tuple[int, int], place: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """`image` scaled to cover `size`, a side or (width, height), and cropped to it; never squashed.

    place: the crop's position along x and y, from 0 (left, top) to 1 (right, bottom).
    """
    wanted = (size, size) if isinstance(size, int) else size
    return ImageOps.fit(image, wanted, Image.Resampling.LANCZOS, centering=place)


def original_size(path: str | Path) -> tuple[int, int]:
    """Width and height in px of the picture at `path`, upright, before any shrinking by `load_image`."""
    with _pixel_limit(), Image.open(path, formats=tuple({*readable().values()})) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if lies else (image.width, image.height)


def size_ids(
    original: tuple[int, int],
    size: tuple[int, int],
    place: tuple[float, float] = (0.5, 0.5),
    mirrored: bool = False,
) -> list[int]:
    """SDXL's size conditioning for a picture from `resize_and_crop` (Podell et al., arXiv 2307.01952, section 2.2), px.

    Original height and width; pixels cropped at the top and at the left, after scaling; final height and width.
    original, size: (width, height) before and after. mirrored: left and right were swapped afterwards.
    """
    scale = max(new / old for new, old in zip(size, original, strict=True))
    beyond = [round(old * scale) - new for new, old in zip(size, original, strict=True)]
    left, top = (round(length * share) for length, share in zip(beyond, place, strict=True))
    left = beyond[0] - left if mirrored else left
    return [original[1], original[0], top, left, size[1], size[0]]


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as [3, H, W] fp32 in [-1, 1]."""
    return pixels_of(np.asarray(image)).contiguous()


def pixels_of(values: NDArray[np.uint8]) -> Tensor:
    """RGB values [..., H, W, 3] as [..., 3, H, W] fp32 in [-1, 1]; the memory layout stays channels last."""
    pixels = torch.from_numpy(values.astype(np.float32))
    return rearrange(pixels, "... h w c -> ... c h w") / 127.5 - 1.0


def to_image(pixels: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] as an 8-bit RGB picture."""
    values = (pixels.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5
    return Image.fromarray(rearrange(values.round().byte(), "c h w -> h w c").numpy())


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """One white sheet with `images` of equal size in rows of `columns`."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def save_image(image: Image.Image, path: str | Path, **options) -> None:
    """Write a PNG to `path`, atomically. `options` are Pillow's."""
    with replacing(Path(path), sync=False) as temporary:
        image.save(temporary, format="PNG", **options)
