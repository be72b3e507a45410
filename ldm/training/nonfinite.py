"""Skips updates whose loss or gradient is not finite, in every precision."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ldm import processes
from ldm.errors import UserError
from ldm.formats.checkpoint_files import what_is_kept
from ldm.training.loggers import log_metrics
from ldm.training.step_callback import StepCallback, is_due
from ldm.values import Count


class SkipNonFinite(StepCallback):
    """Leaves weights and optimizer state unchanged if a loss or a gradient is infinite or NaN.

    A skipped step counts as a step, so sample numbers, intervals and the learning-rate schedule remain functions
    of the step alone. With several processes, a bad value on one skips the step on all.
    """

    def __init__(self, stop_after: Count = 20, read_every_steps: Count = 10):
        """stop_after: consecutive skipped steps that end the run; fp16 skips some at first to find its loss scale.

        read_every_steps: how often the count is read from the device, where a fused optimizer keeps it.
        """
        self.stop_after = stop_after
        self.read_every_steps = read_every_steps
        self.counts = torch.zeros(2)
        """Steps skipped in all, and consecutively up to now; on the training device."""
        self.skipped = 0
        self._groups: list[dict[str, Any]] = []
        """Settings of the optimizer's groups before a step that is skipped."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.counts = self.counts.to(pl_module.device)
        self._bad = torch.zeros((), dtype=torch.bool, device=pl_module.device)
        self._on_device = all(group.get("fused") for o in trainer.optimizers for group in o.param_groups)
        # Reading makes the host wait for the device; unfused updates wait anyway, and on a CPU there is no wait.
        waits = self._on_device and pl_module.device.type != "cpu"
        self._every = self.read_every_steps if waits else 1

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._bad = self._bad | ~torch.isfinite(loss.detach())

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Runs after gradients are summed over processes and unscaled, before they are clipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # DreamBooth computes the norm once for this and for clipping: it takes 5 % of a step on a CPU.
        norm_of = getattr(pl_module, "gradient_norm", lambda: get_total_norm([p.grad for p in parameters]))
        bad = (self._bad | ~torch.isfinite(norm_of())).float()
        if processes.several():
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        self._bad = torch.zeros_like(self._bad)
        self.counts = torch.stack([self.counts[0] + bad, (self.counts[1] + 1) * bad])
        if self._on_device:
            # Fused kernels read it, and skip the update if it is 1.
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bad:
            for parameter in parameters:
                parameter.grad = None  # optimizers skip parameters without a gradient
            # Schedule-free optimizers count steps in their groups; a group's rate is the schedule's.
            self._groups = [
                {key: value for key, value in group.items() if key not in ("params", "lr")}
                for group in optimizer.param_groups
            ]

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._groups:
            for group, before in zip(trainer.optimizers[0].param_groups, self._groups, strict=True):
                group.update(before)
            self._groups = []
        if is_due(trainer.global_step, self._every, trainer.max_steps):
            self._read(trainer)

    def check_result(self, trainer: Trainer) -> None:
        if self.skipped >= trainer.global_step > 0:
            raise UserError(
                f"all {self.skipped} updates were skipped (loss or gradient not finite), so nothing was learned: lower"
                " model.params.learning_rate, or train in bf16-mixed or 32-true"
            )

    def state_dict(self) -> dict[str, object]:
        return {"counts": self.counts.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts = state_dict["counts"]
        self.skipped = int(self.counts[0])

    def _read(self, trainer: Trainer) -> None:
        skipped, in_a_row = (int(count) for count in self.counts.tolist())
        new, self.skipped = skipped - self.skipped, skipped
        if not new:
            return
        step = trainer.global_step
        if trainer.is_global_zero:
            warnings.warn(
                f"step {step}: loss or gradient not finite; updates skipped: {new} new, {skipped} in all",
                stacklevel=2,
            )
        log_metrics(trainer, {"train/skipped_updates": skipped}, step)
        if in_a_row >= self.stop_after:
            kept = what_is_kept(Path(trainer.default_root_dir) / "checkpoints")
            raise UserError(
                f"step {step}: loss or gradient not finite for {in_a_row} steps in a row, so the run stops: lower"
                f" model.params.learning_rate, or train in bf16-mixed or 32-true; {kept}"
            )
