"""Labelled sheets of pictures that record where each picture is, so that a page can show them one by one."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.data.images import load_image, save_image
from ldm.data.png import png_info, png_text

FACT = "sheet"
"""Name of the text in the PNG with the pictures' positions."""

MARGIN, GAP = 14, 4
"""Pixels around a sheet, and between its pictures."""
INK, SOFT = "#182230", "#667085"
SMALLEST = 160
"""Smaller pictures are enlarged to at least this width in px, by repeating pixels."""


@dataclass(frozen=True)
class Cell:
    """One picture of a sheet, with its position."""

    title: str
    """A prompt or a file name."""
    seed: int | None
    left: int
    top: int
    width: int
    """In the sheet, px."""
    height: int
    scale: int
    """Enlargement of the picture, by repeating pixels."""


@dataclass(frozen=True)
class Strip:
    """Pictures under one title, in rows of `columns`."""

    title: str
    pictures: Sequence[Image.Image]
    labels: Sequence[str] = ()
    seeds: Sequence[int] = ()


class _Layout:
    """Positions of texts and pictures, row by row."""

    def __init__(self, title: str):
        self.texts = [(MARGIN, MARGIN, title, INK, 20)]
        self.pictures: list[tuple[Image.Image, Cell]] = []
        self.y = MARGIN + 34

    def add(self, strip: Strip, columns: int, smallest: int) -> None:
        """Add the title of `strip`, with its pictures below."""
        self.texts.append((MARGIN, self.y, strip.title, INK, 15))
        self.y += 24
        for first in range(0, len(strip.pictures), columns):
            self._add_row(strip, range(first, min(first + columns, len(strip.pictures))), smallest)
        self.y += 8

    def _add_row(self, strip: Strip, row: range, smallest: int) -> None:
        x, lowest = MARGIN, self.y
        for k in row:
            picture, seed = strip.pictures[k], strip.seeds[k] if strip.seeds else None
            scale = max(1, -(-smallest // picture.width))
            name = strip.labels[k] if strip.labels else strip.title
            cell = Cell(name, seed, x, self.y, picture.width * scale, picture.height * scale, scale)
            self.pictures.append((picture, cell))
            x, lowest = x + cell.width + GAP, max(lowest, self.y + cell.height)
            if strip.labels or strip.seeds:
                label = strip.labels[k] if strip.labels else f"seed {seed}"
                self.texts.append((cell.left, self.y + cell.height + 2, label, SOFT, 12))
        self.y = lowest + GAP + (18 if strip.labels or strip.seeds else 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of everything."""
        ends = [x + round(_font(size).getlength(text)) for x, _, text, _, size in self.texts]
        ends += [cell.left + cell.width for _, cell in self.pictures]
        return max(ends) + MARGIN, self.y + MARGIN - 8


def draw_sheet(
    title: str, strips: Sequence[Strip], columns: int, smallest: int = SMALLEST
) -> tuple[Image.Image, list[Cell]]:
    """A white sheet with a title and `strips` of pictures below each other, and the pictures' positions.

    smallest: width in px below which pictures are enlarged.
    """
    layout = _Layout(title)
    for strip in strips:
        layout.add(strip, columns, smallest)
    sheet = Image.new("RGB", layout.size, "white")
    draw = ImageDraw.Draw(sheet)
    for x, y, text, colour, size in layout.texts:
        draw.text((x, y), text, fill=colour, font=_font(size))
    for picture, cell in layout.pictures:
        enlarged = picture.resize((cell.width, cell.height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (cell.left, cell.top))
    return sheet, [cell for _, cell in layout.pictures]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's default font."""
    return ImageFont.load_default(size)


def save_sheet(sheet: Image.Image, cells: Sequence[Cell], path: Path, **facts: object) -> None:
    """Write a sheet as a PNG with its pictures' positions and `facts`. Raises OSError."""
    about = {FACT: json.dumps([asdict(cell) for cell in cells]), **facts}
    save_image(sheet, path, pnginfo=png_info(about))


def read_sheet(path: Path) -> tuple[Image.Image, list[Cell], Mapping[str, str]]:
    """A sheet, its pictures' positions (empty if it does not have them), and the other facts in it.

    Raises UserError for a file that is not a picture. Positions outside of it are left out.
    """
    image, facts = load_image(path), png_text(path)
    try:
        cells = [Cell(**cell) for cell in json.loads(facts.get(FACT, "[]"))]
    except (ValueError, TypeError, RecursionError):
        cells = []
    return image, [cell for cell in cells if _lies_in(image, cell)], facts


def _lies_in(image: Image.Image, cell: Cell) -> bool:
    numbers = (cell.left, cell.top, cell.width, cell.height, cell.scale)
    if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(cell.title, str):
        return False
    fits = cell.left + cell.width <= image.width and cell.top + cell.height <= image.height
    return fits and 0 < cell.scale <= min(cell.width, cell.height)


def picture_of(sheet: Image.Image, cell: Cell) -> Image.Image:
    """The picture of `cell`, pixel for pixel as drawn."""
    part = sheet.crop((cell.left, cell.top, cell.left + cell.width, cell.top + cell.height))
    size = (cell.width // cell.scale, cell.height // cell.scale)
    return part if cell.scale == 1 else part.resize(size, Image.Resampling.NEAREST)
