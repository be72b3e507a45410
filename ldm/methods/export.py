"""Exports a trained model: to a folder in diffusers' layout, or a single file in CompVis' layout."""

from pathlib import Path

import torch
from torch import nn

from ldm.diffusion.sampling import ZERO_TERMINAL_SNR
from ldm.errors import UserError
from ldm.files import check_writable, replacing
from ldm.formats.components import Components
from ldm.formats.single_file import marks_of, published_family, save_single_file
from ldm.formats.subject import subject_facts
from ldm.methods.adapter_layers import merge_adapters
from ldm.methods.load import LoadedModel
from ldm.methods.model_card import card_of

SINGLE_FILES = (".safetensors", ".ckpt")
WEIGHTS = (".bin", ".pt", ".pth", ".safetensor")
"""Endings that look like a file of weights, and are not written."""


def card_path(out: Path) -> Path:
    """The path of the model card for `out`: in the folder, or beside the file as `<name>.md`."""
    return out.with_name(f"{out.name}.md") if out.suffix in SINGLE_FILES else out / "README.md"


def refuse_taken(out: Path) -> None:
    """Raise UserError if `out` or its card exists, or cannot be written."""
    if out.suffix in WEIGHTS:
        raise UserError(
            f"--out {out}: a single file ends in {' or '.join(SINGLE_FILES)}, and a folder in no such ending"
        )
    for path in (out, card_path(out)):
        if path.exists() or path.is_symlink():
            raise UserError(f"--out: {path} exists already; choose another name, or move it away")
    check_writable(out.absolute().parent)


def export(loaded: LoadedModel, out: Path, dtype: torch.dtype) -> None:
    """Write the model and its card; `out` is a new folder, or a new .safetensors or .ckpt file.

    Adapters are merged into the model's weights, which are then cast to `dtype` in place: with a copy, Stable Diffusion
    XL would take 21 GB instead of 14. Raises UserError for a single file that other tools could not read.
    """
    merge_adapters(loaded.model)
    components = loaded.model.components()
    if out.suffix in SINGLE_FILES:
        refuse_other_sizes(components, out)
    for network in components.networks.values():
        nn.Module.to(network, dtype)
    if out.suffix in SINGLE_FILES:
        save_single_file(components, out, dtype, facts(loaded))
        with replacing(card_path(out)) as path:
            path.write_text(card_of(loaded), encoding="utf-8")
    else:
        loaded.model.save(
            out, dtype, subject_facts(loaded.subjects, loaded.step, loaded.model.clip_skip), card_of(loaded)
        )


def refuse_other_sizes(components: Components, out: Path) -> None:
    """Raise UserError for models of other sizes or schedules, which other tools cannot see in a single file."""
    if published_family(components) is None:
        raise UserError(
            f"--out {out}: this model does not have Stable Diffusion's sizes, and a single file cannot say so;"
            f" a folder can: --out {out.with_suffix('')}"
        )
    if components.scheduler_config.get(ZERO_TERMINAL_SNR) and not marks_of(components):
        raise UserError(
            f"--out {out}: this model's noise schedule ends in noise alone, which only SDXL's single files can say; a"
            f" folder can: --out {out.with_suffix('')}"
        )


def facts(loaded: LoadedModel) -> dict[str, str]:
    """Metadata about the subjects for a safetensors file, with the keys of ModelSpec 1.0.0."""
    if not loaded.subjects:
        return {}
    phrases = ", ".join(subject.phrase for subject in loaded.subjects)
    return {"modelspec.title": phrases, "modelspec.trigger_phrase": phrases}
