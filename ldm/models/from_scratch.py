"""Networks that start from random weights: what their trainings share, and whole bases to measure size on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.formats.components import Components
from ldm.formats.diffusers_folder import (
    load_tokenizer,
    read_json,
    read_scheduler_config,
    save_diffusers_folder,
)
from ldm.randomness import generator


@contextmanager
def keyed_weights(seed: int, network: str) -> Iterator[None]:
    """Networks built inside get the starting weights of `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(seed, "starting weights of " + network).initial_seed())
        yield


@torch.no_grad()
def update_average(average: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Move `average` towards `trained`; young averages move faster, so that the random start is forgotten."""
    keep = min(decay, (1 + step) / (10 + step))
    pairs = list(zip(average.parameters(), trained.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b.detach() for _, b in pairs], 1 - keep)


def warm_stable_decay(step: int, warmup_steps: int, total_steps: int, decay_steps: int) -> float:
    """Learning-rate factor: linear warm-up, constant, then linear to zero over the last `decay_steps`.

    The constant part makes the run's length a late decision: a resume with another `total_steps` goes on as
    if it had always been so (Hu et al., arXiv 2404.06395, section 4).
    """
    warm = min(1.0, (step + 1) / max(warmup_steps, 1))
    left = max(total_steps - step, 0) / max(decay_steps, 1)
    return min(warm, left)


def write_random_base(configs: Path, folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write a base with random weights in diffusers' layout; returns `folder`. Its pictures mean nothing.

    configs: component configs and tokenizer, such as configs/stable-diffusion/v1.
    """

    def config(component: str) -> dict:
        return read_json(configs / component / "config.json")

    with keyed_weights(0, "random base"):
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
