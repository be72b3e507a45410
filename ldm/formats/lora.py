"""LoRA files: the layers they change, and the matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import replacing
from ldm.formats.lora_diffusers import DIFFUSERS
from ldm.formats.lora_kohya import KOHYA
from ldm.formats.lora_layout import Layout
from ldm.formats.modules import listed
from ldm.formats.safe_loading import load_checkpoint
from ldm.formats.small_folder import as_user_error, save_small_folder

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The file that diffusers looks for in a folder."""
LAYOUTS = {layout.name: layout for layout in (DIFFUSERS, KOHYA)}
"""By name."""


@dataclass(frozen=True)
class LowRank:
    """The change of one layer: W + `up` `down`, with the scale in `up`; for DoRA, rows then get norms `magnitude`."""

    down: Tensor
    """[r, in], or [r, in, k, k] of a convolution."""
    up: Tensor
    """[out, r], or [out, r, 1, 1]."""
    magnitude: Tensor | None = None
    """[out]: the norms of the new weight's rows."""

    @property
    def rank(self) -> int:
        """Inner dimension of the product."""
        return len(self.down)


Lora = dict[str, dict[str, LowRank]]
"""By folder name of the network, then by layer name."""


def lora_file(path: Path) -> Path:
    """The LoRA file at `path`: itself, or the one in a folder of diffusers' layout."""
    return path / LORA_FILE if path.is_dir() else path


def read_lora(path: Path, networks: Mapping[str, nn.Module]) -> Lora:
    """The LoRA in the file or folder `path`, for a model with these `networks`.

    Raises UserError for a file of another kind, and for layers that the model lacks or that do not fit.
    """
    path = lora_file(path)
    tensors = {key: value for key, value in load_checkpoint(path).items() if isinstance(value, Tensor)}
    layout = KOHYA if any(key.startswith("lora_") for key in tensors) else DIFFUSERS
    found, strange = _sorted(tensors, layout, networks)
    if strange or not found:
        raise UserError(
            f"{path} is not a LoRA for this model: {len(strange)} of its {len(tensors)} tensors are not part of one"
            + (f" ({listed(strange)})" if strange else "")
        )
    lora: Lora = {}
    for (network, layer), parts in found.items():
        weight = networks[network].get_submodule(layer).weight
        assert isinstance(weight, Tensor)
        lora.setdefault(network, {})[layer] = _low_rank(parts, weight, f"{path}: layer {layer} of {network}")
    return lora


def _sorted(
    tensors: Mapping[str, Tensor], layout: Layout, networks: Mapping[str, nn.Module]
) -> tuple[dict[tuple[str, str], dict[str, Tensor]], list[str]]:
    """The parts of each layer by (network, layer), and the keys that belong to none."""
    places: dict[str, tuple[str, str]] = {}
    for name, network in networks.items():
        layers = [key for key, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        places |= {other: (name, layer) for other, layer in layout.other_layers(name, layers).items()}
        places |= {layout.layer(name, layer): (name, layer) for layer in layers}
    parts = {**{ending: part for part, ending in layout.parts.items()}, **layout.other_parts}
    known = {
        f"{key}.{ending}": (place, part) for key, place in places.items() for ending, part in parts.items()
    }
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key in tensors.keys() & known.keys():
        place, part = known[key]
        found.setdefault(place, {})[part] = tensors[key]
    return dict(sorted(found.items())), [key for key in tensors if key not in known]


def _low_rank(parts: Mapping[str, Tensor], weight: Tensor, where: str) -> LowRank:
    if missing := [part for part in ("down", "up") if part not in parts]:
        raise UserError(f"{where} has no {missing[0]} matrix: copy or download the file again")
    down, up, magnitude = parts["down"].float(), parts["up"].float(), parts.get("magnitude")
    rows, columns = weight.flatten(1).shape
    matrices = min(down.ndim, up.ndim) > 1 and len(down) > 0
    if not matrices or down[0].numel() != columns or up.flatten(1).shape != (rows, len(down)):
        raise UserError(
            f"{where} has matrices of shapes {list(down.shape)} and {list(up.shape)} for weights of shape"
            f" {list(weight.shape)}: it is another model's"
        )
    if magnitude is not None:
        if magnitude.numel() != rows:
            raise UserError(
                f"{where} has {magnitude.numel()} magnitudes for {rows} rows: it is another model's"
            )
        magnitude = magnitude.float().flatten()
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise UserError(f"{where}, whose alpha is not one number: copy or download the file again")
        up = up * (float(parts["alpha"]) / len(down))
    if not all(part.isfinite().all() for part in (down, up, magnitude) if part is not None):
        raise UserError(f"{where} has values that are not finite: use another file")
    return LowRank(down, up, magnitude)


def lora_tensors(lora: Lora, layout: Layout, dtype: torch.dtype) -> dict[str, Tensor]:
    """The content of a file in `layout`."""
    tensors = {}
    for network, layers in lora.items():
        for layer, change in layers.items():
            parts = {"down": change.down, "up": change.up}
            if change.magnitude is not None:
                parts["magnitude"] = change.magnitude.view(layout.magnitude_shape(change.down.ndim))
            if layout.writes_alpha:  # the scale, alpha / rank, is in `up` already
                tensors[f"{layout.layer(network, layer)}.{layout.parts['alpha']}"] = torch.tensor(change.rank)
            for part, value in parts.items():
                key = f"{layout.layer(network, layer)}.{layout.parts[part]}"
                tensors[key] = value.detach().to("cpu", dtype).contiguous()
    return tensors


def save_lora(
    lora: Lora, path: Path, layout: Layout, dtype: torch.dtype, facts: Mapping[str, str] | None = None
) -> None:
    """Write one file, atomically. facts: further metadata. Raises UserError if it cannot be written."""
    with as_user_error(path), replacing(path) as temporary:
        save_file(lora_tensors(lora, layout, dtype), temporary, metadata={"format": "pt", **(facts or {})})


def save_lora_folder(lora: Lora, folder: Path, dtype: torch.dtype, notes: Mapping[str, str]) -> None:
    """Write a folder for diffusers' `load_lora_weights`. notes: further texts, by file name.

    Replaces an earlier LoRA. Raises UserError if `folder` has other content, or cannot be written.
    """
    save_small_folder(folder, {LORA_FILE: lora_tensors(lora, DIFFUSERS, dtype)}, dtype, notes)
