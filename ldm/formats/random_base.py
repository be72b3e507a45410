"""Bases with random weights, for measuring size and speed."""

from pathlib import Path

import torch

from ldm.formats.components import Components
from ldm.formats.diffusers_folder import by_field, read_tokenizers, save_diffusers_folder
from ldm.formats.modules import new_module
from ldm.formats.network_configs import (
    family_of_configs,
    networks_of,
    read_network_configs,
    read_scheduler_config,
    zero_unconditional,
)


def write_random_base(configs: Path, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a base with random weights in diffusers' layout; returns `folder`. Its images are noise.

    configs: component configs and tokenizer, such as configs/stable-diffusion/v1.
    """

    networks = networks_of(configs)
    settings = read_network_configs(configs, networks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = {name: new_module(name, settings[name]) for name in ("vae", *networks[2:], "unet")}
    components = Components(
        **by_field(drawn),
        tokenizers=read_tokenizers(configs, settings),
        scheduler_config=read_scheduler_config(configs),
        source="random",
        fingerprint="0" * 32,
        zero_unconditional=zero_unconditional(configs, family_of_configs(settings, configs)),
    )
    return save_diffusers_folder(components, folder, dtype)
