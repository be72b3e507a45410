"""Stable Diffusion 1.x, 2.x and XL scaled down: the same layers, prediction type and tokenizer, few channels."""

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

from ldm.formats import diffusers_folder
from ldm.formats.components import Components
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import by_field, read_tokenizers
from ldm.formats.modules import new_module
from ldm.formats.network_configs import (
    family_of_configs,
    networks_of,
    read_network_configs,
    read_scheduler_config,
    zero_unconditional,
)

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
    "xl": {
        "unet": {
            "block_out_channels": [32, 64, 96],
            "cross_attention_dim": 24 + 16,
            "attention_head_dim": [2, 4, 6],
            "transformer_layers_per_block": [1, 1, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 20,
        },
        "text_encoder": {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 2},
        "text_encoder_2": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 3,
            "projection_dim": 20,
        },
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
    """Component configs and tokenizer of `version` ("v1", "v2", "xl") with few channels, in diffusers' layout."""
    shutil.copytree(CONFIGS / version, folder)
    changes = {**SMALLER[version], "vae": SMALL_VAE}
    changes["unet"] = {**changes["unet"], "sample_size": 8}
    for name, change in changes.items():
        path = folder / name / "config.json"
        path.write_text(json.dumps({**read_json(path), **change}))
    return folder


def small_sd(configs: Path, seed: int = 0) -> Components:
    """Random networks of the sizes in `configs`; no two parameters are alike, zeros and ones included."""
    settings = read_network_configs(configs, networks_of(configs))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = {name: new_module(name, config).eval() for name, config in settings.items()}
        for module in networks.values():
            for parameter in module.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))
    return Components(
        **by_field(networks),
        tokenizers=read_tokenizers(configs, settings),
        scheduler_config=read_scheduler_config(configs),
        source="small",
        fingerprint="0" * 32,
        zero_unconditional=zero_unconditional(configs, family_of_configs(settings, configs)),
    )


def part(model, name: str):
    """The network `name` of Components or of a pipeline of diffusers."""
    return model.networks[name] if isinstance(model, Components) else getattr(model, name)
