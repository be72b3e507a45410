"""The base model a run starts from: a diffusers folder, a hub id, or a single file."""

import re
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.formats import diffusers_folder, hub
from ldm.formats.components import Components
from ldm.formats.fingerprint import files_fingerprint

__all__ = ["Components", "fingerprint", "load_base"]

SINGLE_FILES = (".ckpt", ".safetensors", ".pt", ".pth", ".bin")


def load_base(
    base: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    use_ema: bool = True,
    vae: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Components:
    """Read a base model onto the CPU in `dtype`, every key and shape accounted for.

    base: a folder in diffusers' layout, or a hub id (`owner/name`).
    revision: branch, tag or commit of a hub id.
    variant: the middle of the weight files' names in a diffusers folder, such as "fp16".
    vae: a folder or file with a first stage to use in place of the base's own.

    Only hub ids use the network. Raises `UserError` for whatever a user can mend.
    """
    path = locate(base, revision, variant)
    parts = diffusers_folder.read_diffusers_folder(path, variant=variant, dtype=dtype)
    if vae is not None:
        parts["vae"] = diffusers_folder.read_vae(locate(vae, None, variant), variant=variant, dtype=dtype)
    identity = fingerprint(base, revision=revision, variant=variant, use_ema=use_ema, vae=vae)
    return Components(**parts, source=str(base), fingerprint=identity)


def fingerprint(
    base: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    use_ema: bool = True,
    vae: str | Path | None = None,
) -> str:
    """Hash (32 hex digits) of the contents that `load_base` reads with the same arguments.

    It does not depend on where the files lie. Raises `UserError` where files are missing.
    """
    path = locate(base, revision, variant)
    files = diffusers_folder.files_of(path, variant)
    return files_fingerprint(files)


def locate(base: str | Path, revision: str | None, variant: str | None) -> Path:
    """The local folder or file of `base`; a hub id is fetched first."""
    path = Path(base).expanduser()
    if path.exists():
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        return hub.fetch(str(base), revision, variant)
    raise UserError(
        f"base model {base} not found: give a diffusers folder, a single file or a hub id (owner/name)"
    )
