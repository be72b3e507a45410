"""Facts in a PNG about how it was drawn, as texts that image viewers can show."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.data.images import readable
from ldm.errors import UserError


def png_info(facts: Mapping[str, object]) -> PngInfo:
    """`facts` for Pillow's `pnginfo`, except those that are None."""
    info = PngInfo()
    for key, value in facts.items():
        if value is not None:
            info.add_itxt(key, str(value))
    return info


def png_text(path: Path) -> dict[str, str]:
    """The texts in a picture, by name. Raises UserError for a file that is not a picture."""
    try:
        with Image.open(path, formats=tuple({*readable().values()})) as image:
            return {str(key): value for key, value in image.info.items() if isinstance(value, str)}
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"image {path}: cannot be read ({error}); replace or remove it") from error
