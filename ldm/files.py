"""Where files lie, and how they are written: beside, synced, renamed.

A file or folder is whole or absent, whatever ends its writer; and nothing is written through a link.
"""

import contextlib
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldm.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
"""The repository's folder."""

PROBE_BYTES = 1 << 20
"""A disk with less room than this is full."""


def user_cache(kind: str) -> Path:
    """The folder `dreambooth/<kind>` in `$XDG_CACHE_HOME`, or in `~/.cache`: for what can always be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dreambooth", kind)


def find(path: str | Path) -> Path:
    """`path` as seen from the working folder or, where nothing is there, from the project's folder."""
    path = Path(path)
    # os.path answers False for a name that is too long, where Path.exists raises.
    return path if os.path.exists(path) or not os.path.exists(PROJECT / path) else PROJECT / path


def find_near(path: str | Path, file: Path) -> Path:
    """As `find`, and then as seen from a folder above `file`: where the command that wrote it was perhaps given."""
    found = find(path)
    if os.path.exists(found):
        return found
    return next((folder / path for folder in file.resolve().parents if os.path.exists(folder / path)), found)


def refuse_no_folder(folder: str | Path) -> Path:
    """The folder of images `folder`, as `find` finds it. Raises UserError where there is none."""
    found = find(folder)
    if not os.path.isdir(found):
        raise UserError(f"image folder {found}: no such folder")
    return found


def check_writable(folder: Path) -> None:
    """Raise UserError where nothing could be written to `folder`, or where it would have to be made.

    Makes nothing, so that a mistake that is found later leaves nothing behind.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        what = "a link to nothing" if there.is_symlink() and not there.exists() else "not a folder"
        raise UserError(f"{folder} cannot be written to: {there} is {what}")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error


def is_special(path: Path) -> bool:
    """Whether a pipe, a device or a socket is at `path`: reading one may wait for ever, or never end."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def refuse_links(folder: Path) -> None:
    """Raise UserError where anything below `folder` is neither a file nor a folder, but a link, a pipe or a device.

    For folders that a stranger may have made, before anything in them is read or written: a link would lead
    out of them. `folder` itself may be a link, which is its user's own.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in folders + files):
            if path.is_symlink() and not _is_wandbs_own(path, folder / "wandb"):
                raise UserError(
                    f"{path} is a link, and nothing in a run folder may lead out of it: replace it by what it names"
                )
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: remove it")


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses to write through a link, with an OSError."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_wandbs_own(link: Path, wandb: Path) -> bool:
    """W&B leaves links behind that nothing here opens: to its newest run, and from a run to the log of its server."""
    if link.parent == wandb:
        return link.resolve().is_relative_to(wandb.resolve())
    target = link.readlink().name
    return link.match("wandb/*/logs/debug-core.log") and target.startswith("core-debug-")


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, shared: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` to write to; it becomes `path` when the block ends without an error.

    sync: flush the file and its folder to the disk. False where a power cut may lose the file or leave it
        empty, because it is checked when read, drawn again, or only looked at.
    shared: several processes may write `path` at once, each to a temporary of its own; the last one wins.
        What a killed process leaves is not cleared away by the next, as it is otherwise.

    Makes the folder. A link at `path` is replaced, not followed. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path, shared)
    temporary.unlink(missing_ok=True)  # never write through a link that somebody left there
    try:
        yield temporary
        set_usual_mode(temporary)
        if sync:
            sync_to_disk(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if sync:
        sync_to_disk(path.parent)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to; it takes the place of `folder`, synced, when the block ends well.

    Folders cannot be exchanged in one move: between two renames there is none under the name for a moment.
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
        for path in (*sorted(temporary.rglob("*")), temporary):
            sync_to_disk(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if folder.exists():
        folder.replace(old)
    temporary.replace(folder)
    sync_to_disk(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def temporary_sibling(path: Path, shared: bool = False) -> Path:
    """A name beside `path`, so that a rename stays on one file system; `shared`: never given twice."""
    own = f".{uuid.uuid4().hex[:12]}" if shared else ""
    return path.with_name(f".{path.name}{own}.tmp")


@contextlib.contextmanager
def going_on_without(what: str) -> Iterator[None]:
    """Turn a failed write of something that a run can do without into a warning."""
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
    with contextlib.suppress(PermissionError):  # some file systems keep no permissions
        path.chmod(0o666 & ~umask)


def sync_to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
