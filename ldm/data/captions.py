"""Captions: text files beside images, or one list in their folder; and random changes of captions."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.data.images import refuse_way_out
from ldm.errors import UserError
from ldm.randomness import generator
from ldm.values import Probability

MAX_BYTES = 65_536
"""A text encoder reads about 75 words, so a longer file is not a caption."""

LISTS = ("captions.jsonl", "metadata.jsonl")
"""One {"file_name", "text"} per line, as in the image folders of Hugging Face's `datasets`."""

TEXTS = ("prompt", "text", "caption")
"""Possible keys of the text in a list."""

LIST_BYTES = 100_000_000
"""Maximum size of a list."""


@dataclass(frozen=True)
class Caption:
    """A photograph's own prompt."""

    text: str
    source: Path
    """The file with the caption."""


@dataclass(frozen=True)
class CaptionChanges:
    """Random changes of each sample's prompt; `configs/dreambooth.yaml` explains each setting."""

    tag_shuffle: bool = False
    tag_dropout: Probability = 0.0
    caption_dropout: Probability = 0.0

    def __call__(self, prompt: str, placeholder: str, seed: int, n: int) -> str:
        """The prompt of sample number n, from `prompt`.

        Tags, the parts between commas, that contain the placeholder are never dropped and come first when the others
        are shuffled; if none does, the first tag takes their place.
        """
        if not (self.tag_shuffle or self.tag_dropout or self.caption_dropout):
            return prompt
        source = generator(seed, "caption", n)
        if float(torch.rand((), generator=source)) < self.caption_dropout:
            return ""
        tags = [tag.strip() for tag in prompt.split(",") if tag.strip()]
        is_fixed = [placeholder in tag for tag in tags]
        if tags and not any(is_fixed):
            is_fixed[0] = True
        draws = torch.rand(len(tags), generator=source).tolist()
        kept = [place for place, fixed in enumerate(is_fixed) if fixed or draws[place] >= self.tag_dropout]
        if self.tag_shuffle:
            order = torch.randperm(len(tags), generator=source).tolist()
            kept.sort(key=lambda place: (not is_fixed[place], place if is_fixed[place] else order[place]))
        elif len(kept) == len(tags):
            return prompt
        return ", ".join(tags[place] for place in kept)


def find_caption(image: Path, listed: dict[str, Caption]) -> Caption | None:
    """The caption of `image`: the text file beside it, or else its line in `listed` (see `read_lists`)."""
    text = caption_of(image, image.parent)
    return listed.get(image.name) if text is None else Caption(text, image.with_suffix(".txt"))


def read_lists(folder: Path) -> dict[str, Caption]:
    """The captions in a folder's lists, by image name; the first list wins."""
    found: dict[str, Caption] = {}
    for name in reversed(LISTS):
        path = folder / name
        found |= {image: Caption(text, path) for image, text in read_list(path).items()}
    return found


def read_list(path: Path) -> dict[str, str]:
    """File name -> text of a list of captions; empty if there is none.

    Raises UserError for a wrong line, an empty text, and a file that is too large or a link out of its folder.
    """
    if not path.exists() and not path.is_symlink():
        return {}
    refuse_way_out(path, path.parent)
    if path.stat().st_size > LIST_BYTES:
        raise UserError(f"{path}: more than {LIST_BYTES:,} bytes, too many for a list of captions")
    try:
        # Not splitlines, which also splits at characters that JSON allows in a text.
        lines = [line for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        rows = [json.loads(line) for line in lines]
        return {str(row["file_name"]): _text_of(row) for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: every line must be {{'file_name': ..., 'prompt': ...}} ({error!r})"
        ) from error


def _text_of(row: dict[str, object]) -> str:
    text = next((row[key] for key in TEXTS if row.get(key)), None)
    if not isinstance(text, str) or not text.strip():
        raise KeyError("prompt")
    return text.strip()


def caption_of(image: Path, folder: Path) -> str | None:
    """The text of the .txt file of the same name beside `image`, which is in or below `folder`; None without a file.

    Raises UserError if the file is empty, not UTF-8, too long, unreadable, or a link out of `folder`.
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
                f"caption {path}: longer than {MAX_BYTES:,} bytes; it would be truncated to the text window"
            )
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"caption {path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"caption {path}: cannot be read ({error.strerror})") from None
    if not text:
        raise UserError(f"caption {path}: it is empty; write a prompt into it, or remove it")
    return text
