"""Folders of what was trained alone, without the base: a few small files for other tools, and notes."""

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
    """Write tensors in `dtype`, and `notes`, by the names of their files; the folder is whole or not there at all.

    Replaces an earlier folder with such files; raises UserError where `folder` holds anything else, or cannot be
    written.
    """
    if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).is_file() for name in files):
        raise UserError(
            f"{folder} exists and holds no {next(iter(files))}: choose another name, or move it away"
        )
    with told(folder), replacing_folder(folder) as temporary:
        for name, tensors in files.items():
            plain = {key: value.detach().to("cpu", dtype).contiguous() for key, value in tensors.items()}
            save_file(plain, temporary / name, metadata={"format": "pt"})
        for name, text in notes.items():
            (temporary / name).write_text(text, encoding="utf-8")


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Inside, `path` is written; what keeps it from being written is a UserError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError while weights are written
        raise UserError(
            f"{path} cannot be written ({error}): free some space, or choose another place"
        ) from None
