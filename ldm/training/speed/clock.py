"""Time, FLOPs and memory of calls and training steps in this process."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from ldm.training.arithmetic import flops_of
from ldm.training.speed.jobs import Job
from ldm.training.step_callback import StepCallback

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")

Row = dict[str, object]
"""Seconds per repeat, images and FLOPs or bytes per repeat, peak memory."""


def timed(job: Job, act: Callable[[], object], images: int = 0, count_flops: bool = True) -> Row:
    """Mean seconds of `act` over the job's repeats, its FLOPs, and the process's peak memory."""
    row: Row = {"images": images}
    for _ in range(job.warm):
        act()
    start = now()
    for _ in range(job.repeats):
        act()
    row |= {"seconds": (now() - start) / job.repeats, "peak_bytes": peak_bytes()}
    if count_flops:
        row["flops"] = flops_of(act)
    return row


def now() -> float:
    """The clock in seconds, after the device has finished its queued work."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """Peak memory so far: of the GPU's allocator, or without a GPU of the whole process with its libraries."""
    if CUDA:
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class StepClock(StepCallback):
    """Times the job's optimizer steps after its warm-up steps, then counts the FLOPs of one more step."""

    def __init__(self, job: Job):
        self.warm, self.repeats, self.trace = job.warm, job.repeats, job.trace
        self.row: Row = {}
        self.flops = FlopCounterMode(display=False)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        if step == self.warm:
            if self.trace:
                self.profiler = torch.profiler.profile()
                self.profiler.__enter__()
            self.start = now()
        elif step == self.warm + self.repeats:
            self.row = {"seconds": (now() - self.start) / self.repeats, "peak_bytes": peak_bytes()}
            if self.trace:
                self.profiler.__exit__(None, None, None)
                write_profile(self.profiler, Path(self.trace))
            self.flops.__enter__()
        elif step == self.warm + self.repeats + 1:
            self.flops.__exit__(None, None, None)
            if pl_module.model.graphs is None:  # what a graph computes is not seen
                self.row["flops"] = self.flops.get_total_flops() * trainer.world_size


def write_profile(profiler: torch.profiler.profile, path: Path) -> None:
    """Write a Chrome trace, and beside it a table of the slowest operators."""
    profiler.export_chrome_trace(str(path))
    order = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
    path.with_suffix(".txt").write_text(profiler.key_averages().table(sort_by=order, row_limit=40))
