"""Checkpoints that are whole or absent: when they are written, and which one a resume takes."""

import os
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.plugins.io import CheckpointIO

from ldm import processes
from ldm.errors import UserError
from ldm.formats.checkpoint_files import LAST, age
from ldm.formats.safe_loading import load_checkpoint
from ldm.training.step_callback import StepCallback, is_due

TEMPORARY = ".tmp"


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the final name, syncs, renames: a death at any moment leaves the old file or the new one.

    A write that fails (a full disk) is kept in `error` rather than raised: the other processes already wait
    at Lightning's barrier behind the save.
    """

    def __init__(self, stamp: Mapping[str, Any]):
        """stamp: plain values put into every file, such as the run's config."""
        self.stamp = dict(stamp)
        self.error: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}{TEMPORARY}")
        self.error = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                torch.save({**checkpoint, **self.stamp}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        except (OSError, RuntimeError) as error:  # torch reports some failed writes as RuntimeError
            self.error = error
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return load_checkpoint(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


class Checkpointing(StepCallback):
    """Saves the full state as `last.ckpt` on a schedule, at the end, and when a signal asks for it.

    SIGTERM and the first Ctrl-C save and stop; a second Ctrl-C quits at once; SIGUSR1 saves and goes on.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        every_minutes: float | None = None,
        keep: int = 1,
        milestone_every_steps: int | None = None,
        check_signals_every_steps: int = 1,
    ):
        """keep: full states kept, the newest first; milestone_every_steps: weights alone, kept for good.

        check_signals_every_steps: how often several processes ask each other whether one got a signal.
        """
        if keep < 1:
            raise UserError(f"lightning.callbacks.checkpoint.params.keep is {keep}: it must be at least 1")
        self.every_steps = every_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.milestone_every_steps = milestone_every_steps
        self.check_signals_every_steps = check_signals_every_steps
        self.stopped = False
        self._signal = 0
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.folder = Path(trainer.default_root_dir) / "checkpoints"
        if trainer.is_global_zero:
            remove_temporaries(self.folder)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._note_signal)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        asked = self._signal_of_any_process(step)
        last = step == trainer.max_steps
        if last or asked or is_due(step, self.every_steps, trainer.max_steps) or self._minutes_passed():
            self._save(trainer, required=last or asked == signal.SIGTERM)
        if is_due(step, self.milestone_every_steps, trainer.max_steps):
            trainer.save_checkpoint(self.folder / f"weights-{step:06d}.ckpt", weights_only=True)
        if asked == signal.SIGTERM and not last:
            self.stopped = True
            trainer.should_stop = True

    def _save(self, trainer: Trainer, required: bool) -> None:
        io = trainer.strategy.checkpoint_io
        last = self.folder / LAST
        if trainer.is_global_zero and self.keep > 1 and last.is_file():
            self._keep_old(last)
        trainer.save_checkpoint(last)
        self._saved_at = time.monotonic()
        if io.error is not None:
            problem = f"checkpoint {last}: cannot be written ({io.error})"
            if required:
                raise UserError(f"{problem}; free some space and resume, the last good checkpoint is kept")
            warnings.warn(f"{problem}; the last good checkpoint is kept, and training goes on", stacklevel=2)

    def _keep_old(self, last: Path) -> None:
        """Give the present last.ckpt a second name, and drop what is older than `keep` states."""
        names = sorted(self.folder.glob("state-*.ckpt"), key=age)
        os.replace(_link(last, last.with_name(".link" + TEMPORARY)), self.folder / f"state-{time.time_ns()}.ckpt")
        for old in names[: max(len(names) + 1 - (self.keep - 1), 0)]:
            old.unlink(missing_ok=True)

    def _minutes_passed(self) -> bool:
        if not self.every_minutes:
            return False
        passed = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return processes.gather(passed)[0]  # clocks differ: the first process decides

    def _note_signal(self, number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            # The second Ctrl-C finds Python's own handler, and quits at once.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            number = signal.SIGTERM
        self._signal = max(self._signal, number)  # SIGTERM is above SIGUSR1

    def _signal_of_any_process(self, step: int) -> int:
        if processes.several() and step % self.check_signals_every_steps:
            return 0
        number, self._signal = max(processes.gather(self._signal)), 0
        return number


def remove_temporaries(folder: Path) -> None:
    """Remove what a death in mid-save left behind."""
    for path in folder.glob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, name: Path) -> Path:
    name.unlink(missing_ok=True)
    os.link(path, name)
    return name
