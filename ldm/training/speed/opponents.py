"""What this project is measured against: plain training loops over the same modules, batch and precision."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from PIL import Image
from pytorch_lightning import Trainer
from torch import Tensor

from ldm.data.datamodule import DreamBoothData
from ldm.data.images import to_tensor
from ldm.devices import DTYPES, set_tf32
from ldm.files import find
from ldm.methods.dreambooth import DreamBooth
from ldm.training.speed.clock import DEVICE, Row, now, timed
from ldm.training.speed.jobs import Job
from ldm.training.speed.setting_up import build


@dataclass
class Loop:
    """The parts of a plain training loop."""

    module: DreamBooth
    optimizer: torch.optim.Optimizer
    scheduler: DDPMScheduler
    count: int
    """Subject images a step, and as many of the class."""
    prompts: list[str]
    """The subject's and the class's, [2 * count]."""
    bf16: bool
    """Whether passes are under bf16 autocast."""

    @classmethod
    def of(cls, data: DreamBoothData, module: DreamBooth, trainer: Trainer, foreach: bool | None) -> "Loop":
        """trainer: for its precision. foreach: AdamW updates all parameters in a few calls; None leaves it to torch."""
        set_tf32(module.tf32)  # as a run does: torch's own default rounds a GPU's convolutions
        model = module.model.to(DEVICE)
        for network in model.trainable.values():
            network.train()
        settings = getattr(module.optimizer, "keywords", {}) | {"fused": None, "foreach": foreach}
        optimizer = torch.optim.AdamW(module.tuning.parameter_groups(model), **settings)
        scheduler = DDPMScheduler.from_config(model.scheduler_config)
        count = data.batch_size
        subject, prior = module.with_identifier(data.subjects[0].prompts[0]), data.concepts[0].prior_prompt
        bf16 = trainer.precision == "bf16-mixed"
        return cls(module, optimizer, scheduler, count, [subject] * count + [prior] * count, bf16)

    def errors(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Squared errors [B, C, h, w] of one pass over `pixels` [B, 3, H, W], encoding them and their prompts."""
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=self.bf16):
            return self._errors(pixels, prompts)

    def _errors(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        model, scheduler = self.module.model, self.scheduler
        with torch.no_grad():
            latents = model.vae.encode(pixels).latent_dist.sample() * model.vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(pixels),), device=DEVICE)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        keywords = model.text.keywords(model.text.encode(prompts), torch.float32)
        prediction = model.unet(noisy, timesteps, **keywords).sample
        velocity = model.prediction_type == "v_prediction"
        target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        return F.mse_loss(prediction.float(), target, reduction="none")

    def update(self, loss: Tensor) -> None:
        """Backward pass, clipping, optimizer, and the loss on the host, as a progress bar shows it."""
        loss.backward()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()


def plain_step(job: Job) -> list[Row]:
    """Two passes of the UNet, one for the subject and one for the class; AdamW updates one parameter after another."""
    data, module, trainer, folder = build(job, 1)
    loop = Loop.of(data, module, trainer, foreach=False)
    pixels, count = subject_pixels(data), loop.count

    def step() -> None:
        subject = loop.errors(pixels, loop.prompts[:count]).mean()
        loop.update(subject + loop.errors(pixels, loop.prompts[count:]).mean())

    with folder:
        return [timed(job, step, images=count)]


def script_step(job: Job) -> list[Row]:
    """As diffusers' train_dreambooth.py: one pass over both halves, every image and every prompt encoded anew."""
    data, module, trainer, folder = build(job, 1)
    loop = Loop.of(data, module, trainer, foreach=None)
    pixels = subject_pixels(data).repeat(2, 1, 1, 1)
    with folder:
        return [timed(job, lambda: script_update(loop, pixels), images=loop.count)]


def script_update(loop: Loop, pixels: Tensor) -> None:
    """A step on `pixels` [2B, 3, H, W], the subject's half first."""
    subject, prior = loop.errors(pixels, loop.prompts).chunk(2)
    loop.update(subject.mean() + loop.module.prior_loss_weight * prior.mean())


def subject_pixels(data: DreamBoothData) -> Tensor:
    """A batch of photographs, [B, 3, H, W] in [-1, 1]."""
    images = data.subjects[0]
    views = [images.views[i % len(images.views)] for i in range(data.batch_size)]
    return torch.stack([images.pixels(view) for view in views]).to(DEVICE)


def whole_run(job: Job) -> list[Row]:
    """Prior samples, training and export by this project, without looking: no validation and no sample images."""
    data, module, trainer, folder = build(job, None)
    with folder as name:
        start = now()
        trainer.fit(module, data)
        module.export(Path(name))
        return [{"seconds": now() - start}]


def whole_script(job: Job) -> list[Row]:
    """The same course as diffusers' train_dreambooth.py takes it: prior samples in files, read again at each step."""
    data, module, trainer, folder = build(job, None)
    loop = Loop.of(data, module, trainer, foreach=None)
    with folder, tempfile.TemporaryDirectory() as name:
        start = now()
        files = draw_prior(job, data, Path(name))
        for step in range(trainer.max_steps):
            places = [(step * loop.count + i) for i in range(loop.count)]
            photographs = [data.subjects[0].files[place % len(data.subjects[0].files)] for place in places]
            classes = [files[place % len(files)] for place in places]
            script_update(
                loop, torch.stack([read(path, data.size) for path in photographs + classes]).to(DEVICE)
            )
        parts = {name: network.eval() for name, network in loop.module.model.trainable.items()}
        pipe = StableDiffusionPipeline.from_pretrained(find(job.base), **parts)
        pipe.save_pretrained(Path(name) / "model")
        return [{"seconds": now() - start}]


def draw_prior(job: Job, data: DreamBoothData, folder: Path) -> list[Path]:
    """As many class images as the run's own prior, by diffusers' pipeline, with the run's solver, steps and batches."""
    settings = data.prior
    pipe = StableDiffusionPipeline.from_pretrained(find(job.base), torch_dtype=DTYPES[settings["precision"]])
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++"
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(DEVICE)
    files: list[Path] = []
    while len(files) < settings["count"]:
        prompts = [data.concepts[0].prior_prompt] * min(
            settings["chunk_size"], settings["count"] - len(files)
        )
        images = pipe(
            prompts,
            num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_scale"],
            height=data.size,
            width=data.size,
        ).images
        for image in images:
            files.append(folder / f"{len(files):04d}.jpg")
            image.save(files[-1])
    return files


def read(path: Path, size: int) -> Tensor:
    """Pixels [3, size, size] in [-1, 1] of an image file, decoded and resized at every step."""
    with Image.open(path) as image:
        return to_tensor(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))


OPPONENTS: tuple[Callable[[Job], list[Row]], ...] = (plain_step, script_step, whole_run, whole_script)
