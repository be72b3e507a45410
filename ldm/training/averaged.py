"""Optimizers that train one set of weights and are judged by another, as schedule-free ones are (arXiv 2405.15682)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer


def switching(trainer: Trainer) -> list[Optimizer]:
    """The optimizers with a training and an evaluation mode."""
    return [own for own in trainer.optimizers if hasattr(own, "train") and hasattr(own, "eval")]


def trained_apart(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """A copy of the weights that train, by name, where they are not those that the module is judged by."""
    if not switching(trainer):
        return {}
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """Inside, the weights are those that their optimizer is to be judged by, such as an average of those it trains.

    The trained ones are put back bit for bit, which the optimizer's own `train` would not do, and the optimizer stays
    as it is in training. So measuring, drawing and saving leave no trace in the loss curve.
    """
    optimizers = switching(trainer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    for optimizer in optimizers:
        optimizer.eval()  # type: ignore[attr-defined]
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
