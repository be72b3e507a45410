"""An exponential moving average of the weights that train, by diffusers' `EMAModel`, whatever the tuning trains."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim import Optimizer


class WeightAverage:
    """After each step, decay times the average plus (1 - decay) times the weights, in fp32.

    The decay of step t is at most (1 + t) / (10 + t), so that the start is forgotten. It averages the optimizer's
    parameters, and knows nothing of networks and adapters.
    """

    def __init__(self, optimizer: Optimizer, decay: float, state: Mapping[str, Any] | None = None):
        """state: of an earlier average of the same parameters; without one it starts from the weights as they are."""
        self.parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        self._average = EMAModel(self.parameters)
        self._average.to(dtype=torch.float32)
        if state:
            self._average.load_state_dict({**self._average.state_dict(), **state})
            self._average.to(device=self.parameters[0].device)
        self._average.decay = decay

    def update(self) -> None:
        """Take the weights as they are now into the average; once after each optimizer step."""
        self._average.step(self.parameters)

    def put_in(self) -> None:
        """Put the averaged weights in the place of the trained ones."""
        self._average.copy_to(self.parameters)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds for `state` of the next start."""
        return {
            "optimization_step": self._average.optimization_step,
            "shadow_params": self._average.shadow_params,
        }
