"""The loss curve: `metrics.jsonl` in the run folder, one row per optimizer step."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm import processes
from ldm.training.loggers import flush_loggers, log_metrics
from ldm.training.rows import append_rows, checked_rows, truncate_rows
from ldm.training.step_callback import StepCallback, is_due
from ldm.values import Count


def _losses(keys: Sequence[str], values: Sequence[Tensor]) -> dict[str, float]:
    """Values [1] as they are, and [2] as sum over count, where there is a count."""
    pairs = [(key, value.tolist()) for key, value in zip(keys, values, strict=True)]
    return {
        key: value[0] if len(value) == 1 else value[0] / value[1]
        for key, value in pairs
        if len(value) == 1 or value[1]
    }


class LossRecord(StepCallback):
    """Averages the results of `training_step` over micro-batches and processes; writes and logs one row per step.

    Values stay on the device until a flush, so that steps do not wait for the device.
    """

    def __init__(self, flush_every_steps: Count = 10):
        """flush_every_steps: how often rows are read from the device, written and logged.

        A loss is a number, or [sum, count] if its number of examples varies over micro-batches; a step without any
        has no such column.
        """
        self.flush_every_steps = flush_every_steps
        self.pending: list[tuple[int, dict[str, Tensor]]] = []
        self._micro_batches: list[dict[str, Tensor]] = []
        self.last_row: dict[str, float] = {}
        self._unwritten: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.path = Path(trainer.default_root_dir) / "metrics.jsonl"
        if trainer.is_global_zero:
            truncate_rows(self.path, trainer.global_step)
            self._write([])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        # Lightning has divided "loss", and only that, by the number of micro-batches for the backward pass.
        scale = trainer.accumulate_grad_batches
        values = {k: v.detach() * (scale if k == "loss" else 1) for k, v in outputs.items()}
        self._micro_batches.append(values)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        micro_batches, self._micro_batches = self._micro_batches, []
        means = {key: torch.stack([m[key] for m in micro_batches]).mean(dim=0) for key in micro_batches[0]}
        self.pending.append((trainer.global_step, means))
        if is_due(trainer.global_step, self.flush_every_steps, trainer.max_steps):
            self.flush(trainer)

    def flush(self, trainer: Trainer) -> None:
        """Write and log all pending rows. All processes must call it at the same step."""
        if not self.pending:
            return
        keys = list(self.pending[0][1])
        lengths = [self.pending[0][1][key].numel() for key in keys]
        values = torch.stack(
            [torch.cat([means[key].float().flatten() for key in keys]) for _, means in self.pending]
        )
        if processes.several():
            dist.all_reduce(values)
            values /= processes.world_size()
        steps, self.pending = [step for step, _ in self.pending], []
        rows: list[dict[str, Any]] = [
            {"step": step, **_losses(keys, row.split(lengths))}
            for step, row in zip(steps, values.cpu(), strict=True)
        ]
        self.last_row = rows[-1]
        if trainer.is_global_zero:
            self._write(rows)
        for row in rows:
            log_metrics(trainer, {f"train/{key}": row[key] for key in keys if key in row}, row["step"])

    def _write(self, rows: list[dict[str, float]]) -> None:
        self._unwritten += rows
        try:
            append_rows(self.path, self._unwritten)
        except OSError as error:
            step = self._unwritten[-1]["step"] if self._unwritten else 0
            warnings.warn(
                f"{self.path} cannot be written ({error.strerror}) at step {step}; its rows are kept and written as"
                " soon as possible",
                stacklevel=2,
            )
        else:
            self._unwritten = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        flush_loggers(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The rows up to a checkpoint's step must be on disk, or in the checkpoint.
        self.flush(trainer)
        checkpoint["unwritten_rows"] = self._unwritten

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._unwritten = checked_rows(checkpoint.get("unwritten_rows", []))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._micro_batches = []
