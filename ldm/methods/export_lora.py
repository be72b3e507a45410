"""What a run has learned, as a LoRA for other tools."""

from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.files import replacing
from ldm.formats.lora import Lora, save_lora, save_lora_folder
from ldm.formats.lora_diffusers import DIFFUSERS
from ldm.formats.lora_layout import Layout
from ldm.formats.subject import notes_of, subject_facts
from ldm.methods.adapter_layers import merge_adapters
from ldm.methods.export import SINGLE_FILES, card_path, facts
from ldm.methods.load import LoadedModel
from ldm.methods.lora import extract_lora, lora_of
from ldm.methods.model_card import card_of

EXTRACTED_RANK = 16
"""Of a LoRA that is extracted, where `--rank` does not say."""


def export_lora(
    loaded: LoadedModel, out: Path, dtype: torch.dtype, layout: Layout, rank: int | None = None
) -> str:
    """Write what `loaded` has learned as a LoRA and its card; returns what to tell the user.

    out: a new file in .safetensors, or for diffusers' layout a new folder. rank: as in `learned_lora`.
    Raises UserError for another `out`, and as `learned_lora` does.
    """
    if out.suffix != ".safetensors" and (out.suffix in SINGLE_FILES or layout is not DIFFUSERS):
        raise UserError(f"--out {out}: a LoRA in the layout of {layout.name} is a file in .safetensors")
    lora, told = learned_lora(loaded, rank)
    if out.suffix == ".safetensors":
        save_lora(lora, out, layout, dtype, facts(loaded))
        with replacing(card_path(out)) as path:
            path.write_text(card_of(loaded), encoding="utf-8")
    else:
        notes = notes_of(subject_facts(loaded.subjects, loaded.step), card_of(loaded))
        save_lora_folder(lora, out, dtype, notes)
    return f"{out}{told}"


def learned_lora(loaded: LoadedModel, rank: int | None = None) -> tuple[Lora, str]:
    """The LoRA that a run has trained, or one extracted from what it has trained, and how close that is.

    rank: of an extracted LoRA. Raises UserError where nothing was trained, or `rank` has no meaning.
    """
    trained = lora_of(loaded.model)
    if trained:
        if rank is not None:
            raise UserError("--rank: this run has trained a LoRA, whose rank it keeps; leave --rank out")
        return trained, ""
    if loaded.read_base is None:
        raise UserError("--form: only of a run is it known what was trained; name one with --ckpt")
    rank = rank or EXTRACTED_RANK
    merge_adapters(loaded.model)
    extraction = extract_lora(loaded.model, loaded.read_base(), rank)
    if not extraction.lora:
        raise UserError(
            "--form: no linear or convolutional layer has changed, so there is no LoRA to extract"
        )
    return extraction.lora, (
        f": rank {rank} leaves out {extraction.error:.1%} of the change of its layers (by norm);"
        f" {extraction.outside:.1%} of the whole change (of its squared norm) is in other weights, which no LoRA holds"
    )
