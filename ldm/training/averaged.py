"""Evaluation with other weights than the trained ones: schedule-free optimizers (arXiv 2405.15682), and averages."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from ldm.methods.dreambooth import DreamBooth
from ldm.methods.weight_average import WeightAverage


def switching(trainer: Trainer) -> list[Optimizer]:
    """Optimizers with training and evaluation modes."""
    return [own for own in trainer.optimizers if hasattr(own, "train") and hasattr(own, "eval")]


def weight_average(module: LightningModule) -> WeightAverage | None:
    """The average of what `module` trains, where it keeps one."""
    return module.average if isinstance(module, DreamBooth) else None


def trained_apart(trainer: Trainer, module: LightningModule) -> dict[str, Tensor]:
    """A copy of the trained weights by name, if other weights are used for evaluation."""
    if not switching(trainer) and not weight_average(module):
        return {}
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def averaged(trainer: Trainer) -> Iterator[None]:
    """In the block, the weights are those for evaluation, such as an average of the trained ones.

    Afterwards the trained ones are restored bit for bit, which the optimizer's own `train` would not do, and the
    optimizer is as before. So measuring, drawing and saving do not affect the loss curve.
    """
    optimizers = switching(trainer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    average = weight_average(trainer.lightning_module)
    parameters = [parameter for group in groups for parameter in group["params"]]
    parameters += average.parameters if average else []
    trained = [parameter.detach().clone() for parameter in parameters]
    settings = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    for optimizer in optimizers:
        optimizer.eval()  # type: ignore[attr-defined]
    for group, own in zip(groups, settings, strict=True):
        group.update(own)
    if average:
        average.copy_to_weights()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, trained, strict=True):
                parameter.copy_(value)
