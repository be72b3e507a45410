"""Memory of a recipe that is too large for the machine, counted on tensors without data.

The tensors are torch's fake ones, with shapes and lifetimes but no memory. Every storage counts while it is alive, as
on a GPU whose attention keeps no matrices. A GPU's context and its allocator's fragments come on top.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.devices import DTYPES
from ldm.files import PROJECT
from ldm.formats.components import Components
from ldm.formats.diffusers_folder import by_field, read_tokenizers
from ldm.formats.modules import empty_module
from ldm.formats.network_configs import networks_of, read_network_configs, read_scheduler_config
from ldm.methods.tuning import tuning_of
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.memory import Alive
from ldm.training.speed.clock import Row, now
from ldm.training.speed.jobs import Job
from ldm.training.speed.setting_up import config_of

STATE_BYTES = {"bitsandbytes.optim.AdamW8bit": 2}
"""Of a trained number in the optimizer; 8 for torch's AdamW."""


def memory_on_paper(config: Mapping[str, Any], configs: Path) -> dict[str, int]:
    """Peak bytes of the phases of a run of `config`, on a base of the sizes in the folder `configs`."""
    params, data = config["model"]["params"], config["data"]["params"]
    model = model_without_data(configs, DTYPES[params["weights_precision"]])
    if params["gradient_checkpointing"]:
        model.enable_gradient_checkpointing()
    tuning_of(params).attach(model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = trained * STATE_BYTES.get(params["optimizer"]["target"], 8)
    copied = sum(p.numel() for own in model.trainable.values() for p in own.parameters())
    autocast = config["lightning"]["trainer"]["precision"] == "bf16-mixed"
    phases = {
        "a photograph through the VAE": partial(encode, model, data["size"]),
        "a training step": partial(step, model, data["size"], 2 * data["batch_size"], autocast),
    }
    peaks = {
        "a frozen copy": copied * DTYPES[data["prior"]["precision"]].itemsize,
        "the optimizer's state": state,
    }
    with FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
        give_tensors(model)
        model.unet.train()
        peaks["weights"] = alive.now
        for phase, act in phases.items():
            alive.most = alive.now
            act()
            peaks[phase] = alive.most
    peaks["a training step"] += state
    return peaks


def memory_without_data(job: Job) -> list[Row]:
    """The peak over the phases of `memory_on_paper`, for a base of the sizes in the folder `job.base`."""
    start = now()
    peaks = memory_on_paper(config_of(job, []), PROJECT / job.base)
    most = max(peaks["a photograph through the VAE"], peaks["a training step"])
    return [{"seconds": now() - start, "peak_bytes": most}]


def model_without_data(configs: Path, dtype: torch.dtype) -> LatentDiffusion:
    """A model of the sizes in `configs` on the meta device, in `dtype` but for the VAE."""
    settings = read_network_configs(configs, networks_of(configs))
    networks = {name: empty_module(name, own) for name, own in settings.items()}
    parts = Components(
        **by_field(networks),
        tokenizers=read_tokenizers(configs, settings),
        scheduler_config=read_scheduler_config(configs),
        source=str(configs),
        fingerprint="",
    )
    model = LatentDiffusion(parts)
    for network in model.trainable.values():
        network.to(dtype)
    return model


def give_tensors(model: nn.Module) -> None:
    """Tensors in place of those on the meta device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                module._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def encode(model: LatentDiffusion, size: int) -> None:
    """One photograph of `size` px."""
    model.posterior(torch.empty(1, 3, size, size))


def step(model: LatentDiffusion, size: int, rows: int, autocast: bool) -> None:
    """Forward and backward pass over `rows` latents, the gradients included."""
    latents = torch.empty(rows, *model.latent_shape(size, size))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        conditioning = model.embed([str(row) for row in range(rows)])
        answer = model.predict(latents, torch.zeros(rows, dtype=torch.long), conditioning)
    answer.square().mean().backward()
