"""Who started this process, and how all processes of a run meet before anything is written.

A run's processes come from Lightning, which starts them from the first one when that is ready to train, or from
outside: torchrun, srun, jsrun or mpirun start all of them at once.
"""

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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
"""How the first process tells those that Lightning starts where the run is, and from which step it goes on."""

NOTICE_AFTER = 20.0
"""Seconds of waiting for the other processes after which this one says so."""


@dataclass(frozen=True)
class Launch:
    """This process's place among the run's."""

    environment: ClusterEnvironment
    """Lightning's view of what started the process."""
    rank: int
    """This process's number, from 0; of those on this node, where Lightning starts them."""
    from_outside: bool
    """Whether torchrun or a cluster's launcher started all processes; else Lightning starts the others."""

    @classmethod
    def of_this_process(cls) -> "Launch":
        """As Lightning finds it, by what the launcher left in the environment. Raises UserError where that is amiss."""
        try:
            for kind in (TorchElasticEnvironment, SLURMEnvironment, LSFEnvironment, MPIEnvironment):
                if kind.detect() and (kind is not SLURMEnvironment or _srun_started_several()):
                    # Our own handlers save and stop; requeueing is the job script's.
                    options = {"auto_requeue": False} if kind is SLURMEnvironment else {}
                    environment = kind(**options)
                    return cls(environment, environment.global_rank(), from_outside=True)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"this job's launcher: {' '.join(str(error).split())}") from error
        return cls(LightningEnvironment(), local_rank(), from_outside=False)

    @property
    def by_lightning(self) -> bool:
        """Whether the run's first process has started this one, through Lightning."""
        return not self.from_outside and FOLDER_VARIABLE in os.environ and self.rank > 0

    @property
    def is_first(self) -> bool:
        """Whether this process leads the run: makes its folder, writes its files, talks to the user."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait for the other processes, where they come from outside; a signal ends the wait. Raises UserError."""
        environment = self.environment
        if not self.from_outside or environment.world_size() == 1:
            return
        count = environment.world_size()
        os.environ["MASTER_ADDR"] = environment.main_address
        os.environ["MASTER_PORT"] = str(environment.main_port)
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        words = f"waiting for the other processes of {count} at {place}; are all of them started?"
        notice = threading.Timer(NOTICE_AFTER, say, [words])
        notice.daemon = True
        notice.start()
        try:
            # Lightning takes up a process group that exists.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            processes.interruptible(_join, backend, self.rank, count)
        except (dist.DistError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the {count} processes of this job cannot meet at {place} ({reason});"
                " MASTER_ADDR and MASTER_PORT choose another place"
            ) from error
        finally:
            notice.cancel()

    def lead(self, act: Callable[..., T], *arguments: Any) -> T | None:
        """`act(*arguments)` on the first process alone; see `processes.agreed`."""
        return processes.agreed(act, *arguments) if self.is_first else processes.agreed(lambda: None)

    @contextlib.contextmanager
    def shared(self, folder: Path | None, step: int | None) -> Iterator[tuple[Path, int | None]]:
        """The first process's `folder` and `step`, on every process."""
        if self.from_outside:
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
        """Raise UserError where `trainer` expects other processes than there are: some would wait for ever."""
        asked = f"lightning.trainer.devices ({trainer.num_devices}) x num_nodes ({trainer.num_nodes})"
        if self.from_outside:
            started = self.environment.world_size()
            if started != trainer.world_size:
                raise UserError(
                    f"{asked} is {trainer.world_size}, and the launcher started {started} processes"
                )
            try:
                self.environment.validate_settings(trainer.num_devices, trainer.num_nodes)
            except ValueError as error:
                raise UserError(f"config lightning.trainer: {error}") from error
        elif trainer.num_nodes > 1:
            raise UserError(f"{asked}: start the processes of several nodes with srun or torchrun")
        elif trainer.world_size > 1 and "LOCAL_RANK" in os.environ and not self.by_lightning:
            raise UserError(
                "LOCAL_RANK is set by a launcher that is not known here: start with torchrun or srun, or unset it"
            )


def local_rank() -> int:
    """This process's number on its node, by what torchrun or Lightning says."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _srun_started_several() -> bool:
    """One task of SLURM's is a process as any other, which may start more."""
    return "SLURM_PROCID" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _join(backend: str, rank: int, world_size: int) -> None:
    dist.init_process_group(backend, rank=rank, world_size=world_size)
