"""Speed of text-to-image sampling: this project against diffusers' pipeline, and what shortcuts save and cost."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from ldm.data.images import to_image
from ldm.devices import DTYPES
from ldm.diffusion.sampling import Sampling
from ldm.files import find
from ldm.formats.knowledge import advised_sampling
from ldm.methods.load import load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion
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
    return in_turns(job, {"diffusers' pipeline": by_pipeline(job), "this project": by_this_project(job)})


def shortcuts(job: Job) -> list[Row]:
    """Fewer or cheaper passes, and how far their pictures are from those of whole passes, all guided.

    As the base advises, where it does. The pictures of other seeds show how far is far.
    """
    model = load_for_sampling(job.base, DEVICE).model.for_sampling(DEVICE, DTYPE)
    plain = advised_sampling(model.source)
    ways = {"every pass whole": plain}
    ways |= {f"deep features in one pass of {n}": replace(plain, deepcache=n) for n in (2, 3, 5)}
    ways["guided at timesteps 200 to 800"] = replace(plain, guidance_interval=(200, 800))
    draws = {name: drawing(model, way, job) for name, way in ways.items()}
    return in_turns(job, {**draws, "other seeds": drawing(model, plain, job, IMAGES)})


def in_turns(job: Job, variants: Mapping[str, Draw]) -> list[Row]:
    """A row for each way to draw, compared with the first: the median time, FLOPs, and how the pictures differ."""
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
        distance = np.abs(pictures - reference)
        row: Row = {"variant": name, "seconds": statistics.median(seconds[name]), "images": IMAGES}
        row |= {"flops": flops_of(draw), "peak_bytes": peak_bytes()}
        row |= {"largest_difference": int(distance.max()), "mean_difference": float(distance.mean())}
        rows.append(row)
    return rows


def by_this_project(job: Job) -> Draw:
    """Draws like scripts/txt2img.py, at the timesteps of diffusers' pipeline."""
    model = load_for_sampling(job.base, DEVICE).model.for_sampling(DEVICE, DTYPE)
    return drawing(model, Sampling("ddim", STEPS, GUIDANCE_SCALE, spacing="leading"), job)


def drawing(model: LatentDiffusion, sampling: Sampling, job: Job, first_seed: int = 0) -> Draw:
    """Draws IMAGES pictures together."""
    seeds = range(first_seed, first_seed + IMAGES)

    def draw() -> list[object]:
        pictures = model.images([PROMPT] * IMAGES, seeds, sampling, job.size, job.size)
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
