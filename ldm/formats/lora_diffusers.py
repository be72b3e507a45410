"""diffusers' names in a LoRA file, such as `unet.mid_block.attentions.0.proj_in.lora_A.weight`.

They are peft's, after the name of the network's folder. Without an alpha the scale is 1.
"""

from ldm.formats.lora_layout import Layout, in_files

DIFFUSERS = Layout(
    name="diffusers",
    layer=lambda network, layer: f"{network}.{in_files(network, layer)}",
    other_layers=lambda network, layers: {f"{network}.{layer}": layer for layer in layers},
    parts={
        "down": "lora_A.weight",
        "up": "lora_B.weight",
        "magnitude": "lora_magnitude_vector",
        "alpha": "alpha",
    },
    other_parts={
        "lora_magnitude_vector.weight": "magnitude",
        "lora.down.weight": "down",
        "lora.up.weight": "up",
        "lora_linear_layer.down.weight": "down",
        "lora_linear_layer.up.weight": "up",
    },
    writes_alpha=False,
    magnitude_shape=lambda dimensions: (
        (-1,) if dimensions == 2 else (1, -1, *[1] * (dimensions - 2))
    ),  # peft's
)
