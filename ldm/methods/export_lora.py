"""Exports what a run has learned as a LoRA."""

from pathlib import Path

import torch

from ldm.errors import UserError, say
from ldm.files import replacing
from ldm.formats.lora import Lora, save_lora, save_lora_folder
from ldm.formats.lora_diffusers import DIFFUSERS
from ldm.formats.lora_kohya import KOHYA, KOHYA_OF_ONE_ENCODER
from ldm.formats.lora_layout import Layout
from ldm.formats.subject import notes_of, subject_facts
from ldm.methods.adapter_layers import merge_adapters
from ldm.methods.export import SINGLE_FILES, card_path, facts
from ldm.methods.load import LoadedModel
from ldm.methods.lora import extract_lora, lora_of
from ldm.methods.model_card import card_of
from ldm.models.new_tokens import ExtendedEmbedding

EXTRACTED_RANK = 16
"""Default rank of an extracted LoRA."""


def export_lora(
    loaded: LoadedModel, out: Path, dtype: torch.dtype, layout: Layout, rank: int | None = None
) -> str:
    """Write what `loaded` has learned as a LoRA with its card; returns a message.

    out: a new .safetensors file, or in diffusers' layout a new folder. rank: as in `learned_lora`.
    Raises UserError for another `out`, and like `learned_lora`.
    """
    if out.suffix != ".safetensors" and (out.suffix in SINGLE_FILES or layout is not DIFFUSERS):
        raise UserError(f"--out {out}: a LoRA in the layout of {layout.name} must be a .safetensors file")
    lora, message = learned_lora(loaded, rank)
    if layout is KOHYA and len(loaded.model.text_encoders) == 1:
        layout = KOHYA_OF_ONE_ENCODER
    if out.suffix == ".safetensors":
        save_lora(lora, out, layout, dtype, facts(loaded))
        with replacing(card_path(out)) as path:
            path.write_text(card_of(loaded), encoding="utf-8")
    else:
        notes = notes_of(subject_facts(loaded.subjects, loaded.step, loaded.model.clip_skip), card_of(loaded))
        save_lora_folder(lora, out, dtype, notes)
    encoders = loaded.model.text_encoders.values()
    if any(isinstance(encoder.get_input_embeddings(), ExtendedEmbedding) for encoder in encoders):
        say(f"warning: {out} does not hold the run's new tokens: add the files of its model/ with --embeds")
    return f"{out}{message}"


def learned_lora(loaded: LoadedModel, rank: int | None = None) -> tuple[Lora, str]:
    """The LoRA trained by a run, or one extracted from its changes with a message on its accuracy.

    rank: of an extracted LoRA. Raises UserError if nothing was trained, or the run has a LoRA of its own rank.
    """
    trained = lora_of(loaded.model)
    if trained:
        if rank is not None:
            raise UserError("--rank: this run trained a LoRA, which keeps its rank; leave --rank out")
        return trained, ""
    if loaded.read_base is None:
        raise UserError("--form: a LoRA can only be extracted from a run; name one with --ckpt")
    rank = rank or EXTRACTED_RANK
    merge_adapters(loaded.model)
    extraction = extract_lora(loaded.model, loaded.read_base(), rank)
    if not extraction.lora:
        raise UserError(
            "--form: no linear or convolutional layer has changed, so there is no LoRA to extract"
        )
    return extraction.lora, (
        f": rank {rank} omits {extraction.error:.1%} of the change of its layers (by norm);"
        f" {extraction.outside:.1%} of the whole change (by squared norm) is in weights that a LoRA cannot represent"
    )
