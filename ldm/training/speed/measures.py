"""The measurements: each takes a job and returns rows, in its own process (`ldm.training.speed.worker`)."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from ldm.devices import DTYPES
from ldm.files import PROJECT
from ldm.formats.safe_loading import load_checkpoint
from ldm.methods.base_latents import BaseLatents
from ldm.training.speed.clock import CUDA, DEVICE, Row, StepClock, now, timed
from ldm.training.speed.drawing import shortcuts, txt2img
from ldm.training.speed.jobs import Job
from ldm.training.speed.on_paper import memory_without_data
from ldm.training.speed.opponents import OPPONENTS
from ldm.training.speed.setting_up import NO_CACHE, build, config_of
from ldm.training.step_callback import samples_per_step


def machine(job: Job) -> list[Row]:
    """The machine's rates of matrix products and memory copies, as a reference for the other groups."""
    rows = []
    # Without bf16 instructions a CPU needs 20 seconds for a product of side 2048.
    for dtype, side_on_a_cpu in ((torch.float32, 2048), (torch.bfloat16, 1024)):
        side = 8192 if CUDA else side_on_a_cpu
        row = timed(job, partial(square, torch.randn(side, side, device=DEVICE).to(dtype)), count_flops=False)
        rows.append({**row, "variant": f"matmul {side} {str(dtype).split('.')[1]}", "flops": 2 * side**3})
    source = torch.empty(2**30 if CUDA else 2**28, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    row = timed(job, lambda: target.copy_(source), count_flops=False)
    return [*rows, {**row, "variant": "copy (read + write)", "bytes": 2 * source.numel()}]


def square(a: torch.Tensor) -> torch.Tensor:
    """The matrix product of `a` [N, N] with itself."""
    return a @ a


def training_step(job: Job) -> list[Row]:
    """An optimizer step of main.py, including loss record, non-finite guard and progress bar."""
    data, model, trainer, folder = build(job, job.warm + job.repeats + 1)
    clock = StepClock(job)
    trainer.callbacks.append(clock)
    with folder:
        trainer.fit(model, data)
    samples = samples_per_step(data, trainer)
    return [{**clock.row, "images": samples}] if trainer.is_global_zero else []


def memory(job: Job) -> list[Row]:
    """Peak memory of all tensors in a short run.

    The run draws a chunk of prior samples, encodes the views, takes two steps, validates and draws sample images.
    Phases run in sequence, so one of each shows the peak of many.
    """
    if CUDA and job.gpu_gigabytes:
        # Where there is more memory, torch takes more of it, for faster convolutions.
        share = job.gpu_gigabytes * 1e9 / torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0))
    overrides = [
        "lightning.callbacks.checkpoint=null",
        "lightning.callbacks.validation.params.monitor=null",
        "lightning.callbacks.validation.params.num_timesteps=1",
        "lightning.callbacks.samples.params.steps=1",
        'lightning.callbacks.samples.params.prompts=["a photo of [V]"]',
        "data.params.prior.steps=1",
    ]
    # Two chunks, more than the steps need: the frozen copy stays in memory unless all are drawn at the start.
    chunk_size = config_of(job, overrides)["data"]["params"]["prior"]["chunk_size"]
    overrides.append(f"data.params.prior.count={2 * chunk_size}")
    data, module, trainer, folder = build(job, 2, overrides)
    start = now()
    with folder as name:
        if CUDA:
            trainer.fit(module, data)
            most = torch.cuda.max_memory_allocated()
        else:
            trace = Path(name) / "trace.json"
            held = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
            with torch.profiler.profile(profile_memory=True) as profiler:
                trainer.fit(module, data)
            profiler.export_chrome_trace(str(trace))
            events = (event.get("args", {}) for event in json.loads(trace.read_text())["traceEvents"])
            most = sum(held.values()) + max(event.get("Total Allocated", 0) for event in events)
    return [{"seconds": now() - start, "peak_bytes": most}]


def prior(job: Job) -> list[Row]:
    """One chunk of class-prior samples, drawn as in a run."""
    data, module, _, folder = build(job, 1)
    untrained = module.tuning.untrained(module.model, DTYPES[data.prior["precision"]])
    module.model.to(DEVICE)
    latents = BaseLatents(module.model, untrained)
    numbers = range(data.prior["chunk_size"])

    def draw() -> None:
        latents.draw_prior(data.concepts[0].prior_prompt, numbers, data.seed, data.prior, data.shapes[0])

    with folder:
        return [timed(job, draw, images=len(numbers))]


def checkpoint(job: Job) -> list[Row]:
    """Save a full state, compared with writing as many plain bytes, both synced to disk; then load it."""
    data, model, trainer, folder = build(job, 1)
    with folder as name:
        trainer.fit(model, data)
        path, plain = Path(name) / "state.ckpt", Path(name) / "plain"
        saved = timed(job, lambda: trainer.save_checkpoint(path), count_flops=False)
        size = path.stat().st_size
        content = torch.empty(min(size, 2**28), dtype=torch.uint8).random_().numpy().tobytes()

        def write() -> None:
            with open(plain, "wb", buffering=0) as file:
                for start in range(0, size, len(content)):
                    file.write(content[: size - start])
                os.fsync(file.fileno())

        written = timed(job, write, count_flops=False)
        plain.unlink()
        loaded = timed(job, lambda: load_checkpoint(path), count_flops=False)
    return [
        {**written, "variant": "as many plain bytes, synced", "bytes": size},
        {**saved, "variant": "save", "bytes": size},
        {**loaded, "variant": "load", "bytes": size},
    ]


def start_up(job: Job) -> list[Row]:
    """From the command to the end of the first step, against only importing the libraries.

    The first step comes after a single prior sample of one sampling step.
    """
    imports = (
        "import torch, pytorch_lightning, diffusers, transformers; from diffusers import AutoencoderKL, "
        "UNet2DConditionModel; from transformers import CLIPTextModel, CLIPTokenizer"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", imports], check=True)
    bare = time.perf_counter() - start
    one = [f"data.params.prior.{key}=1" for key in ("count", "chunk_size", "steps")]
    one += ["data.params.batch_size=1", "lightning.trainer.max_steps=1"]
    one += [f"lightning.callbacks.{name}=null" for name in ("validation", "samples")]
    return [
        {"variant": "bare imports", "seconds": bare},
        {
            "variant": "main.py to the end of its first step",
            "seconds": seconds_until(b"training: 1", job, one),
        },
    ]


def seconds_until(text: bytes, job: Job, overrides: Sequence[str] = ()) -> float:
    """Seconds from starting main.py until it prints `text` on stderr; then it is killed."""
    with tempfile.TemporaryDirectory() as logs:
        arguments = ["main.py", "--base", *job.configs, "-l", logs, NO_CACHE, *job.overrides, *overrides]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=PROJECT, stderr=subprocess.PIPE)
        assert process.stderr is not None
        seen = b""
        while text not in seen:
            piece = os.read(process.stderr.fileno(), 65_536)
            if not piece:
                raise RuntimeError(f"main.py ended before it printed {text!r}: {seen.decode()[-2000:]}")
            seen += piece
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return seconds


MEASURES: dict[str, Callable[[Job], list[Row]]] = {
    function.__name__: function
    for function in (
        machine,
        training_step,
        *OPPONENTS,
        memory,
        memory_without_data,
        prior,
        txt2img,
        shortcuts,
        checkpoint,
        start_up,
    )
}
"""Measurements by the name in `Job.measure`."""
