"""Adds, switches off, removes and merges peft's adapter layers, which wrap a network's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import OFTConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ldm.errors import UserError
from ldm.randomness import generator


def add_adapter(network: nn.Module, config: PeftConfig, seed: int, purpose: str) -> None:
    """Wrap the layers of `network` that `config` names in an adapter; afterwards only it trains, in fp32.

    Its initial weights are drawn on the CPU, keyed by `seed` and `purpose`, with peft's own initialisation.
    Raises UserError if peft finds no such layer, or cannot adapt it.
    """
    keyed = generator(seed, purpose).initial_seed()
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.default_generator.manual_seed(keyed)  # torch.manual_seed would seed the GPUs too
            inject_adapter_in_model(config, network)
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{type(config).__name__} on {type(network).__name__}: {_first_sentence(error)}"
        ) from error
    if isinstance(config, OFTConfig):
        _refuse_wide_convolutions(network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _refuse_wide_convolutions(network: nn.Module) -> None:
    """Raise UserError for convolutions larger than 1 x 1: peft 0.21's OFT changes them before any training."""
    for name, layer in adapter_layers(network):
        base = layer.get_base_layer()
        if isinstance(base, nn.Conv2d) and base.kernel_size != (1, 1):
            raise UserError(
                f"OFTConfig: layer {name} is a convolution larger than 1 x 1, which peft's OFT changes before any"
                " training; leave it out of target_modules, or use peft.LoraConfig"
            )


def adapter_layers(module: nn.Module) -> list[tuple[str, BaseTunerLayer]]:
    """Names and layers of `module` with an adapter."""
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]


@contextmanager
def switched_off(module: nn.Module) -> Iterator[None]:
    """In the block, `module` computes as without adapters, bit for bit."""
    layers = [layer for _, layer in adapter_layers(module)]
    trains = {parameter for parameter in module.parameters() if parameter.requires_grad}
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter in module.parameters():  # peft makes all parameters of an enabled adapter trainable
            parameter.requires_grad_(parameter in trains)


def remove_adapters(module: nn.Module) -> None:
    """Replace adapters in `module` by the original layers."""
    for name, layer in adapter_layers(module):
        owner, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(owner), attribute, layer.get_base_layer())


def merge_adapters(module: nn.Module) -> None:
    """Add the adapters' changes to the weights of their layers, and remove the adapters."""
    for _, layer in adapter_layers(module):
        layer.merge()
    remove_adapters(module)


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).partition(". ")[0]
