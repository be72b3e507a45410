"""Whole bases of random weights, for measuring size and speed."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.formats.components import Components
from ldm.formats.diffusers_folder import load_tokenizer, save_diffusers_folder
from ldm.formats.network_configs import network_config, read_scheduler_config


def write_random_base(configs: Path, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a base with random weights in diffusers' layout; returns `folder`. Its images are noise.

    configs: component configs and tokenizer, such as configs/stable-diffusion/v1.
    """

    def config(component: str) -> dict[str, Any]:
        return network_config(configs / component, component)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        components = Components(
            vae=AutoencoderKL.from_config(config("vae")),
            text_encoder=CLIPTextModel(CLIPTextConfig(**config("text_encoder"))),
            unet=UNet2DConditionModel.from_config(config("unet")),
            tokenizer=load_tokenizer(configs),
            scheduler_config=read_scheduler_config(configs),
            source="random",
            fingerprint="0" * 32,
        )
    return save_diffusers_folder(components, folder, dtype)
