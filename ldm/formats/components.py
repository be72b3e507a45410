"""A base model in parts, as every format reads and writes it."""

from dataclasses import dataclass

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")


@dataclass
class Components:
    """The frozen and trainable parts of one latent diffusion model, on the CPU, in evaluation mode."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    unet: UNet2DConditionModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict
    """diffusers' scheduler config as plain values; always holds the keys of `SCHEDULE_KEYS`."""
    source: str
    """What the user asked for: a folder, a file or a hub id."""
    fingerprint: str
    """Hash of the contents of the files it was read from."""
