"""Finding files, and writing them atomically: under a temporary name, synced, then renamed.

A file or folder is complete or absent, however its writer dies, and nothing is written through a link.
"""

import contextlib
import json
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from ldm.errors import UserError

PROJECT = Path(__file__).resolve().parents[1]
"""The repository's root."""

PROBE_BYTES = 1 << 20
"""A disk with less free space than this counts as full."""


def user_cache(kind: str) -> Path:
    """The folder `dreambooth/<kind>` in `$XDG_CACHE_HOME` or `~/.cache`, for files that can always be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dreambooth", kind)


def find(path: str | Path) -> Path:
    """`path` relative to the working folder or, if nothing is there, to the project's folder."""
    path = Path(path)
    # os.path.exists returns False for a name that is too long; Path.exists raises.
    return path if os.path.exists(path) or not os.path.exists(PROJECT / path) else PROJECT / path


def find_near(path: str | Path, file: Path) -> Path:
    """Like `find`, then relative to each folder above `file`: its writer may have run in one of them."""
    found = find(path)
    if os.path.exists(found):
        return found
    return next((folder / path for folder in file.resolve().parents if os.path.exists(folder / path)), found)


def find_image_folder(folder: str | Path) -> Path:
    """`folder` as `find` finds it. Raises UserError if it is not a folder."""
    found = find(folder)
    if not os.path.isdir(found):
        raise UserError(f"image folder {found}: no such folder")
    return found


def check_writable(folder: Path) -> None:
    """Raise UserError if `folder` could not be written to, or could not be created.

    Creates nothing, so that an error found later leaves nothing behind.
    """
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    if not there.is_dir():
        what = "a broken link" if there.is_symlink() and not there.exists() else "not a folder"
        raise UserError(f"{folder} cannot be written to: {there} is {what}")
    try:
        with tempfile.TemporaryFile(dir=there) as probe:
            probe.write(bytes(PROBE_BYTES))
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose another folder") from error


def check_writable_file(path: Path) -> None:
    """Raise UserError if no file `path` could be written, or replaced. Creates nothing."""
    if path.is_dir():
        raise UserError(f"{path} cannot be written to: it is a folder; name a file in it")
    check_writable(path.absolute().parent)


def is_special(path: Path) -> bool:
    """Whether `path` is a pipe, a device or a socket: reading one may block, or never end."""
    return os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))


def refuse_links(folder: Path) -> None:
    """Raise UserError if `folder` contains a link, a pipe or a device, at any depth.

    For folders that a stranger may have made, before anything in them is read or written: a link could lead
    out of them. `folder` itself may be a link: the user chose it.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in folders + files):
            if path.is_symlink() and not _is_wandbs_own(path, folder / "wandb"):
                raise UserError(
                    f"{path} is a link, and a run folder may not contain links: replace it by its target"
                )
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: remove it")


def no_link(path: str, flags: int) -> int:
    """An `opener` for `open` that refuses to write through a link, with an OSError."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _is_wandbs_own(link: Path, wandb: Path) -> bool:
    """Whether W&B made the link: it links to its newest run and to its server's log, and nothing here opens those."""
    if link.parent == wandb:
        return link.resolve().is_relative_to(wandb.resolve())
    target = link.readlink().name
    return link.match("wandb/*/logs/debug-core.log") and target.startswith("core-debug-")


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True, shared: bool = False) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` when the block ends without an error.

    sync: flush the file and its folder to disk. False for files that a power cut may lose or truncate, because
        they are checked when read, drawn again, or only looked at.
    shared: several processes may write `path` at once, each to its own temporary file; the last one wins. A
        killed process then leaves its temporary file behind; otherwise the next writer removes it.

    Creates the folder. A link at `path` is replaced, not followed. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_sibling(path, shared)
    temporary.unlink(missing_ok=True)  # never write through a link that someone left there
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


def write_json(path: Path, content: object, **options: bool) -> None:
    """Write `content` as JSON, as `replacing` does; options: its own."""
    with replacing(path, **options) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to write to; synced and renamed to `folder` when the block ends without an error.

    Folders cannot be swapped atomically: between two renames, nothing has the name for a moment.
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
    """A temporary name beside `path`, so on the same file system; `shared`: unique to the call."""
    own = f".{uuid.uuid4().hex[:12]}" if shared else ""
    return path.with_name(f".{path.name}{own}.tmp")


@contextlib.contextmanager
def warn_if_unwritable(what: str) -> Iterator[None]:
    """Turn an OSError into a warning, for writes that a run can do without."""
    try:
        yield
    except OSError as error:
        warnings.warn(
            f"{what} cannot be written ({error.strerror}); the run continues without it", stacklevel=3
        )


def set_usual_mode(path: Path) -> None:
    """Give a file the permissions that open() would: safetensors' files are readable by their owner only."""
    umask = os.umask(0o077)  # cannot be read without setting it
    os.umask(umask)
    with contextlib.suppress(PermissionError):  # some file systems have no permissions
        path.chmod(0o666 & ~umask)


def sync_to_disk(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
