"""A Lightning callback that counts optimizer steps."""

from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer


class StepCallback(Callback):
    """Calls `on_step` once after every optimizer step, never in the middle of gradient accumulation."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seen_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        if trainer.global_step > self._seen_step:
            self._seen_step = trainer.global_step
            self.on_step(trainer, pl_module)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called after optimizer step `trainer.global_step`, counted from 1."""

    def after_export(self, trainer: Trainer) -> None:
        """After the trained model is written, on the first process alone."""

    def check_result(self, trainer: Trainer) -> None:
        """Called after the last step, before the model is exported. Raises UserError if that would be useless."""


def samples_per_step(data: LightningDataModule, trainer: Trainer) -> int:
    """Subject samples of an optimizer step, over micro-batches and processes."""
    return int(data.batch_size * trainer.accumulate_grad_batches * trainer.world_size)


def is_due(step: int, every_steps: int | None, max_steps: int) -> bool:
    """Whether an action for every `every_steps` optimizer steps, and the last one, is due after `step`."""
    return every_steps is not None and every_steps > 0 and (step % every_steps == 0 or step == max_steps)
