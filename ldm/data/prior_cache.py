"""A folder of prior chunks shared by all runs of a user, so that each is drawn once on a machine.

Several runs may use it at once: chunks are written atomically, and equal names mean equal chunks. If anything goes
wrong with the folder, a run draws the chunk itself.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from ldm.files import replacing

BYTES = 10**9
CHUNK_FILE = re.compile(r"[0-9a-f]{32}\.safetensors|\.[0-9a-f]{32}\.safetensors\..*tmp")
"""Names of the cache's own files: chunks, and what a killed process left of one."""


class PriorCache:
    """Chunk files, named by a hash of everything their latents depend on; the least recently used are removed."""

    def __init__(self, folder: Path, gigabytes: float):
        """gigabytes: maximum size of the folder."""
        self.folder = folder
        self.gigabytes = gigabytes

    def take(self, facts: Mapping[str, object], path: Path) -> None:
        """Copy the chunk of `facts`, if any, to `path`."""
        chunk = self._path(facts)
        with contextlib.suppress(OSError), replacing(path, sync=False) as temporary:
            shutil.copyfile(chunk, temporary)
            os.utime(chunk)  # used now

    def keep(self, facts: Mapping[str, object], path: Path) -> None:
        """Copy `path` to the cache as the chunk of `facts`, and remove old chunks if needed."""
        with contextlib.suppress(OSError):
            with replacing(self._path(facts), sync=False, shared=True) as temporary:
                shutil.copyfile(path, temporary)
            self._make_room()

    def _path(self, facts: Mapping[str, object]) -> Path:
        text = json.dumps(facts, sort_keys=True)
        return self.folder / f"{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.safetensors"

    def _make_room(self) -> None:
        files = []
        for path in self.folder.iterdir():
            if CHUNK_FILE.fullmatch(path.name):  # the folder may hold other files, which are not the cache's
                with contextlib.suppress(FileNotFoundError):  # another run makes room too
                    files.append((path.stat(), path))
        too_many = sum(facts.st_size for facts, _ in files) - self.gigabytes * BYTES
        for facts, path in sorted(files, key=lambda file: file[0].st_mtime):
            if too_many <= 0:
                return
            path.unlink(missing_ok=True)
            too_many -= facts.st_size
