"""The parts of a base model, which every format reads and writes."""

from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.formats.families import Family, family_of
from ldm.formats.modules import Network


@dataclass
class Components:
    """The frozen and trainable parts of one latent diffusion model, on the CPU, in evaluation mode."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoders: dict[str, CLIPTextModel]
    """By folder name: `text_encoder`, `text_encoder_2`, in the order in which their states are joined."""
    tokenizers: dict[str, CLIPTokenizer]
    """By folder name: `tokenizer`, `tokenizer_2`, in the order of the text encoders."""
    scheduler_config: dict[str, Any]
    """diffusers' scheduler config as plain values; always has `network_configs.SCHEDULE_KEYS`."""
    source: str
    """The folder, file or hub id given by the user."""
    fingerprint: str
    """Hash of the contents of the model's files."""
    zero_unconditional: bool = False
    """Whether an empty negative prompt means zeros instead of the text encoders' states of an empty text."""

    @property
    def networks(self) -> dict[str, Network]:
        """All networks, by folder name."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def family(self) -> Family:
        """The model family, recognized by the text encoders."""
        return family_of({name: encoder.config.hidden_act for name, encoder in self.text_encoders.items()})
