"""An exponential moving average of the trained weights with diffusers' `EMAModel`, for any tuning."""

from collections.abc import Callable, Mapping

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim import Optimizer


def is_averaging(optimizer: Callable[..., Optimizer]) -> bool:
    """Whether what `optimizer` builds averages the weights itself, as schedule-free optimizers do."""
    return hasattr(class_of(optimizer), "eval")


def class_of(optimizer: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """The class of an optimizer whose keywords may be bound already."""
    return getattr(optimizer, "func", optimizer)


class WeightAverage:
    """After each step, decay times the average plus (1 - decay) times the weights, in fp32.

    The decay at step t is at most (1 + t) / (10 + t), so that the initial weights are forgotten. It averages the
    optimizer's parameters, whatever networks or adapters they belong to.
    """

    def __init__(self, optimizer: Optimizer, decay: float, state: Mapping[str, object] | None = None):
        """state: of an earlier average of the same parameters; None starts from the current weights."""
        self.parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._average = EMAModel(self.parameters)
        self._average.to(dtype=torch.float32)
        if state:
            self._average.load_state_dict({**self._average.state_dict(), **state})
            self._average.to(device=self.parameters[0].device)
        self._average.decay = decay

    def update(self) -> None:
        """Add the current weights to the average; call once after each optimizer step."""
        self._average.step(self.parameters)

    def copy_to_weights(self) -> None:
        """Replace the trained weights by the averaged ones."""
        self._average.copy_to(self.parameters)

    def state(self) -> dict[str, object]:
        """The `state` for a checkpoint."""
        return {
            "optimization_step": self._average.optimization_step,
            "shadow_params": self._average.shadow_params,
        }
