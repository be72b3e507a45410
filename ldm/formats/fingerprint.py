"""Identifies a base model by a hash of its files' contents.

Hashing gigabytes takes seconds, so each file's hash is cached in the user's cache folder, keyed by the file's
path, size and modification time. Nothing is written beside the model.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ldm.files import replacing, user_cache

HASH_BYTES = 16


def files_fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """One hash, 32 hex digits, of files given as (role, path); the paths themselves do not matter."""
    lines = sorted(f"{role} {file_hash(path)}" for role, path in files)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=HASH_BYTES).hexdigest()


def file_hash(path: Path) -> str:
    """Hash of a file's content, read once per (path, size, modification time)."""
    path = path.resolve()
    facts = path.stat()
    version = f"{path}|{facts.st_size}|{facts.st_mtime_ns}"
    key = hashlib.blake2b(os.fsencode(version), digest_size=HASH_BYTES).hexdigest()
    cached = user_cache("fingerprints") / key
    with contextlib.suppress(OSError, ValueError):
        digest = cached.read_text(encoding="ascii")
        if len(digest) == 2 * HASH_BYTES:
            return digest
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()
    remember(cached, digest)
    return digest


def remember(path: Path, digest: str) -> None:
    """Write `digest` to `path` atomically; an unwritable cache only costs time."""
    with contextlib.suppress(OSError), replacing(path, sync=False, shared=True) as temporary:
        temporary.write_text(digest, encoding="ascii")
