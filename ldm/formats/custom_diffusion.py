"""Files of Custom Diffusion: weights of the cross-attention under diffusers' names."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.formats.modules import listed
from ldm.formats.safe_loading import load_checkpoint, refuse_odd_numbers

DELTAS_FILE = "pytorch_custom_diffusion_weights.safetensors"
"""The file name in the documentation of diffusers' `load_attn_procs`."""
NAME = re.compile(
    r"(?P<attention>.+)\.processor\.(?P<layer>to_[kvq]|to_out)_custom_diffusion(?P<rest>(?:\.0)?\.\w+)"
)
"""A tensor's name in a file."""


def projections(unet: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Names and layers of the UNet's key and value projections in cross-attention."""
    for name, module in unet.named_modules():
        if re.search(r"\battn2\.to_[kv]$", name):
            yield name, module


def deltas(unet: nn.Module) -> dict[str, Tensor]:
    """The projections of `unet` under diffusers' names, and an empty tensor for each self-attention."""
    names = [name for name, _ in unet.named_modules() if name.endswith(".attn1")]
    tensors = {f"{name}.processor": torch.empty(0) for name in names}
    for name, module in projections(unet):
        attention, _, projection = name.rpartition(".")
        tensors |= {
            f"{attention}.processor.{projection}_custom_diffusion.{key}": value
            for key, value in module.state_dict().items()
        }
    return tensors


def read_deltas(path: Path, unet: nn.Module) -> Mapping[str, Tensor]:
    """The weights in the file `path`, by their names in `unet`: those that this project and diffusers write.

    Raises UserError for a file of another kind, or of another model.
    """
    content = {key: value for key, value in load_checkpoint(path).items() if isinstance(value, Tensor)}
    own, found, strange = unet.state_dict(), {}, []
    for key, value in content.items():
        match = NAME.fullmatch(key)
        name = match and match["attention"] + f".{match['layer']}{match['rest']}"
        if name in own:
            found[name] = value
        elif value.numel():  # an attention that did not train has an empty tensor
            strange.append(key)
    if strange or not found:
        raise UserError(
            f"{path} is no Custom Diffusion for this model: {len(strange)} of its {len(content)} tensors are not of one"
            + (f" ({listed(strange)})" if strange else "")
        )
    for name, value in found.items():
        if value.shape != own[name].shape:
            raise UserError(
                f"{path}: {name} has shape {list(value.shape)}, and the model's {list(own[name].shape)}: it is another"
                " model's"
            )
        refuse_odd_numbers(value, path)
    return found
