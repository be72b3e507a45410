"""Stable Diffusion 1.x and 2.x scaled down: the same layers, prediction type and tokenizer, few channels."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.formats import diffusers_folder
from ldm.formats.components import Components
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import read_tokenizer
from ldm.formats.network_configs import read_scheduler_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "stable-diffusion"
SMALLER = {
    "v1": {
        "unet": {"block_out_channels": [32, 64, 96, 96], "cross_attention_dim": 24},
        "text_encoder": {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2},
    },
    "v2": {
        "unet": {
            "block_out_channels": [32, 64, 96, 96],
            "cross_attention_dim": 16,
            "attention_head_dim": [2, 4, 6, 6],
        },
        "text_encoder": {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2},
    },
}
SMALL_VAE = {"block_out_channels": [32, 64, 96, 96], "sample_size": 64}


@pytest.fixture(autouse=True, scope="module")
def tokenizers_are_read_once():
    """Read CLIP's vocabulary once per module that imports this fixture: it takes longer than a small model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diffusers_folder, "load_tokenizer", functools.cache(diffusers_folder.load_tokenizer))
        yield


def small_configs(folder: Path, version: str) -> Path:
    """Component configs and tokenizer of `version` ("v1", "v2") with few channels, in diffusers' layout."""
    shutil.copytree(CONFIGS / version, folder)
    changes = {**SMALLER[version], "vae": SMALL_VAE}
    changes["unet"] = {**changes["unet"], "sample_size": 8}
    for name, change in changes.items():
        path = folder / name / "config.json"
        path.write_text(json.dumps({**read_json(path), **change}))
    return folder


def small_sd(configs: Path, seed: int = 0) -> Components:
    """Random networks of the sizes in `configs`; no two parameters are equal, not even those that start as 0 or 1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_config(read_json(configs / "unet" / "config.json")).eval()
        vae = AutoencoderKL.from_config(read_json(configs / "vae" / "config.json")).eval()
        text_config = CLIPTextConfig.from_dict(read_json(configs / "text_encoder" / "config.json"))
        text = CLIPTextModel(text_config).eval()
        for module in (unet, vae, text):
            for parameter in module.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    tokenizer = read_tokenizer(configs / "tokenizer", text.config.vocab_size)
    return Components(
        vae,
        unet,
        {"text_encoder": text},
        {"tokenizer": tokenizer},
        read_scheduler_config(configs),
        "small",
        "0" * 32,
    )


def part(model, name: str):
    """The network `name` of Components or of a pipeline of diffusers."""
    return model.networks[name] if isinstance(model, Components) else getattr(model, name)
