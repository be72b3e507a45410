"""Reuse of a UNet's deep features from one sampling step to the next (DeepCache, Ma et al., arXiv 2312.00858).

Between neighbouring steps the features below the UNet's outermost level change little. A whole pass keeps the input
of the last up block; the passes after it compute only the first down block and the last up block around it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from ldm.errors import UserError

Forward = Callable[..., Any]


class DeepFeatures:
    """Replacements for the forward passes of a UNet's blocks, which know whether this pass is a whole one."""

    def __init__(self, every: int):
        """every: one pass in this many is whole, the first included."""
        self.every = every
        self.passes = 0
        self.whole = True
        self.kept: Tensor | None = None
        """Input of the last up block in the last whole pass, [B, C, h, w]."""

    def begin(self, unet: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a pass of the UNet. Another number of rows, where guidance begins or ends, asks for a whole pass."""
        if self.kept is not None and len(self.kept) != len(args[0]):
            self.passes = 0
        self.whole = self.passes % self.every == 0
        self.passes += 1

    def down(
        self, residuals: int, forward: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """A down block after the first. Only skipped blocks would read its `residuals`, so any tensor will do."""
        if self.whole:
            done: tuple[Tensor, tuple[Tensor, ...]] = forward(hidden_states, *args, **kwargs)
            return done
        return hidden_states, (hidden_states,) * residuals

    def through(self, forward: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The middle block, and the up blocks before the last two."""
        done: Tensor = forward(hidden_states, *args, **kwargs) if self.whole else hidden_states
        return done

    def deepest_kept(self, forward: Forward, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The up block before the last one, whose output is kept."""
        if self.whole:
            self.kept = forward(hidden_states, *args, **kwargs)
        assert self.kept is not None  # the first pass is a whole one
        return self.kept


@contextmanager
def reused_deep_features(unet: UNet2DConditionModel, every: int | None) -> Iterator[None]:
    """Within it, only one pass of `unet` in `every` computes the deep features; None: all do. For one sampling.

    Raises UserError for a UNet with a single level, which has no deep features.
    """
    if every is None:
        yield
        return
    if len(unet.up_blocks) < 2:
        raise UserError("deep features cannot be reused: this model's UNet has a single level; leave it out")
    features = DeepFeatures(every)
    replacements: list[tuple[nn.Module, Callable[..., Any]]] = [
        (block, partial(features.down, len(block.resnets) + bool(block.downsamplers)))
        for block in unet.down_blocks[1:]
    ]
    middle = [unet.mid_block] if unet.mid_block is not None else []
    replacements += [(block, features.through) for block in (*middle, *unet.up_blocks[:-2])]
    replacements.append((unet.up_blocks[-2], features.deepest_kept))
    with ExitStack() as stack:
        stack.callback(unet.register_forward_pre_hook(features.begin).remove)
        for block, replacement in replacements:
            stack.enter_context(_forward_of(block, partial(replacement, block.forward)))
        yield


@contextmanager
def _forward_of(block: nn.Module, forward: Forward) -> Iterator[None]:
    """`block` with another forward pass."""
    own = vars(block).get("forward")
    block.forward = forward
    try:
        yield
    finally:
        del block.forward
        if own is not None:
            block.forward = own
