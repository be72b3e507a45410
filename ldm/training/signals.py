"""Handling of SIGTERM, Ctrl-C and SIGUSR1 during a run."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.errors import EXIT_INTERRUPTED, EXIT_RESUME_ME
from ldm.training.launch import local_rank

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Signals(Callback):
    """Installs the process's signal handlers for a `with` block.

    After `defer`, a signal during training is only recorded, and a callback acts on it after the optimizer step; a
    second Ctrl-C quits at once. Before and after training everything is saved already, so SIGTERM and Ctrl-C end
    the process at once and SIGUSR1 does nothing.
    """

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.stopped = False
        """Whether a signal ended training before its last step."""
        self._deferred = False
        self._training = False
        self._received = 0
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.getsignal(number) for number in self.handled}
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Only record signals during training. The caller must call `take` after every step."""
        self._deferred = True

    def take(self) -> int:
        """The strongest signal since the last call: SIGTERM (which Ctrl-C counts as), SIGUSR1, or 0."""
        received, self._received = self._received, 0
        return received

    def stop(self, trainer: Trainer) -> None:
        """End training after this step, because of a signal; everything is saved."""
        self.stopped = True
        trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Replace Lightning's handlers, which communicate with other processes inside the handler.
        self._install()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int
    ) -> None:
        self._training = self._deferred

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False

    def _install(self) -> None:
        for number in self.handled:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            sys.exit(EXIT_INTERRUPTED)
        if self._training:
            self._interrupted |= number == signal.SIGINT
            action = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
            self._received = strongest([self._received, int(action)])
        elif number != signal.SIGUSR1:
            if local_rank() > 0:
                os.kill(os.getppid(), signal.SIGTERM)  # otherwise the first process would wait for this one
            sys.exit(EXIT_RESUME_ME)


def strongest(signals: Sequence[int]) -> int:
    """SIGTERM if it is among `signals`, or else SIGUSR1, or 0 for none; their numbers differ between systems."""
    return max(signals, key=(0, signal.SIGUSR1, signal.SIGTERM).index)


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; it would wait half an hour otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
