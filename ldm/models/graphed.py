"""A network's training pass as a CUDA graph: the host launches all of its kernels by one call."""

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

Graph = Callable[[Tensor, Tensor, Mapping[str, object]], Tensor]


class Pass(nn.Module):
    """A pass of a denoising network, with all its inputs as arguments."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, timesteps: Tensor, keywords: Mapping[str, object]) -> Tensor:
        """The prediction [B, C, h, w]."""
        return self.network(x, timesteps, **keywords).sample


class GraphedPasses:
    """Forward and backward passes of a network with gradients, recorded at the first inputs of each shape.

    Replays compute with the weights as they are then. Each shape keeps the memory of its activations and gradients, and
    one backward pass must follow each forward pass before the next.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self._graphs: dict[object, Graph] = {}

    def __call__(self, x: Tensor, timesteps: Tensor, keywords: Mapping[str, object]) -> Tensor:
        """The prediction [B, C, h, w] for `x` [B, C, h, w] and timesteps [B]. keywords: of the network, all tensors."""
        inputs = (x, timesteps, keywords)
        tensors, structure = tree_flatten(inputs)
        kind = (str(structure), *((tensor.shape, tensor.dtype) for tensor in tensors))
        if kind not in self._graphs:
            self._graphs[kind] = record(Pass(self.network), inputs)
        return self._graphs[kind](*inputs)


def record(network: Pass, inputs: tuple[Tensor, Tensor, Mapping[str, object]]) -> Graph:
    """`network` as graphs for inputs like `inputs`, by torch's own recorder."""
    # torch records on a stream of its own, and would warn in every run that gradients come from there.
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
    examples = tree_map(lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad), inputs)
    caching = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)  # a cached cast would be left out of the replays
    try:
        return cast(Graph, torch.cuda.make_graphed_callables(network, examples, allow_unused_input=True))
    finally:
        torch.set_autocast_cache_enabled(caching)
