"""What a layout of LoRA files decides: how keys are spelt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

PREFIX = "text_model."
"""What stands before a text encoder's layers in files, and in transformers 4."""


@dataclass(frozen=True)
class Layout:
    """A key is a layer's name and a part's, with a dot between them. Parts: down, up, magnitude, alpha."""

    name: str
    layer: Callable[[str, str], str]
    """(network, layer) -> the layer's name in a file that is written."""
    other_layers: Callable[[str, Sequence[str]], Mapping[str, str]]
    """(network, its layers) -> further names of layers in files that others wrote -> layer."""
    parts: Mapping[str, str]
    """Part -> its name."""
    other_parts: Mapping[str, str]
    """Further names of parts in files that others wrote -> part."""
    magnitude_shape: Callable[[int], tuple[int, ...]]
    """Dimensions of a layer's weight -> shape of its magnitude, with -1 for the rows."""


def in_files(network: str, layer: str) -> str:
    """The name that every layout has for a layer."""
    bare = network.startswith("text_encoder") and not layer.startswith((PREFIX, "text_projection"))
    return PREFIX + layer if bare else layer
