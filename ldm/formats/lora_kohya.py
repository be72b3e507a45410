"""kohya's names in a LoRA file, such as `lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`.

AUTOMATIC1111's web UI and ComfyUI read them too. The scale is alpha / rank; `dora_scale` is DoRA's magnitude.
"""

from collections.abc import Sequence
from dataclasses import replace

from ldm.formats.compvis_names import UNET_PREFIX, unet_names
from ldm.formats.lora_layout import Layout, in_files

NETWORKS = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
"""Folder of a network -> its name here, for models with two text encoders."""
LAYERS_PER_BLOCK = 2
"""In all published UNets of Stable Diffusion."""


def layer_name(network: str, layer: str) -> str:
    """`lora_`, the network and the layer, with underscores instead of dots."""
    return f"lora_{NETWORKS[network]}_{in_files(network, layer).replace('.', '_')}"


def layer_name_of_one_encoder(network: str, layer: str) -> str:
    """The same for a model with one text encoder, SD 1.x or 2.x, which kohya and the web UI name `te`."""
    return layer_name(network, layer).replace("lora_te1_", "lora_te_", 1)


def other_names(network: str, layers: Sequence[str]) -> dict[str, str]:
    """`lora_te_` for the text encoder of SD 1.x and 2.x; CompVis' block names, which kohya uses for SDXL's UNet."""
    if network == "text_encoder":
        return {layer_name_of_one_encoder(network, layer): layer for layer in layers}
    if network != "unet":
        return {}
    compvis = unet_names([f"{layer}.weight" for layer in layers], LAYERS_PER_BLOCK)
    names = {key.removesuffix(".weight"): their.removesuffix(".weight") for key, their in compvis.items()}
    return {
        f"lora_unet_{their.removeprefix(UNET_PREFIX).replace('.', '_')}": layer
        for layer, their in names.items()
    }


KOHYA = Layout(
    name="kohya",
    layer=layer_name,
    other_layers=other_names,
    parts={"down": "lora_down.weight", "up": "lora_up.weight", "magnitude": "dora_scale", "alpha": "alpha"},
    other_parts={},
    writes_alpha=True,
    magnitude_shape=lambda dimensions: (-1, *[1] * (dimensions - 1)),
)
KOHYA_OF_ONE_ENCODER = replace(KOHYA, layer=layer_name_of_one_encoder)
