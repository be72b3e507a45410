"""Captions: text files beside images."""

from pathlib import Path

from ldm.data.images import refuse_way_out
from ldm.errors import UserError

MAX_BYTES = 65_536
"""A text encoder reads some 75 words, so a longer file is not a caption."""


def caption_of(image: Path, folder: Path) -> str | None:
    """Text of the .txt file named like `image`, a file in or below `folder`; None where there is none.

    Raises UserError for a file that is empty, not UTF-8, too long, unreadable, or a link out of `folder`.
    """
    path = image.with_suffix(".txt")
    if not path.exists() and not path.is_symlink():
        return None
    refuse_way_out(path, folder)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(
                f"caption {path}: longer than {MAX_BYTES:,} bytes; it would be cut at the text window"
            )
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"caption {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"caption {path}: cannot be read ({error.strerror})") from None
    if not text:
        raise UserError(f"caption {path}: it is empty; write a prompt into it, or remove it")
    return text
