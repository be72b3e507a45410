"""Networks' training passes as CUDA graphs: the host launches all of a pass's kernels by one call."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

Function = Callable[..., Any]
"""From tensors, or containers of them, to a tensor or a tuple of them."""


class Pass(nn.Module):
    """A pass of `networks`, with all its inputs as arguments."""

    def __init__(self, function: Function, *networks: nn.Module):
        """function: computes with `networks`."""
        super().__init__()
        self.function = function
        self.networks = nn.ModuleList(networks)

    def forward(self, *inputs: Any) -> Any:
        """What the function returns."""
        return self.function(*inputs)


class GraphedPasses:
    """Forward and backward passes of networks with gradients, recorded at the first inputs of each shape.

    Replays compute with the weights as they are then. Each shape keeps the memory of its activations and gradients, and
    one backward pass must follow each forward pass before the next.
    """

    def __init__(self, function: Function, *networks: nn.Module):
        """function: computes with `networks`, without waiting for the device or reading anything else that changes."""
        self.function, self.networks = function, networks
        self._graphs: dict[object, Function] = {}

    def __call__(self, *inputs: Any) -> Any:
        """What the function returns for `inputs`: tensors, or containers of them.

        Without gradients it is only called.
        """
        if not torch.is_grad_enabled():
            return self.function(*inputs)
        tensors, structure = tree_flatten(inputs)
        kind = (str(structure), *((tensor.shape, tensor.dtype) for tensor in tensors))
        if kind not in self._graphs:
            self._graphs[kind] = record(Pass(self.function, *self.networks), inputs)
        return self._graphs[kind](*inputs)


def record(recorded: Pass, inputs: tuple[Any, ...]) -> Function:
    """`recorded` as graphs for inputs like `inputs`, by torch's own recorder."""
    # torch records on a stream of its own, and would warn in every run that gradients come from there.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    examples = tree_map(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), inputs)
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cached cast would be left out of the replays
    try:
        return cast(Function, torch.cuda.make_graphed_callables(recorded, examples, allow_unused_input=True))
    finally:
        torch.set_autocast_cache_enabled(caching)
