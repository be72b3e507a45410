"""What a run would do and cost, for `main.py --train false`."""

import shutil
from pathlib import Path

from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from ldm.data.datamodule import DreamBoothData
from ldm.methods.base_latents import prior_sampling
from ldm.methods.dreambooth import DreamBooth
from ldm.training.arithmetic import arithmetic_of


def estimate(data: LightningDataModule, model: LightningModule, trainer: Trainer, logdir: Path) -> str:
    """A few lines: steps, samples, trained parameters, memory of the training state, disk, arithmetic.

    logdir: for run folders; need not exist yet.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    per_step = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    state = 12 * trained  # fp32 weights and AdamW's two moments
    subjects = getattr(data, "subjects", ())  # the embedded world's pictures stay on the disk
    on_disk = state
    if getattr(model, "ema", None) is not None:
        state += 4 * trained
        on_disk += 8 * trained  # the average, and once more as the weights to sample
    place = next(path for path in (logdir.absolute(), *logdir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    lines = [
        f"steps: {trainer.max_steps:,}, each of {per_step} subject samples",
        f"trained parameters: {trained:,}; frozen: {frozen:,}",
        f"memory: {_size(state + 4 * (trained + frozen))} for weights, gradients and AdamW, "
        f"{_size(sum(images.nbytes for images in subjects))} for images; activations aside",
        f"disk: {_size(on_disk)} a full checkpoint, {_size(4 * trained)} one of weights alone; {_size(free)} free",
    ]
    if isinstance(model, DreamBooth):
        lines.append(_arithmetic(data, model, trainer.max_steps * per_step))
    return "\n".join(lines)


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
