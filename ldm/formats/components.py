"""A base model in parts, as every format reads and writes it."""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer


@dataclass
class Components:
    """The frozen and trainable parts of one latent diffusion model, on the CPU, in evaluation mode."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    """diffusers' scheduler config as plain values; always has `network_configs.SCHEDULE_KEYS`."""
    source: str
    """What the user asked for: a folder, a file or a hub id."""
    fingerprint: str
    """Hash of the contents of the files it was read from."""
