"""What a run would do and cost, for `main.py --train false`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer
from torch.optim import AdamW, Optimizer

from ldm.data.datamodule import DreamBoothData
from ldm.methods.base_latents import prior_sampling
from ldm.methods.dreambooth import DreamBooth
from ldm.methods.weight_average import class_of, is_averaging
from ldm.training.arithmetic import arithmetic_of
from ldm.training.step_callback import samples_per_step

PROBE = (256, 256)
"""A weight that an optimizer takes a step on, to count its state; of a smaller one, 8-bit optimizers keep 32 bits."""


def estimate(data: LightningDataModule, model: LightningModule, trainer: Trainer, logdir: Path) -> str:
    """A few lines: steps, samples, trained parameters, memory of the training state, disk, arithmetic.

    logdir: for run folders; need not exist yet.
    """
    of_trained = [p for p in model.parameters() if p.requires_grad]
    of_frozen = [p for p in model.parameters() if not p.requires_grad]
    trained, frozen = (sum(p.numel() for p in those) for those in (of_trained, of_frozen))
    weights, unchanged = (sum(p.nbytes for p in those) for those in (of_trained, of_frozen))
    per_step = samples_per_step(data, trainer)
    subjects = getattr(data, "subjects", ())  # the embedded world's pictures stay on the disk
    optimizer = getattr(model, "optimizer", AdamW)
    of_optimizer = round(trained * state_bytes(optimizer, of_trained[0].dtype))
    memory = 2 * weights + of_optimizer + unchanged
    on_disk = weights + of_optimizer
    if getattr(model, "ema", None) is not None:
        memory += 4 * trained
        on_disk += 4 * trained + weights  # the average, and once more as the weights to sample
    elif is_averaging(optimizer):
        on_disk += weights  # those that train, beside their average
    place = next(path for path in (logdir.absolute(), *logdir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    lines = [
        f"steps: {trainer.max_steps:,}, each of {per_step} subject samples",
        f"trained parameters: {trained:,}; frozen: {frozen:,}",
        f"memory: {_size(memory)} for weights, gradients and {class_of(optimizer).__name__}, "
        f"{_size(sum(images.nbytes for images in subjects))} for images; activations aside",
        f"disk: {_size(on_disk)} a full checkpoint, {_size(weights)} one of weights alone; {_size(free)} free",
    ]
    if isinstance(model, DreamBooth):
        lines.append(_arithmetic(data, model, trainer.max_steps * per_step))
    return "\n".join(lines)


def state_bytes(build: Callable[..., Optimizer], dtype: torch.dtype) -> float:
    """Bytes of the optimizer's state for each trained number, counted after a step on PROBE."""
    probe = torch.ones(PROBE, dtype=dtype, requires_grad=True)
    optimizer = build([{"params": [probe], "lr": 1e-3}])
    if is_averaging(build):
        optimizer.train()  # type: ignore[attr-defined]
    probe.grad = torch.full_like(probe, 0.1)
    optimizer.step()
    values = [value for state in optimizer.state.values() for value in state.values()]
    return sum(value.nbytes for value in values if torch.is_tensor(value)) / probe.numel()


def _arithmetic(data: DreamBoothData, model: DreamBooth, examples: int) -> str:
    """The arithmetic of a run on `examples` subject samples."""
    has_prior = model.prior_loss_weight > 0
    classes = [prior for prior in data.classes if has_prior and not prior.files]
    shapes = range(len(data.shapes))
    drawn = sum(data.prior_samples_beside(examples, prior, shape) for prior in classes for shape in shapes)
    sampling = prior_sampling(data.prior)
    work = arithmetic_of(model.model, sampling, data.size, drawn, examples, rows=2 if has_prior else 1)
    return f"arithmetic: {_flops(work.prior_samples)} for {drawn:,} prior samples, {_flops(work.training)} for training"


def _flops(count: float) -> str:
    return f"{count / 1e15:.3g} PFLOP" if count >= 1e14 else f"{count / 1e12:.3g} TFLOP"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
