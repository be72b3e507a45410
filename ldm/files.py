"""Files and folders that are whole or not there, whatever ends the process that writes them."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path


def temporary_sibling(path: Path) -> Path:
    """A name beside `path`, so that a rename stays on one file system.

    It is the same each time: what a killed process left there is replaced by the next, and never piles up.
    """
    return path.with_name(f".{path.name}.tmp")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to; it takes the place of `folder`, synced, when the block ends well.

    Folders cannot be exchanged in one move: for a moment between two renames there is none under the name.
    """
    temporary, old = temporary_sibling(folder), folder.with_name(f".{folder.name}.old.tmp")
    if old.exists() and not folder.exists():  # killed between the renames
        old.replace(folder)
    for leftover in (temporary, old):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                set_usual_mode(path)
        sync_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        folder.replace(old)
    temporary.replace(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to; it becomes `path`, synced, when the block ends without an error."""
    temporary = temporary_sibling(path)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        set_usual_mode(temporary)
        sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


@contextlib.contextmanager
def going_on_without(what: str) -> Iterator[None]:
    """Make a warning of a failed write of something that a run can do without."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{what} cannot be written ({error.strerror}); the run goes on without it", stacklevel=3
        )


def set_usual_mode(path: Path) -> None:
    """Give a file the permissions that open() gives: safetensors makes its files readable by their owner alone."""
    umask = os.umask(0o077)  # it cannot be read without being set
    os.umask(umask)
    with contextlib.suppress(PermissionError):  # a file system that keeps no permissions
        path.chmod(0o666 & ~umask)


def sync_tree(folder: Path) -> None:
    """Bring a folder and everything in it to the disk."""
    for path in (*sorted(folder.rglob("*")), folder):
        sync(path)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
