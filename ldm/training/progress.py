"""The progress bar of a run, in optimizer steps, and its throughput."""

import sys
import time

from pytorch_lightning import LightningModule, Trainer
from tqdm import tqdm

from ldm.training.loggers import log_metrics
from ldm.training.loss_record import LossRecord
from ldm.training.step_callback import StepCallback
from ldm.values import Count


class Progress(StepCallback):
    """One bar for the whole run: step, losses, remaining time; `throughput/samples_per_second` to the loggers."""

    def __init__(self, log_every_steps: Count = 10, record: LossRecord | None = None):
        """log_every_steps: how often the losses on the bar, and the logged throughput, are brought up to date.

        record: has the losses that the bar shows.
        """
        self.log_every_steps = log_every_steps
        self._record = record

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._since = (trainer.global_step, time.monotonic())
        self.bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            disable=not trainer.is_global_zero,
            file=sys.stderr,
        )

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.update(trainer.global_step - self.bar.n)
        if trainer.global_step % self.log_every_steps:
            return
        if self._record is not None:
            losses = {
                k.removesuffix("_loss"): f"{v:.4f}" for k, v in self._record.last_row.items() if k != "step"
            }
            self.bar.set_postfix(losses)
        step, then = self._since
        self._since = (trainer.global_step, time.monotonic())
        batch = trainer.datamodule.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        rate = (trainer.global_step - step) * batch / (self._since[1] - then)
        log_metrics(trainer, {"throughput/samples_per_second": rate}, trainer.global_step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if hasattr(self, "bar"):
            self.bar.close()
