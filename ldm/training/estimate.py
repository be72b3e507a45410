"""What a run would do and take, for `main.py --train false`."""

import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer


def estimate(data: Any, model: LightningModule, trainer: Trainer, logdir: Path) -> str:
    """A few lines: steps, samples, trained parameters, memory of the training state, disk of its checkpoints.

    logdir: where run folders are made, whether it exists yet or not.
    """
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    per_step = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    state = 12 * trained  # fp32 weights and AdamW's two moments
    images = getattr(data, "subject", None)  # the embedded world's pictures stay on the disk
    place = next(path for path in (logdir.absolute(), *logdir.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    lines = [
        f"steps: {trainer.max_steps:,}, each of {per_step} subject samples",
        f"trained parameters: {trained:,}; frozen: {frozen:,}",
        f"memory: {_size(state + 4 * (trained + frozen))} for weights, gradients and AdamW, "
        f"{_size(images.nbytes if images else 0)} for images; activations aside",
        f"disk: {_size(state)} a full checkpoint, {_size(4 * trained)} one of weights alone; {_size(free)} free",
    ]
    return "\n".join(lines)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
