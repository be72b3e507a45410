"""Progress of training on the console, and throughput for the loggers."""

import contextlib
import time
from collections.abc import Mapping

from pytorch_lightning import LightningModule, Trainer
from torch.optim import Optimizer

from ldm.console import run_bar
from ldm.errors import say
from ldm.training.loggers import log_metrics
from ldm.training.loss_record import LossRecord
from ldm.training.messages import duration
from ldm.training.step_callback import StepCallback, is_due, samples_per_step
from ldm.values import Count

PACE_AFTER = 10
"""Optimizer steps before a line estimates the remaining time."""

SUBJECTS_SHOWN = 3
"""Subjects whose losses fit on the bar."""


class Progress(StepCallback):
    """One bar for the whole run: step, losses, rate, time left, and the phase between steps.

    Throughput, learning rates and gradient norm go to the loggers.
    """

    def __init__(self, log_every_steps: Count = 10, record: LossRecord | None = None):
        """log_every_steps: how often the losses on the bar and the loggers' curves are updated.

        record: provides the losses for the bar.
        """
        self.log_every_steps = log_every_steps
        self._record = record
        self._stack = contextlib.ExitStack()
        self._rates: dict[str, float] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Prior samples are drawn before the first step, and show on the bar.
        bar = run_bar(trainer.max_steps, "training", "step", disable=not trainer.is_global_zero)
        self.bar = self._stack.enter_context(bar)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first_step = step = trainer.global_step
        self._announced = False
        self._since = (step, time.monotonic())
        self._start_rate(step)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if self._is_due(trainer, trainer.global_step + 1):
            groups = {
                group.get("name", str(number)): group for number, group in enumerate(optimizer.param_groups)
            }
            self._rates = {f"train/learning_rate/{name}": group["lr"] for name, group in groups.items()}
            if hasattr(pl_module, "gradient_norm"):
                self._rates["train/gradient_norm"] = float(pl_module.gradient_norm())

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self._first_step + 1:
            self._start_rate(step)
        else:
            self.bar.update(step - self.bar.n)
        if not self._is_due(trainer, step):
            return
        if self._record is not None:
            self.bar.set_postfix_str(losses_of(self._record.last_row))
        (before, then), self._since = self._since, (step, time.monotonic())
        pace = (step - before) / (self._since[1] - then)
        batch = samples_per_step(trainer.datamodule, trainer)
        log_metrics(trainer, {"throughput/samples_per_second": pace * batch, **self._rates}, step)
        taken = step - self._first_step
        if (
            not self._announced
            and taken >= PACE_AFTER
            and trainer.is_global_zero
            and step < trainer.max_steps
        ):
            self._announced = True
            left = duration((time.monotonic() - self._began) / (taken - 1) * (trainer.max_steps - step))
            say(f"about {left} left at the pace of steps 2 to {taken}")

    def _start_rate(self, step: int) -> None:
        """Leave what came before, as drawing the first prior samples and compiling, out of the rate."""
        self._began = time.monotonic()
        if not self.bar.disable:
            self.bar.initial = self.bar.n = self.bar.last_print_n = step
            self.bar.unpause()
            self.bar.refresh()

    def _is_due(self, trainer: Trainer, step: int) -> bool:
        return is_due(step, self.log_every_steps, trainer.max_steps)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stack.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stack.close()  # a run with no step left has no train end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stack.close()


def losses_of(row: Mapping[str, float]) -> str:
    """Subject and prior loss of a row of the loss record, or `loss` if it has neither.

    With several subjects, also the own losses of the first few.
    """
    names = [name for name in ("subject_loss", "prior_loss") if name in row] or [
        n for n in row if n == "loss"
    ]
    own = [name for name in row if name.startswith("subject_loss_")][:SUBJECTS_SHOWN]
    return ", ".join(
        f"{name.removesuffix('_loss').removeprefix('subject_loss_')} {row[name]:.4f}" for name in names + own
    )
