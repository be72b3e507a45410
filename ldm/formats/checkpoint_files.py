"""The checkpoint files of a run folder: their names, and which of them is the newest whole one."""

import warnings
import zipfile
from pathlib import Path

from ldm.errors import UserError

LAST = "last.ckpt"
BEST = "best.ckpt"


def newest_checkpoint(run: Path) -> Path:
    """The newest full state in a run folder that is whole; damaged ones are passed over with a warning.

    Raises UserError where there is none.
    """
    folder = run / "checkpoints"
    candidates = sorted([*folder.glob("state-*.ckpt"), *folder.glob(LAST)], key=age, reverse=True)
    for path in candidates:
        if is_whole(path):
            return path
        warnings.warn(f"checkpoint {path} is damaged; falling back to the one before", stacklevel=2)
    if candidates:
        raise UserError(f"run {run}: none of its {len(candidates)} checkpoints loads; start a new run")
    raise UserError(f"run {run}: no checkpoint in {folder} yet; start a new run")


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint file is what was written (its checksums hold)."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError):
        return False


def age(path: Path) -> int:
    """When a file was last written, ns."""
    return path.stat().st_mtime_ns
