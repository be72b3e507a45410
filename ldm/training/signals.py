"""What a run does with SIGTERM, Ctrl-C and SIGUSR1, from its start to its end."""

import ctypes
import os
import signal
import sys
from types import FrameType
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from ldm.errors import EXIT_RESUME_ME

EXIT_SECOND_INTERRUPT = 130
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Signals(Callback):
    """Holds the process's signal handlers inside a `with` block.

    While training, a signal is only noted in `asked`, and Checkpointing acts on it when the optimizer step is
    done; a second Ctrl-C quits at once. Before and after that everything there is lies on the disk already,
    so SIGTERM and Ctrl-C end the process at once, and SIGUSR1 has nothing to save.
    """

    handled = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

    def __init__(self) -> None:
        self.heeded = False
        """Whether someone acts on `asked`; Checkpointing sets it."""
        self.training = False
        self.asked = 0
        self._interrupted = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._before = {number: signal.getsignal(number) for number in self.handled}
        self._install()
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take(self) -> int:
        """The strongest signal since the last call: SIGTERM (which Ctrl-C counts as), SIGUSR1, or 0."""
        asked, self.asked = self.asked, 0
        return asked

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning has put its own in place, which talk to the other processes from inside the handler.
        self._install()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.training = self.heeded

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.training = False

    def _install(self) -> None:
        for number in self.handled:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            sys.exit(EXIT_SECOND_INTERRUPT)
        if self.training:
            self._interrupted |= number == signal.SIGINT
            wish = signal.SIGUSR1 if number == signal.SIGUSR1 else signal.SIGTERM
            self.asked = max(self.asked, int(wish))  # SIGTERM's number is above SIGUSR1's
        elif number != signal.SIGUSR1:
            if is_started_process():
                os.kill(os.getppid(), signal.SIGTERM)  # the first process would wait for this one
            sys.exit(EXIT_RESUME_ME)


def is_started_process() -> bool:
    """Whether this is one of the processes that the first one, or torchrun, started."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent dies: it would wait for it for half an hour."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
