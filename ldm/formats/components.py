"""A base model in parts, as every format reads and writes it."""

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
    """By the names of their folders: `text_encoder`, `text_encoder_2`, in the order that their states are joined."""
    tokenizers: dict[str, CLIPTokenizer]
    """By the names of their folders: `tokenizer`, `tokenizer_2`, in the order of the text encoders."""
    scheduler_config: dict[str, Any]
    """diffusers' scheduler config as plain values; always has `network_configs.SCHEDULE_KEYS`."""
    source: str
    """What the user asked for: a folder, a file or a hub id."""
    fingerprint: str
    """Hash of the contents of the files it was read from."""
    zero_unconditional: bool = False
    """Whether an empty negative prompt conditions on zeros, not on the text encoders' states of an empty text."""

    @property
    def networks(self) -> dict[str, Network]:
        """All networks, by the names of their folders."""
        return {"unet": self.unet, "vae": self.vae, **self.text_encoders}

    @property
    def family(self) -> Family:
        """The kind of model, as its text encoders show it."""
        return family_of({name: encoder.config.hidden_act for name, encoder in self.text_encoders.items()})
