"""Pictures from disk to tensors and back, with the project's only conversion of the pixel range."""

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
"""Larger pictures are refused unread: a small file can unpack to more memory than the machine has."""

LARGE = 64_000_000
"""Pixels of a picture above which `load_image` may read it at a fraction of its size."""

MARGIN = 8
"""A picture that is read at a fraction of its size keeps at least this many pixels a side for each one needed."""

DECODED_PIXELS = 100_000_000
"""Pixels of a folder of class pictures that are decoded before a run starts: about a second."""

HEIC_ADVICE = "pip install pillow-heif, or convert to JPEG"
RAW_ADVICE = "develop to JPEG"
SKIPPED = {
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC_ADVICE),
    ".avif": "pip install 'pillow>=11.3', or convert to JPEG",
    ".gif": "convert to PNG",
    **dict.fromkeys((".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2"), RAW_ADVICE),
}
"""How to make a picture readable, by its extension."""

UNTOLD = (".caption", ".csv", ".db", ".ini", ".json", ".jsonl", ".md", ".txt", ".yaml")
"""Extensions of files that lie beside pictures and are skipped without a warning."""

_FULL_SCALE = {"I": (255, 65535), "F": (1.0, 255.0, 65535.0)}
"""Possible values of white in greyscale modes that do not define it; the first that no pixel exceeds counts."""


@functools.cache
def readable() -> dict[str, str]:
    """File extension -> Pillow's name of the format, for every format that can be read here.

    A file's content decides its format. The formats are listed because Pillow knows more, and would run
    Ghostscript on an EPS file that is called .png.
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

    Masks of pictures are none (see `masks_among`).
    below: those in its subfolders too.
    Raises UserError where there are none, and for a link to a file outside of `folder`.
    """
    folder = find_image_folder(folder)
    found = [
        path
        for path in sorted(folder.rglob("*") if below else folder.iterdir())
        if not (path.name.startswith(".") or path.is_dir() or path.suffix.lower() in UNTOLD)
    ]
    pictures = [path for path in found if path.suffix.lower() in readable()]
    masks = masks_among(pictures)
    files = [path for path in pictures if path not in masks]
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
            stacklevel=1,  # the same place each time, so that it is said once
        )
    return files


def mask_path(image: Path) -> Path:
    """Where the mask of a picture lies: `image-mask.png` beside it."""
    return image.with_name(f"{image.stem}-mask.png")


def masks_among(pictures: Iterable[Path]) -> set[Path]:
    """Those of `pictures` that are the masks of others."""
    known = list(pictures)
    return {mask_path(path) for path in known} & set(known)


def _advice(skipped: Iterable[Path]) -> str:
    """What is skipped and what to do about it, in one line: "2 .heic (a.heic, b.heic: convert to JPEG)"."""
    by_extension: dict[str, list[str]] = {}
    for path in skipped:
        by_extension.setdefault(path.suffix.lower(), []).append(path.name)
    return "; ".join(
        f"{len(names)} {extension or 'without extension'} ({', '.join(names[:3])}{', ...' if names[3:] else ''}: "
        f"{SKIPPED.get(extension, 'not a format that is read')})"
        for extension, names in by_extension.items()
    )


def refuse_way_out(path: Path, folder: Path) -> None:
    """Raise UserError where `path` is not a regular file, or is a link out of `folder`.

    A folder from a stranger could name a file of the user's, which would then be trained on or printed.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} is a link to a file outside of {folder}: put a copy of the file in its place"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a regular file: remove it")


def load_image(path: str | Path, side: int | None = None) -> Image.Image:
    """The picture at `path` upright (EXIF) and in RGB; transparency is laid on white.

    side: length in px that the picture's shorter side will be resized to. With it, a picture of more than
        LARGE pixels may come at a half, a quarter or an eighth of its size, its shorter side at least
        MARGIN x `side`; a JPEG decoder then never produces the other pixels.

    Raises UserError, naming the file, where it is unreadable, cut short, or larger than MAX_PIXELS.
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
    """The alpha channel of the picture at `path`, upright; None where all of it is opaque. Raises as `load_image`."""
    with _opened(path) as image:
        if not image.has_transparency_data:
            return None
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        alpha = image.convert("RGBA").getchannel("A")
        return None if alpha.getextrema() == (255, 255) else alpha


def check_images(paths: Iterable[str | Path], pixels: int = DECODED_PIXELS) -> None:
    """Raise UserError, as `load_image` does, for what cannot be read.

    pixels: the first files of so many are read whole, and of the others the headers alone: seconds for any number of
    files. One that is damaged behind its header is then told when it is needed.
    """
    for path in paths:
        with _opened(path) as image:
            if pixels > 0:
                pixels -= image.width * image.height
                image.load()


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """The picture at `path`, not decoded yet; what goes wrong inside is a UserError that names the file."""
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
    except Exception as error:  # damaged files bring out anything in Pillow's decoders
        raise UserError(
            f"image {path}: cannot be read ({error}); {_advice_on_content(path) or 'replace or remove it'}"
        ) from error


@contextlib.contextmanager
def _pixel_limit() -> Iterator[None]:
    """Inside, MAX_PIXELS stands in place of Pillow's own limit, which warns of ordinary photographs."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _divisor(width: int, height: int, side: int | None) -> int:
    """By how much to shrink a picture on load: 1, 2, 4 or 8."""
    if side is None or width * height <= LARGE:
        return 1
    return next((n for n in (8, 4, 2) if min(width, height) // n >= MARGIN * side), 1)


def _advice_on_content(path: str | Path) -> str | None:
    """What to do with a file that has another format than its name says; phones export HEIC as .jpg."""
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
    """A greyscale picture of 16 or 32 bits a pixel, scaled to 8; in strips, since it may be large."""
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
    """A picture of `size`, a side or (width, height): scaled until it covers that and cropped, never squashed.

    place: where the crop lies along x and y, from 0 (left, top) to 1 (right, bottom).
    """
    wanted = (size, size) if isinstance(size, int) else size
    return ImageOps.fit(image, wanted, Image.Resampling.LANCZOS, centering=place)


def original_size(path: str | Path) -> tuple[int, int]:
    """Width and height in px of the picture at `path`, upright, whatever `load_image` shrinks it to."""
    with _pixel_limit(), Image.open(path, formats=tuple({*readable().values()})) as image:
        lies = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
        return (image.height, image.width) if lies else (image.width, image.height)


def size_ids(
    original: tuple[int, int],
    size: tuple[int, int],
    place: tuple[float, float] = (0.5, 0.5),
    mirrored: bool = False,
) -> list[int]:
    """What SDXL is told of a picture that `resize_and_crop` made (Podell et al., arXiv 2307.01952, section 2.2), in px.

    Original height and width; how much was cut off at the top and at the left, after scaling; height and width of
    what is left. original, size: widths and heights before and after. mirrored: afterwards, left and right.
    """
    scale = max(new / old for new, old in zip(size, original, strict=True))
    beyond = [round(old * scale) - new for new, old in zip(size, original, strict=True)]
    left, top = (round(length * share) for length, share in zip(beyond, place, strict=True))
    left = beyond[0] - left if mirrored else left
    return [original[1], original[0], top, left, size[1], size[0]]


def to_tensor(image: Image.Image) -> Tensor:
    """[3, H, W] fp32 in [-1, 1] of an RGB picture."""
    return pixels_of(np.asarray(image)).contiguous()


def pixels_of(values: NDArray[np.uint8]) -> Tensor:
    """[..., 3, H, W] fp32 in [-1, 1] of RGB values [..., H, W, 3]; the memory stays channels last."""
    pixels = torch.from_numpy(values.astype(np.float32))
    return rearrange(pixels, "... h w c -> ... c h w") / 127.5 - 1.0


def to_image(pixels: Tensor) -> Image.Image:
    """The 8-bit RGB picture of [3, H, W] in [-1, 1]."""
    values = (pixels.detach().float().cpu().clamp(-1, 1) + 1.0) * 127.5
    return Image.fromarray(rearrange(values.round().byte(), "c h w -> h w c").numpy())


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
