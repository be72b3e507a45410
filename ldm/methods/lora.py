"""LoRAs of a model: read from its adapter, added to its weights, or extracted from training's changes."""

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import find
from ldm.formats.fingerprint import file_hash
from ldm.formats.lora import LORA_FILE, Lora, LowRank, lora_file, read_lora
from ldm.formats.subject import read_subject
from ldm.methods.adapter_layers import adapter_layers, merge_adapters
from ldm.methods.load import LoadedModel
from ldm.models.latent_diffusion import LatentDiffusion

ADAPTER = "default"
"""peft's name for the adapter that a run trains."""


def lora_of(model: LatentDiffusion) -> Lora | None:
    """The LoRA or DoRA of `model`'s adapters; None if it has none, or other adapters."""
    lora: Lora = {}
    for name, network in model.trainable.items():
        for layer_name, layer in adapter_layers(network):
            if not isinstance(layer, LoraLayer):
                return None
            magnitude = None
            if ADAPTER in layer.lora_magnitude_vector:
                magnitude = _weight(layer.lora_magnitude_vector[ADAPTER]).flatten()
            up = _weight(layer.lora_B[ADAPTER]) * layer.scaling[ADAPTER]
            lora.setdefault(name, {})[layer_name] = LowRank(_weight(layer.lora_A[ADAPTER]), up, magnitude)
    return lora or None


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def file_and_scale(word: str) -> tuple[str, float]:
    """Parse `FILE` or `FILE:SCALE`. Raises UserError if the scale is not a number."""
    name, colon, scale = word.rpartition(":")
    if not colon or os.path.exists(find(word)):
        return word, 1.0
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(
            f"--lora {word}: '{scale}' is not a number; write FILE:SCALE, as in dog.safetensors:0.8"
        )
    return name, number


def find_lora(name: str) -> Path:
    """The file of the LoRA `name`, a file or a folder in diffusers' layout. Raises UserError if there is none."""
    path = lora_file(find(name))
    if not path.is_file():
        raise UserError(
            f"--lora {name}: there is no {path}; name a LoRA file, or a folder in diffusers' layout"
        )
    return path


def add_loras(loaded: LoadedModel, words: Sequence[str]) -> None:
    """Add LoRAs, given as `FILE` or `FILE:SCALE`, to the weights of a model.

    The subjects of LoRAs in a run's exported folder are added to the model's, unless their placeholders are taken.
    """
    chosen = [(find_lora(name), scale) for name, scale in map(file_and_scale, words)]
    if not chosen:
        return
    merge_adapters(loaded.model)
    for path, scale in chosen:
        add_lora(loaded.model, read_lora(path, loaded.model.trainable), scale)
        taken = {subject.placeholder for subject in loaded.subjects}
        learned = read_subject(path.parent).learned() if path.name == LORA_FILE else ()
        loaded.subjects = (*loaded.subjects, *(new for new in learned if new.placeholder not in taken))
    hashes = [loaded.weights, *(f"{file_hash(path)} {scale}" for path, scale in chosen)]
    loaded.weights = hashlib.blake2b("\n".join(hashes).encode(), digest_size=16).hexdigest()


@torch.no_grad()
def add_lora(model: LatentDiffusion, lora: Lora, scale: float = 1.0) -> None:
    """Add `scale` times the LoRA to the weights of `model`, whose own adapters must be merged."""
    for name, layers in lora.items():
        for layer_name, change in layers.items():
            weight = _weight(model.trainable[name].get_submodule(layer_name))
            weight.copy_(changed(weight, change, scale))


def changed(weight: Tensor, change: LowRank, scale: float = 1.0) -> Tensor:
    """`weight` [out, in, ...] plus `scale` times `change`; a magnitude then sets the norms of its rows."""
    down, up = (part.flatten(1).to(weight.device) for part in (change.down, change.up))
    new = weight + scale * (up @ down).view_as(weight)
    if change.magnitude is None:
        return new
    norms = torch.linalg.vector_norm(new.flatten(1), dim=1)
    factors: Tensor = change.magnitude.to(weight.device) / norms
    return new * factors.view(-1, *[1] * (weight.ndim - 1))


@dataclass(frozen=True)
class Extraction:
    """A LoRA that approximates training's changes, and its accuracy."""

    lora: Lora
    error: float
    """Relative error, by norm, of the change of its layers."""
    outside: float
    """Share of the whole change, by squared norm, in weights without a LoRA: norms, biases, embeddings."""


@torch.no_grad()
def extract_lora(trained: LatentDiffusion, base: LatentDiffusion, rank: int) -> Extraction:
    """The best approximation of rank `rank`, for each layer, of the difference between `trained` and `base`.

    It is the truncated singular value decomposition of each layer's change (Eckart and Young, 1936).
    """
    lora: Lora = {}
    changed_by = left = 0.0
    for network, layer, change in _changes(trained, base):
        low_rank = truncated(change, rank)
        lora.setdefault(network, {})[layer] = low_rank
        rest = change - changed(torch.zeros_like(change), low_rank)
        changed_by += float(change.square().sum())
        left += float(rest.square().sum())
    total = 0.0
    for name, module in trained.trainable.items():
        before = dict(base.trainable[name].named_parameters())  # without new tokens' rows
        after = {key: value for key, value in module.named_parameters() if key in before}
        total += sum(float((own - before[key]).square().sum()) for key, own in after.items())
    return Extraction(
        lora, (left / changed_by) ** 0.5 if changed_by else 0.0, 1 - changed_by / total if total else 0.0
    )


def _changes(trained: LatentDiffusion, base: LatentDiffusion) -> Iterator[tuple[str, str, Tensor]]:
    """Network, layer and change of weight, for every linear or convolutional layer that has changed."""
    for name, network in trained.trainable.items():
        for layer, module in network.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                before = _weight(base.trainable[name].get_submodule(layer))
                if not torch.equal(module.weight, before):
                    yield name, layer, module.weight - before


def truncated(change: Tensor, rank: int) -> LowRank:
    """The matrices of rank at most `rank` whose product is closest to `change` [out, in, ...]."""
    left, values, right = torch.linalg.svd(change.flatten(1), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).view(rank, *change.shape[1:])
    up = left[:, :rank] * root
    return LowRank(down, up.view(*up.shape, *[1] * (change.ndim - 2)))
