"""Names in CompVis' single files for the parameters of diffusers and transformers.

Each function maps the keys of one network, `{our key: their key}`. The maps are one to one, so they serve reading and
writing. Only the numbering of blocks depends on the network's size.

Sources: module names of CompVis/stable-diffusion and Stability-AI/generative-models (`openaimodel.py`, `model.py`)
and of mlfoundations/open_clip (`transformer.py`); checked in the tests against diffusers' own conversion.
"""

import re
from collections.abc import Iterable

from ldm.formats.families import TextEncoder

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

UNET_ENDS = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
}
UNET_RESNET = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
VAE_ATTENTION = {
    "group_norm.": "norm.",
    "to_q.": "q.",
    "to_k.": "k.",
    "to_v.": "v.",
    "to_out.0.": "proj_out.",
}
OPENCLIP_LAYER = {
    "layer_norm1.": "ln_1.",
    "layer_norm2.": "ln_2.",
    "self_attn.": "attn.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
OPENCLIP_ENDS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}


def renamed_start(key: str, names: dict[str, str]) -> str:
    """`key` with the first of `names` that it starts with replaced."""
    for ours, theirs in names.items():
        if key.startswith(ours):
            return theirs + key.removeprefix(ours)
    return key


def unet_names(keys: Iterable[str], layers_per_block: int) -> dict[str, str]:
    """The UNet. CompVis numbers its layers consecutively: 0 is the first convolution; a downsampler is a layer of its
    own, but an upsampler is part of the last layer of its resolution."""
    keys = list(keys)
    attending = {key.split(".attentions.")[0] for key in keys if ".attentions." in key}
    return {key: UNET_PREFIX + unet_name(key, layers_per_block, attending) for key in keys}


def unet_name(key: str, layers: int, attending: set[str]) -> str:
    """The CompVis name of one UNet key; `attending`: blocks with attention, such as "down_blocks.0"."""
    found = re.fullmatch(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", key)
    if not found:
        return renamed_start(key, UNET_ENDS)
    side, block, kind, layer, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        rest = renamed_start(rest, UNET_RESNET)
    if side == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * layer}.{rest}"
    first = block * (layers + 1) + (1 if side == "down" else 0)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers}.0.{rest.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        place = 2 if f"up_blocks.{block}" in attending else 1
        return f"output_blocks.{first + layers}.{place}.{rest}"
    stem = "input_blocks" if side == "down" else "output_blocks"
    return f"{stem}.{first + layer}.{1 if kind == 'attentions' else 0}.{rest}"


def vae_names(keys: Iterable[str], blocks: int) -> dict[str, str]:
    """The VAE. CompVis numbers the decoder's blocks from fine to coarse, diffusers the other way."""
    return {key: VAE_PREFIX + vae_name(key, blocks) for key in keys}


def vae_name(key: str, blocks: int) -> str:
    """The CompVis name of one VAE key."""
    found = re.fullmatch(r"(encoder|decoder)\.(down|mid|up)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", key)
    if not found:
        return key.replace("conv_norm_out.", "norm_out.")
    half, side, block, kind, layer, rest = (
        found[1],
        found[2],
        int(found[3] or 0),
        found[4],
        int(found[5]),
        found[6],
    )
    rest = rest.replace("conv_shortcut.", "nin_shortcut.")
    if kind == "attentions":
        return f"{half}.mid.attn_{layer + 1}.{renamed_start(rest, VAE_ATTENTION)}"
    if side == "mid":
        return f"{half}.mid.block_{layer + 1}.{rest}"
    number = blocks - 1 - block if side == "up" else block
    part = f"block.{layer}" if kind == "resnets" else f"{side}sample"
    return f"{half}.{side}.{number}.{part}.{rest}"


def text_names(keys: Iterable[str], encoder: TextEncoder) -> dict[str, str]:
    """A text encoder in OpenCLIP's or transformers' layout; query, key and value are separate (see `join_qkv`)."""
    return {key: encoder.keys + (openclip_name(key) if encoder.open_clip else key) for key in keys}


def openclip_name(key: str) -> str:
    """The OpenCLIP name of one text-encoder key."""
    found = re.fullmatch(r"encoder\.layers\.(\d+)\.(.*)", key)
    if found:
        return f"transformer.resblocks.{found[1]}.{renamed_start(found[2], OPENCLIP_LAYER)}"
    return OPENCLIP_ENDS.get(key, key)
