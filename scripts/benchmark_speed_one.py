"""Measure one thing in a process of its own, for scripts/benchmark_speed.py, which says what to measure as JSON.

    python scripts/benchmark_speed_one.py '[{"measure": "training_step", "configs": [...], ...}]' rows.json

Writes a JSON list of rows: seconds of one repeat, images and FLOPs in it, peak memory. Times
are means over `repeats` after `warm` untimed ones, the device's queue emptied before the clock is read.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from ldm import processes  # noqa: E402
from ldm.config import load_config  # noqa: E402
from ldm.devices import DTYPES  # noqa: E402
from ldm.methods.base_latents import BaseLatents  # noqa: E402
from ldm.training.run import build as build_run  # noqa: E402
from ldm.training.run import quiet  # noqa: E402
from ldm.training.step_callback import StepCallback  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
WITHOUT = [f"lightning.callbacks.{name}=null" for name in ("validation", "samples", "checkpoint")]
"""What a training step is measured without; loss record, guard and progress bar stay."""

Job = dict[str, Any]
Row = dict[str, Any]


def machine(job: Job) -> list[Row]:
    """The machine's own rates, to hold the others against: matrix product and copy."""
    side = 8192 if CUDA else 2048
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(side, side, device=DEVICE).to(dtype)
        row = timed(job, lambda a=a: a @ a, images=0)
        rows.append({**row, "variant": f"matmul {side} {str(dtype).split('.')[1]}", "flops": 2 * side**3})
    source = torch.empty(2**30 if CUDA else 2**28, dtype=torch.uint8, device=DEVICE).random_()
    target = torch.empty_like(source)
    row = timed(job, lambda: target.copy_(source), images=0)
    return [*rows, {**row, "variant": "copy (read + write)", "bytes": 2 * source.numel()}]


def training_step(job: Job) -> list[Row]:
    """An optimizer step of main.py, its loss record, guard and progress bar included."""
    data, model, trainer, folder = build(job, job["warm"] + job["repeats"] + 1)
    clock = StepClock(job["warm"], job["repeats"], job.get("profile"))
    trainer.callbacks.append(clock)
    with folder:
        trainer.fit(model, data)
    samples = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    return [{**clock.row, "images": samples}] if trainer.is_global_zero else []


def plain_step(job: Job) -> list[Row]:
    """The same modules, batch and precision in the loop of a plain script: every image encoded in every step, a
    UNet pass for the subject and one for the class, AdamW parameter by parameter."""
    from ldm.diffusion.sampling import make_scheduler

    data, module, _, folder = build(job, 1)
    model = module.model.to(DEVICE)
    model.unet.train(), model.text_encoder.train()
    settings = module.optimizer.keywords | {"fused": None, "foreach": False}
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, module.learning_rate, **settings)
    scheduler = make_scheduler("ddpm", model.scheduler_config)
    count, views = data.batch_size, data.subject.views
    pixels = torch.stack([data.subject.pixels(views[i % len(views)]) for i in range(count)]).to(DEVICE)
    prompts = (module.with_identifier(data.subject.prompts[0]), data.concept.prior_prompt)

    def half_of_the_loss(prompt: str) -> torch.Tensor:
        with torch.no_grad():
            latents = model.vae.encode(pixels).latent_dist.sample() * model.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, model.num_timesteps, (count,), device=DEVICE)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        states = model.text_encoder(model.tokenize([prompt] * count).to(DEVICE)).last_hidden_state
        answer = model.unet(noisy, timesteps, encoder_hidden_states=states).sample
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        return torch.nn.functional.mse_loss(answer.float(), target)

    def step() -> None:
        loss = half_of_the_loss(prompts[0]) + half_of_the_loss(prompts[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    velocity = model.prediction_type == "v_prediction"
    with folder:
        return [timed(job, step, images=count)]


def memory(job: Job) -> list[Row]:
    """The most memory that tensors take at any moment of a short run: a chunk of prior samples, the views encoded, two
    steps, validation and sample images. One of what comes one after the other takes as much as many do."""
    words = [
        "lightning.callbacks.checkpoint=null", "lightning.callbacks.validation.params.monitor=null",
        "lightning.callbacks.validation.params.num_timesteps=1", "lightning.callbacks.samples.params.steps=1",
        'lightning.callbacks.samples.params.prompts=["a photo of [V]"]', "data.params.prior.steps=1",
    ]  # fmt: skip
    # More than the steps need, so that the frozen copy stays in memory unless all are drawn at the start.
    chunk_size = config_of(job, words)["data"]["params"]["prior"]["chunk_size"]
    words.append(f"data.params.prior.count={2 * chunk_size}")
    data, module, trainer, folder = build(job, 2, words)
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
    """One chunk of class-prior samples, as the run draws them."""
    data, module, _, folder = build(job, 1)
    untrained = module.tuning.untrained(module.model, DTYPES[data.prior["precision"]])
    module.model.to(DEVICE)
    latents = BaseLatents(module.model, untrained, data.size)
    numbers = range(data.prior["chunk_size"])

    def draw() -> None:
        latents.draw_prior(data.concept.prior_prompt, numbers, data.seed, data.prior)

    with folder:
        return [timed(job, draw, images=len(numbers))]


def txt2img(job: Job) -> list[Row]:
    """Pictures by diffusers' pipeline and as scripts/txt2img.py draws them, in turns in one process: they do the same
    arithmetic, and a difference between processes would be larger than one between them."""
    import numpy as np

    seconds: dict[str, list[float]] = {}
    rows = []
    acts = {"diffusers' pipeline": by_pipeline(job), "this project": by_this_project(job)}
    for number in range(job["warm"] + job["repeats"]):
        for name, act in acts.items():
            start = now()
            act()
            if number >= job["warm"]:
                seconds.setdefault(name, []).append(now() - start)
    for name, act in acts.items():
        with FlopCounterMode(display=False) as flops:
            pictures = act()
        path = f"{job['pictures']}-{len(rows)}.npy"
        np.save(path, np.stack([np.asarray(picture) for picture in pictures]))
        row = {"variant": name, "images": job["images"], "flops": flops.get_total_flops(), "pictures": path}
        rows.append({**row, "seconds": statistics.median(seconds[name]), "peak_bytes": peak_bytes()})
    return rows


def by_this_project(job: Job) -> Callable[[], list[Any]]:
    """Draws the job's pictures as scripts/txt2img.py does, at the timesteps of diffusers' pipeline."""
    from ldm.data.images import to_image
    from ldm.diffusion.sampling import Sampling
    from ldm.methods.load import load_for_sampling

    model = load_for_sampling(job["base"], DEVICE).model.for_sampling(DEVICE, DTYPES[job["dtype"]])
    sampling, size = Sampling("ddim", job["steps"], job["scale"], spacing="leading"), job.get("size")

    def draw() -> list[Any]:
        prompts = [job["prompt"]] * job["images"]
        pictures = model.images(prompts, range(job["images"]), sampling, size, size)
        return [to_image(pixels) for pixels in pictures]

    return draw


def by_pipeline(job: Job) -> Callable[[], list[Any]]:
    """Draws the same pictures by diffusers' pipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(job["base"], torch_dtype=DTYPES[job["dtype"]])
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(DEVICE)

    def draw() -> list[Any]:
        return pipe(
            [job["prompt"]] * job["images"],
            num_inference_steps=job["steps"],
            guidance_scale=job["scale"],
            generator=[torch.Generator().manual_seed(seed) for seed in range(job["images"])],
            height=job.get("size"),
            width=job.get("size"),
        ).images

    return draw


def checkpoint(job: Job) -> list[Row]:
    """A full state: written and synced, against as many plain bytes; and read."""
    from ldm.formats.safe_loading import load_checkpoint

    data, model, trainer, folder = build(job, 1)
    with folder as name:
        trainer.fit(model, data)
        path, plain = Path(name) / "state.ckpt", Path(name) / "plain"
        saved = timed(job, lambda: trainer.save_checkpoint(path), images=0, count_flops=False)
        size = path.stat().st_size
        content = torch.empty(min(size, 2**28), dtype=torch.uint8).random_().numpy().tobytes()

        def write() -> None:
            with open(plain, "wb", buffering=0) as file:
                for start in range(0, size, len(content)):
                    file.write(content[: size - start])
                os.fsync(file.fileno())

        written = timed(job, write, images=0, count_flops=False)
        plain.unlink()
        loaded = timed(job, lambda: load_checkpoint(path), images=0, count_flops=False)
    return [
        {**written, "variant": "as many plain bytes, synced", "bytes": size},
        {**saved, "variant": "save", "bytes": size},
        {**loaded, "variant": "load", "bytes": size},
    ]


def start_up(job: Job) -> list[Row]:
    """From the command to the first prior chunk's first step, against the bare imports of the libraries."""
    imports = (
        "import torch, pytorch_lightning, diffusers, transformers; from diffusers import AutoencoderKL, "
    )
    imports += "UNet2DConditionModel; from transformers import CLIPTextModel, CLIPTokenizer"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", imports], check=True)
    bare = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as logs:
        words = ["main.py", "--base", *job["configs"], "-l", logs, *job["words"]]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *words], cwd=PROJECT, stderr=subprocess.PIPE)
        seen = b""
        while b"prior samples" not in seen:
            piece = process.stderr.read1()
            if not piece:
                raise RuntimeError(f"main.py ended before it drew a prior sample: {seen.decode()[-2000:]}")
            seen += piece
        seconds = time.perf_counter() - start
        process.kill()
        process.wait()
    return [
        {"variant": "bare imports", "seconds": bare},
        {"variant": "main.py to the first prior chunk", "seconds": seconds},
    ]


MEASURES = (machine, training_step, plain_step, memory, prior, txt2img, checkpoint, start_up)


class StepClock(StepCallback):
    """Times `repeats` optimizer steps after `warm` ones, and counts the FLOPs of the one after."""

    def __init__(self, warm: int, repeats: int, profile: str | None):
        self.warm, self.repeats, self.profile = warm, repeats, profile
        self.row: Row = {}
        self.flops = FlopCounterMode(display=False)

    def on_step(self, trainer: Any, pl_module: Any) -> None:
        step = trainer.global_step
        if step == self.warm:
            if self.profile:
                self.profiler = torch.profiler.profile()
                self.profiler.__enter__()
            self.start = now()
        elif step == self.warm + self.repeats:
            self.row = {"seconds": (now() - self.start) / self.repeats, "peak_bytes": peak_bytes()}
            if self.profile:
                self.profiler.__exit__(None, None, None)
                write_profile(self.profiler, self.profile)
            self.flops.__enter__()
        elif step == self.warm + self.repeats + 1:
            self.flops.__exit__(None, None, None)
            self.row["flops"] = self.flops.get_total_flops() * trainer.world_size


def write_profile(profiler: Any, path: str) -> None:
    """A Chrome trace, and beside it the table of the operators that took longest."""
    profiler.export_chrome_trace(path)
    order = "self_cuda_time_total" if CUDA else "self_cpu_time_total"
    Path(path).with_suffix(".txt").write_text(profiler.key_averages().table(sort_by=order, row_limit=40))


def build(
    job: Job, max_steps: int, words: Sequence[str] = WITHOUT
) -> tuple[Any, Any, Any, tempfile.TemporaryDirectory]:
    """What main.py builds for the job's config, with `words` for what is not measured, in a folder for its files."""
    quiet()
    config = config_of(job, [*words, f"lightning.trainer.max_steps={max_steps}"])
    folder = tempfile.TemporaryDirectory()
    return *build_run(config, Path(folder.name)), folder


def config_of(job: Job, words: Sequence[str]) -> dict[str, Any]:
    """The job's config, with `words` where the job's own do not say otherwise."""
    paths = [str(PROJECT / path) for path in job["configs"]]
    return load_config(
        paths, ["lightning.logger=null", "data.params.prior.cache=null", *words, *job["words"]]
    )


def timed(job: Job, act: Callable[[], Any], images: int, count_flops: bool = True) -> Row:
    """Seconds of `act`, FLOPs in it, and the process's peak memory."""
    row: Row = {"images": images}
    flops = FlopCounterMode(display=False)
    for _ in range(job["warm"]):
        act()
    start = now()
    for _ in range(job["repeats"]):
        act()
    row |= {"seconds": (now() - start) / job["repeats"], "peak_bytes": peak_bytes()}
    if count_flops:
        with flops:
            act()
        row["flops"] = flops.get_total_flops()
    return row


def now() -> float:
    """Seconds, once the device has done all it was given."""
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes() -> int:
    """Most memory so far: of the GPU's allocator, or without a GPU of the whole process, its libraries included."""
    if CUDA:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(jobs: list[Job], out: Path) -> None:
    """Do the jobs and write their rows."""
    functions, rows = {function.__name__: function for function in MEASURES}, []
    for index, job in enumerate(jobs):
        job["pictures"] = str(out.with_suffix(f".{index}"))
        found = functions[job["measure"]](job)
        rows += [{"group": job["group"], "variant": job["variant"], **row} for row in found]
    if processes.rank() == 0:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    measure(json.loads(sys.argv[1]), Path(sys.argv[2]))
