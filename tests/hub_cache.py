"""The hub's cache on disk, as a download leaves it: blobs, links to them in a snapshot, and the branch's commit."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

COMMIT = "0" * 39 + "1"


def put_in_cache(cache: Path, repository: str, folder: Path, renamed: Iterable[tuple[str, str]] = ()) -> Path:
    """Put the files of `folder` into `cache` as the branch main of `repository`; returns the snapshot.

    renamed: pairs of an ending and its replacement, for the names of files.
    """
    own = cache / f"models--{repository.replace('/', '--')}"
    (own / "refs").mkdir(parents=True)
    (own / "refs" / "main").write_text(COMMIT)
    (own / "blobs").mkdir()
    snapshot = own / "snapshots" / COMMIT
    for path in (path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        for ending, other in renamed:
            if name.endswith(ending):
                name = name.removesuffix(ending) + other
        content = path.read_bytes()
        blob = own / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
