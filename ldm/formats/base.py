"""The base model a run starts from: a diffusers folder, a hub id, or a single file."""

import os
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ldm.errors import UserError
from ldm.files import find
from ldm.formats import diffusers_folder, hub, single_file
from ldm.formats.components import Components
from ldm.formats.families import Family, family_of
from ldm.formats.fingerprint import files_fingerprint
from ldm.formats.network_configs import refuse_other_latents, spelt_prediction_type
from ldm.formats.safe_loading import refuse_unreadable_name
from ldm.formats.zero_terminal_snr import with_zero_terminal_snr

__all__ = ["Components", "fingerprint", "load_base", "load_vae"]


def load_base(
    base: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    use_ema: bool = True,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    zero_terminal_snr: bool = False,
    configs: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
) -> Components:
    """Read a base model in `dtype` (onto the CPU, or `modules.weights_on`) and check every key and shape.

    base: a folder in diffusers' layout, a hub id (`owner/name`), or a single CompVis/A1111 file.
    revision: branch, tag or commit of a hub id.
    variant: the middle of the weight files' names in a diffusers folder, such as "fp16".
    use_ema: use the moving average of the UNet if a single file has one.
    vae: a folder, hub id or file with a VAE to use instead of the base's own.
    prediction_type: a `PredictionType`, if the base does not say it or is wrong (`single_file`).
    zero_terminal_snr: rescale the noise schedule so that it ends in pure noise.
    configs: component configs and tokenizer for a single file that is not of Stable Diffusion's size.

    Only hub ids need the internet. Raises `UserError` for everything a user can fix.
    """
    path = locate(base, revision, variant)
    if path.is_dir():
        parts = diffusers_folder.read_diffusers_folder(
            path, variant=variant, with_vae=vae is None, dtype=dtype
        )
        if prediction_type is not None:
            parts["scheduler_config"]["prediction_type"] = spelt_prediction_type(prediction_type, path)
    else:
        parts = single_file.read_single_file(
            path,
            configs=Path(configs) if configs else None,
            prediction_type=prediction_type,
            use_ema=use_ema,
            with_vae=vae is None,
            dtype=dtype,
        )
    if vae is not None:
        texts = {name: encoder.config.hidden_act for name, encoder in parts["text_encoders"].items()}
        parts["vae"] = load_vae(vae, family_of(texts), variant=variant, dtype=dtype)
        refuse_other_latents(parts["vae"].config, parts["unet"].config, f"vae {vae}")
    identity = fingerprint(base, revision=revision, variant=variant, use_ema=use_ema, vae=vae)
    zero_terminal_snr = parts.pop("zero_terminal_snr", False) or zero_terminal_snr
    components = Components(**parts, source=str(base), fingerprint=identity)
    return with_zero_terminal_snr(components) if zero_terminal_snr else components


def load_vae(
    vae: str | Path, family: Family, *, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> AutoencoderKL:
    """A VAE, alone or from a whole model: a folder, hub id or single file.

    family: of the model that uses it. variant: of the model's files; the VAE's own need not have it.
    """
    path, own_variant = locate_vae(vae, variant)
    if path.is_dir():
        return diffusers_folder.read_vae(path, variant=own_variant, dtype=dtype)
    return single_file.read_vae_file(path, family=family, dtype=dtype)


def fingerprint(
    base: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    use_ema: bool = True,
    vae: str | Path | None = None,
) -> str:
    """Hash (32 hex digits) of the contents that `load_base` reads with the same arguments.

    It does not depend on the files' location. Raises `UserError` if files are missing.
    """
    path = locate(base, revision, variant)
    if path.is_dir():
        files = diffusers_folder.files_of(path, variant, with_vae=vae is None)
    else:
        files = [("single file" if use_ema else "single file without moving average", path)]
    if vae is not None:
        files += vae_files(vae, variant)
    return files_fingerprint(files)


def vae_files(vae: str | Path, variant: str | None = None) -> list[tuple[str, Path]]:
    """The files that `load_vae` reads: pairs of role and path."""
    path, own_variant = locate_vae(vae, variant)
    return diffusers_folder.vae_files(path, own_variant) if path.is_dir() else [("vae", path)]


def locate_vae(vae: str | Path, variant: str | None) -> tuple[Path, str | None]:
    """The folder or file of a VAE, and the variant of its weights: `variant` if it has that, else None."""
    path = locate(vae, None, variant)
    if variant is None or path.is_file() or diffusers_folder.has_vae(path, variant):
        return path, variant
    return locate(vae, None, None), None


def locate(base: str | Path, revision: str | None, variant: str | None) -> Path:
    """The local folder or file of `base` (see `files.find`); a hub id is downloaded first."""
    path = find(os.path.expanduser(base))
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        refuse_unreadable_name(path)
        return path
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(base)):
        return hub.fetch(str(base), revision, variant)
    raise UserError(
        f"base model {base} not found: give a diffusers folder, a single file or a hub id (owner/name)"
    )
