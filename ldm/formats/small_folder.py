"""Folders with only the trained weights, without the base: a few small files for other tools, and notes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ldm.errors import UserError
from ldm.files import replacing_folder


def save_small_folder(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]], dtype: torch.dtype, notes: Mapping[str, str]
) -> None:
    """Write tensors in `dtype`, and `notes`, by file name, atomically.

    Replaces an earlier folder with such files. Raises UserError if `folder` has other content, or cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{folder} exists and has no {next(iter(files))}: choose another name, or move it away"
        )
    with as_user_error(folder), replacing_folder(folder) as temporary:
        for name, tensors in files.items():
            plain = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
            save_file(plain, temporary / name, metadata={"format": "pt"})
        for name, text in notes.items():
            (temporary / name).write_text(text, encoding="utf-8")


@contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """Turn errors of writing `path` in the block into a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError while weights are written
        raise UserError(
            f"{path} cannot be written ({error}): free some space, or choose another place"
        ) from None
