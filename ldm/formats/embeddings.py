"""Files of textual inversion: the vectors of new tokens."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ldm.errors import UserError
from ldm.formats.safe_loading import load_checkpoint, refuse_odd_numbers

EMBEDDINGS_FILE = "learned_embeds.safetensors"
"""The file that diffusers' `load_textual_inversion` looks for in a folder."""
OF_SDXL = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""Keys of a file with the embeddings of two text encoders, as Stable Diffusion XL's tools have them."""

Vectors = dict[str, Tensor]
"""Of one token: by text encoder, [n, D]."""


def read_embeddings(path: Path, widths: Mapping[str, int]) -> tuple[str, Vectors]:
    """The token of the file `path`, if it says one, and its vectors for each text encoder. widths: D by text encoder.

    Reads what this project and diffusers write (`{token: vectors}`), AUTOMATIC1111's `.pt` (`string_to_param`), and the
    layouts that say no token: `emb_params`, and `clip_l` with `clip_g` for Stable Diffusion XL.
    Raises UserError for a file of another kind, or of another model.
    """
    content = load_checkpoint(path)
    token, found = _of_layout(content, path, list(widths))
    if set(found) != set(widths):
        raise UserError(
            f"{path} is for {len(found)} text encoder(s), and this model has {len(widths)}: it is another model's"
        )
    vectors = {}
    for name, width in widths.items():
        refuse_odd_numbers(found[name], path)
        value = found[name].detach().float()
        vectors[name] = value[None] if value.ndim == 1 else value
        if vectors[name].ndim != 2 or vectors[name].shape[1] != width or not len(vectors[name]):
            raise UserError(
                f"{path} has vectors of shape {list(value.shape)}, and this model's {name} takes {width} numbers: it is"
                " another model's"
            )
    if len({len(value) for value in vectors.values()}) > 1:
        raise UserError(f"{path} has another number of vectors for each text encoder: use another file")
    return token, vectors


def _of_layout(content: Mapping[str, object], path: Path, encoders: list[str]) -> tuple[str, Vectors]:
    """The token's text or "", and what the file holds by text encoder."""
    named = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    of_webui = content.get("string_to_param")
    if isinstance(of_webui, dict) and isinstance(of_webui.get("*"), Tensor):
        name = content.get("name")
        return name if isinstance(name, str) else "", {encoders[0]: of_webui["*"]}
    if set(named) == set(OF_SDXL.values()):
        return "", {encoder: named[key] for encoder, key in OF_SDXL.items()}
    if set(named) == {"emb_params"}:
        return "", {encoders[0]: named["emb_params"]}
    if len(named) == 1 == len(content):
        token, vectors = named.popitem()
        return token, {encoders[0]: vectors}
    raise UserError(
        f"{path} is no file of textual inversion: diffusers' {EMBEDDINGS_FILE} and AUTOMATIC1111's .pt are read"
    )
