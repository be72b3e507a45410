"""Speed of text-to-image sampling: this project against diffusers' pipeline."""

import statistics
from collections.abc import Callable

import numpy as np
import torch

from ldm.data.images import to_image
from ldm.devices import DTYPES
from ldm.diffusion.sampling import Sampling
from ldm.files import find
from ldm.methods.load import load_for_sampling
from ldm.training.arithmetic import flops_of
from ldm.training.speed.clock import CUDA, DEVICE, Row, now, peak_bytes
from ldm.training.speed.jobs import Job

PROMPT = "a photo of a dog"
IMAGES = 4
STEPS = 20
GUIDANCE_SCALE = 4.0
DTYPE = DTYPES["fp16" if CUDA else "fp32"]

Draw = Callable[[], list[object]]
"""Draws IMAGES Pillow images."""


def txt2img(job: Job) -> list[Row]:
    """Both draw the same images, in turns in one process.

    They do the same arithmetic, so two processes would differ by more than the two implementations do.
    """
    variants = {"diffusers' pipeline": by_pipeline(job), "this project": by_this_project(job)}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(job.warm + job.repeats):
        for name, draw in variants.items():
            start = now()
            draw()
            if number >= job.warm:
                seconds[name].append(now() - start)
    reference, rows = None, []
    for name, draw in variants.items():
        pictures = np.stack([np.asarray(image, int) for image in draw()])
        reference = pictures if reference is None else reference
        row: Row = {"variant": name, "seconds": statistics.median(seconds[name]), "images": IMAGES}
        row |= {"flops": flops_of(draw), "peak_bytes": peak_bytes()}
        rows.append(row | {"largest_difference": int(np.abs(pictures - reference).max())})
    return rows


def by_this_project(job: Job) -> Draw:
    """Draws like scripts/txt2img.py, at the timesteps of diffusers' pipeline."""
    model = load_for_sampling(job.base, DEVICE).model.for_sampling(DEVICE, DTYPE)
    sampling = Sampling("ddim", STEPS, GUIDANCE_SCALE, spacing="leading")

    def draw() -> list[object]:
        pictures = model.images([PROMPT] * IMAGES, range(IMAGES), sampling, job.size, job.size)
        return [to_image(pixels) for pixels in pictures]

    return draw


def by_pipeline(job: Job) -> Draw:
    """Draws the same images with diffusers' pipeline."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(find(job.base), torch_dtype=DTYPE)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(DEVICE)

    def draw() -> list[object]:
        return pipe(
            [PROMPT] * IMAGES,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(seed) for seed in range(IMAGES)],
            height=job.size,
            width=job.size,
        ).images

    return draw
