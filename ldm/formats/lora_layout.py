"""A layout of LoRA files: how keys are spelt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PREFIX = "text_model."
"""Prefix of a text encoder's layers in files, and in transformers 4."""


@dataclass(frozen=True)
class Layout:
    """A key is a layer's name and a part's, with a dot between them. Parts: down, up, magnitude, alpha."""

    name: str
    layer: Callable[[str, str], str]
    """(network, layer) -> the layer's name in written files."""
    other_layers: Callable[[str, Sequence[str]], Mapping[str, str]]
    """(network, its layers) -> {other names of layers in files of other tools: layer}."""
    parts: Mapping[str, str]
    """Part -> its name."""
    other_parts: Mapping[str, str]
    """Other names of parts in files of other tools -> part."""
    writes_alpha: bool
    """Whether written files have an alpha for each layer."""
    magnitude_shape: Callable[[int], tuple[int, ...]]
    """Dimensions of a layer's weight -> shape of its magnitude, with -1 for the rows."""


def in_files(network: str, layer: str) -> str:
    """The name of a layer that all layouts use."""
    bare = network.startswith("text_encoder") and not layer.startswith((PREFIX, "text_projection"))
    return PREFIX + layer if bare else layer
