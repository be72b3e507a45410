"""Checkpoints, written atomically: how and when."""

import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO
from torch import Tensor
from torch.nn.utils import get_total_norm

from ldm import processes
from ldm.console import phase
from ldm.errors import UserError
from ldm.files import replacing
from ldm.formats.checkpoint_files import LAST, older_states, state_name, step_in_name, what_is_kept
from ldm.formats.safe_loading import load_checkpoint
from ldm.training.averaged import averaged, trained_apart
from ldm.training.resume import link_or_copy, take_optimizer_settings
from ldm.training.signals import Signals, strongest
from ldm.training.step_callback import StepCallback, is_due
from ldm.values import Count, PositiveFloat

TRAINED = "training_state_dict"
"""Key of a full state whose `state_dict` is an average of the weights that train."""


class AtomicCheckpointIO(CheckpointIO):
    """Writes under a temporary name, syncs, renames: a crash at any moment leaves the old or the new file.

    A failed write (a full disk, values that are not finite) is kept in `problem` and not raised: the other
    processes already wait at Lightning's barrier after the save.
    """

    def __init__(self, facts: Mapping[str, object]):
        """facts: plain values stored in every checkpoint, such as the run's config."""
        self.facts = dict(facts)
        self.trained: dict[str, Tensor] = {}
        """The weights that training goes on from, where they are not its `state_dict`'s."""
        self.problem: str | None = None
        self.fatal = False

    def save_checkpoint(
        self, checkpoint: dict[str, object], path: str | Path, storage_options: object = None
    ) -> None:
        path, step = Path(path), checkpoint.get("global_step")
        self.problem, self.fatal = None, not is_finite(checkpoint)
        if self.fatal:
            self.problem = f"checkpoint {path} of step {step}: weights or optimizer state are not finite"
            return
        try:
            with replacing(path) as temporary, open(temporary, "wb") as file:
                apart = {TRAINED: self.trained} if self.trained else {}
                torch.save({**checkpoint, **self.facts, **apart}, file)
        except (OSError, RuntimeError) as error:
            # torch wraps the OSError that holds the reason in a RuntimeError.
            reason = getattr(error.__context__ or error, "strerror", None) or str(error).splitlines()[0]
            self.problem = f"checkpoint {path} of step {step} cannot be written ({reason})."

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> dict:
        content = load_checkpoint(path)
        # Lightning's max_time is for each start: a run that has used it up would stop again at once.
        content.get("callbacks", {}).pop("Timer", None)
        # What training goes on from, where that is not what the model is sampled with.
        if trained := content.pop(TRAINED, None):
            content["state_dict"] = trained
        return content

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def save(trainer: Trainer, path: Path, weights_only: bool = False, required: bool = False) -> bool:
    """Save on all processes; returns whether it worked. Raises UserError, on all of them, for values not finite.

    required: a failed write raises UserError too; otherwise it is a warning.
    """
    io = trainer.strategy.checkpoint_io
    io.trained = {} if weights_only else trained_apart(trainer, trainer.lightning_module)
    with phase("saving"), averaged(trainer):
        trainer.save_checkpoint(path, weights_only=weights_only)
    problem, fatal = processes.gather((io.problem, io.fatal))[0]  # only the first process writes
    if problem and fatal:
        raise UserError(f"{problem}, so it is not saved; start again with a lower learning rate")
    if problem and required:
        raise UserError(f"{problem} Free some space and --resume: {what_is_kept(path.parent)}")
    if problem and trainer.is_global_zero:
        warnings.warn(f"{problem} Training continues; {what_is_kept(path.parent)}", stacklevel=2)
    return problem is None


class Checkpointing(StepCallback):
    """Saves the full state as `last.ckpt` on a schedule, at the end of training, and after a signal.

    SIGTERM and the first Ctrl-C save and stop; SIGUSR1 saves and continues. Saves only after an optimizer step.
    """

    def __init__(
        self,
        every_steps: Count | None = None,
        every_minutes: PositiveFloat | None = None,
        keep: Count = 1,
        milestone_every_steps: Count | None = None,
        check_signals_every_steps: Count = 1,
        signals: Signals | None = None,
    ):
        """keep: number of newest full states kept; milestone_every_steps: saves only weights, never deleted.

        check_signals_every_steps: how often several processes check whether one of them got a signal.
        signals: receives them; without it a signal ends the run at once.
        """
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.milestone_every_steps = milestone_every_steps
        self.check_signals_every_steps = check_signals_every_steps
        self._signals = signals
        self._saved_at = time.monotonic()
        self._step_of_last: int | None = None
        """Step of last.ckpt; None if it is not known to be complete."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if self._signals:
            self._signals.defer()
        self._step_of_last = trainer.global_step if trainer.ckpt_path else None
        if trainer.ckpt_path:
            take_optimizer_settings(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Lightning counts micro-batches; an optimizer step must end at a multiple of accumulate_grad_batches.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        done = checkpoint["global_step"] * trainer.accumulate_grad_batches
        missing = done - progress["current"]["ready"]  # 0 unless accumulate_grad_batches was changed
        for counts in (progress["total"], progress["current"]):
            counts.update({key: count + missing for key, count in counts.items()})

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        received = self._signal_of_any_process(step)
        last, stop = step == trainer.max_steps, received == signal.SIGTERM
        if last or received or is_due(step, self.every_steps, trainer.max_steps) or self._minutes_passed():
            self._save(trainer, required=last or stop)
        if is_due(step, self.milestone_every_steps, trainer.max_steps):
            save(trainer, self.folder / f"weights-{step:06d}.ckpt", weights_only=True)
        if self._signals and stop and not last:
            self._signals.stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's max_time and other callbacks end training between two saves.
        if trainer.global_step not in (0, self._step_of_last):
            self._save(trainer, required=True)

    def _save(self, trainer: Trainer, required: bool) -> None:
        last = self.folder / LAST
        if trainer.is_global_zero and self.keep > 1 and self._step_of_last is not None:
            link_or_copy(last, self.folder / state_name(self._step_of_last))
        if save(trainer, last, required=required):
            self._step_of_last = trainer.global_step
        self._saved_at = time.monotonic()
        if trainer.is_global_zero:
            self._drop_old(trainer.global_step)

    def _drop_old(self, step: int) -> None:
        """Keep `keep` full states including `last.ckpt`, and no states of an abandoned run."""
        states = older_states(self.folder)
        kept = [path for path in states if step_in_name(path) < step][: self.keep - 1]
        for path in set(states) - set(kept):
            path.unlink()

    def _minutes_passed(self) -> bool:
        if not self.every_minutes:
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return processes.gather(passed)[0]  # clocks differ: the first process decides

    def _signal_of_any_process(self, step: int) -> int:
        if self._signals is None or (processes.several() and step % self.check_signals_every_steps):
            return 0
        return strongest(processes.gather(self._signals.take()))


def is_finite(checkpoint: Mapping[str, Any]) -> bool:
    """Whether every number of the weights and the optimizer's state is finite."""
    parts = (checkpoint.get("state_dict"), checkpoint.get("optimizer_states"))
    tensors = [t for part in parts for t in tensors_in(part) if t.is_floating_point() and t.numel()]
    if not tensors:
        return True
    return bool(torch.isfinite(get_total_norm(tensors, norm_type=float("inf"))))


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
