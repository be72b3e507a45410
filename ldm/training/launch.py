"""How a run's processes are started, and how they connect before anything is written.

Either Lightning starts the others from the first process when that is ready to train, or an external launcher
(torchrun, srun, jsrun, mpirun) starts all of them at once.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from ldm import processes
from ldm.errors import UserError, say

T = TypeVar("T")

FOLDER_VARIABLE = "DREAMBOOTH_RUN_FOLDER"
"""Passes the run folder and the step to resume from to the processes that Lightning starts."""

NOTICE_AFTER = 20.0
"""Seconds of waiting for the other processes before a message says so."""


@dataclass(frozen=True)
class Launch:
    """How this process was started, and its rank."""

    environment: ClusterEnvironment
    """Lightning's class for the launcher."""
    rank: int
    """This process's rank; if Lightning starts the others, its rank on this node."""
    external: bool
    """Whether torchrun or a cluster's launcher started all processes; otherwise Lightning starts the others."""

    @classmethod
    def of_this_process(cls) -> "Launch":
        """Detect the launcher by environment variables, as Lightning does. Raises UserError if they are wrong."""
        try:
            for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
                if kind.detect() and (kind is not SLURMEnvironment or _srun_started_several()):
                    # Our own handlers save and stop; requeueing is up to the job script.
                    options = {"auto_requeue": False} if kind is SLURMEnvironment else {}
                    environment = kind(**options)
                    return cls(environment, environment.global_rank(), external=True)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"this job's launcher: {' '.join(str(error).split())}") from error
        return cls(LightningEnvironment(), local_rank(), external=False)

    @property
    def by_lightning(self) -> bool:
        """Whether the run's first process started this one, through Lightning."""
        return not self.external and FOLDER_VARIABLE in os.environ and self.rank > 0

    @property
    def is_first(self) -> bool:
        """Whether this process creates the run folder, writes its files and prints messages."""
        return self.rank == 0

    def meet(self) -> None:
        """Connect to the other processes if a launcher started them; a signal ends the wait. Raises UserError."""
        environment = self.environment
        if not self.external or environment.world_size() == 1:
            return
        count = environment.world_size()
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        message = f"waiting at {address} for {count} processes in all; are all of them started?"
        notice = threading.Timer(NOTICE_AFTER, say, [message])
        notice.daemon = True
        notice.start()
        try:
            # Lightning uses an existing process group.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            processes.interruptible(_join, backend, self.rank, count)
        except (dist.DistError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the {count} processes of this job cannot connect at {address} ({reason});"
                " set MASTER_ADDR and MASTER_PORT to another address"
            ) from error
        finally:
            notice.cancel()

    def on_first(self, act: Callable[..., T], *arguments: object) -> T | None:
        """`act(*arguments)` on the first process only; if it raises UserError, all do (`processes.agreed`)."""
        return processes.agreed(act, *arguments) if self.is_first else processes.agreed(lambda: None)

    @contextlib.contextmanager
    def shared(self, folder: Path | None, step: int | None) -> Iterator[tuple[Path, int | None]]:
        """The first process's `folder` and `step`, on every process."""
        if self.external:
            yield processes.interruptible(processes.gather, (folder, step))[0]
        elif self.by_lightning:
            known_folder, known_step = json.loads(os.environ[FOLDER_VARIABLE])
            yield Path(known_folder), known_step
        else:
            assert folder is not None
            os.environ[FOLDER_VARIABLE] = json.dumps([str(folder), step])
            try:
                yield folder, step
            finally:
                del os.environ[FOLDER_VARIABLE]

    def check(self, trainer: Trainer) -> None:
        """Raise UserError if `trainer` expects another number of processes than was started: it would hang."""
        expected = f"lightning.trainer.devices ({trainer.num_devices}) x num_nodes ({trainer.num_nodes})"
        if self.external:
            started = self.environment.world_size()
            if started != trainer.world_size:
                raise UserError(
                    f"{expected} is {trainer.world_size}, but the launcher started {started} processes"
                )
            try:
                self.environment.validate_settings(trainer.num_devices, trainer.num_nodes)
            except ValueError as error:
                raise UserError(f"config lightning.trainer: {error}") from error
        elif trainer.num_nodes > 1:
            raise UserError(f"{expected}: start a run on several nodes with srun or torchrun")
        elif trainer.world_size > 1 and "LOCAL_RANK" in os.environ and not self.by_lightning:
            raise UserError(
                "LOCAL_RANK is set by an unknown launcher: start with torchrun or srun, or unset it"
            )


def local_rank() -> int:
    """This process's rank on its node, as set by torchrun or Lightning."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _srun_started_several() -> bool:
    """Whether srun started several tasks; a single task is an ordinary process, which may start others."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _join(backend: str, rank: int, world_size: int) -> None:
    dist.init_process_group(backend, rank=rank, world_size=world_size)
