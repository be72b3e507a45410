"""Builds a model's networks from their configs and fills them with tensors, which must fit exactly.

Networks are built on the meta device, so no weights are allocated or drawn only to be replaced by the file's.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from ldm.errors import UserError
from ldm.formats.families import NETWORKS

Network: TypeAlias = ModelMixin | PreTrainedModel
"""A network of diffusers or transformers: a module with a `config`."""
CLASSES: Mapping[str, type[Network]] = {
    network.__name__: network
    for network in (UNet2DConditionModel, AutoencoderKL, CLIPTextModel, CLIPTextModelWithProjection)
}
"""The classes in NETWORKS, by name."""
LISTED_KEYS = 6
"""Maximum number of keys of one kind in an error message."""

_device = ContextVar("device of the weights that are read", default="cpu")


@contextmanager
def weights_on(device: torch.device | str) -> Iterator[None]:
    """In the block, weights go from their mapped file directly to `device`, without a whole copy in between."""
    token = _device.set(str(device))
    try:
        yield
    finally:
        _device.reset(token)


def empty_module(component: str, config: Mapping[str, object], source: str | Path = "") -> Network:
    """The network of `component`, a key of NETWORKS, on the meta device, in evaluation mode.

    Raises UserError if no network can be built from the config. source: its folder, for the message.
    """
    try:
        with torch.device("meta"):
            module = new_module(component, config)
    except Exception as error:  # the libraries raise all kinds of errors for an inconsistent config
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        path = Path(source, component, "config.json")
        raise UserError(
            f"{path}: no network can be built from it ({reason}): copy or download it again"
        ) from None
    return module.eval()


def new_module(component: str, config: Mapping[str, object]) -> Network:
    """The network of `component` with random weights, on torch's default device."""
    network = CLASSES[NETWORKS[component][1]]
    if issubclass(network, PreTrainedModel):
        return network(CLIPTextConfig.from_dict(dict(config)))
    return network.from_config(dict(config))


def bare_key(key: str) -> str:
    """A text encoder's key without the prefix `text_model.` of some versions and classes of transformers."""
    return key.removeprefix("text_model.")


def bare_state(module: Network) -> dict[str, Tensor]:
    """The state of `module` under bare keys."""
    return {bare_key(key): value for key, value in module.state_dict().items()}


def misfit(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor], surplus: Iterable[str] = ()) -> str:
    """How `tensors` differ from those `wanted`, in one phrase; empty if names and shapes are equal.

    Tensors must be floating-point. surplus: further unused keys of the file.
    """
    missing = [key for key in wanted if key not in tensors]
    left_over = [*(key for key in tensors if key not in wanted), *surplus]
    reshaped = [
        f"{key} {list(tensors[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    other = [
        f"{key} {str(tensors[key].dtype).removeprefix('torch.')}"
        for key in wanted
        if key in tensors and not tensors[key].is_floating_point()
    ]
    kinds = {
        "missing": missing,
        "left over": left_over,
        "of another shape": reshaped,
        "not floating-point numbers": other,
    }
    return "; ".join(f"{len(keys)} {kind} ({listed(keys)})" for kind, keys in kinds.items() if keys)


def listed(names: Iterable[str]) -> str:
    """The first few of `names`, and how many more there are."""
    names = list(names)
    more = f", and {len(names) - LISTED_KEYS} more" if len(names) > LISTED_KEYS else ""
    return ", ".join(names[:LISTED_KEYS]) + more


def fill(module: Network, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Network:
    """Fill a meta-device `module` with `tensors`, which must fit, in `dtype` on the device of `weights_on`.

    They are copied, because a file's tensors are mapped from it: replacing the file during a run would change
    the model, and the tensors' alignment in the file would change the last digits of results.
    """
    device = torch.device(_device.get())
    # Moving to another device copies anyway, and moves half as much if the file is in half precision.
    copy = device.type == "cpu"
    owned = {key: value.to(device).to(dtype, copy=copy) for key, value in tensors.items()}
    module.load_state_dict(owned, assign=True)
    for part in module.modules() if isinstance(module, PreTrainedModel) else ():
        if hasattr(part, "position_ids"):  # the one buffer that is not saved: 0, 1, ..., length - 1
            part.position_ids = torch.arange(module.config.max_position_embeddings).expand(1, -1)
    return module


def assemble(
    configs: Mapping[str, Mapping[str, object]],
    weights: Mapping[str, Mapping[str, Tensor]],
    dtype: torch.dtype,
    source: str,
    surplus: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, Network]:
    """Build and fill every network of `configs` from `weights`, both keyed by component.

    Text-encoder keys are bare, whatever the installed transformers calls them.
    surplus: unused keys of the file by component; "other" for keys of none.
    Raises a `UserError` that lists missing, unused and misshapen keys by component.
    """
    surplus = dict(surplus or {})
    modules = {name: empty_module(name, config, source) for name, config in configs.items()}
    weights = {name: under_own_keys(module, weights[name]) for name, module in modules.items()}
    misfits = {
        name: misfit(module.state_dict(), weights[name], surplus.pop(name, ()))
        for name, module in modules.items()
    }
    misfits |= {
        name: f"{len(list(keys))} left over ({listed(keys)})" for name, keys in surplus.items() if keys
    }
    phrases = [f"{name}: {phrase}" for name, phrase in misfits.items() if phrase]
    if phrases:
        raise UserError(f"{source} does not fit its model: {' | '.join(phrases)}")
    return {name: fill(module, weights[name], dtype) for name, module in modules.items()}


def under_own_keys(module: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with bare keys, under the keys of `module`."""
    own = {bare_key(key): key for key in module.state_dict()}
    return {own.get(key, key): value for key, value in tensors.items()}
