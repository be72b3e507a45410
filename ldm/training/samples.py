"""Sample images during training, with the same prompts and seeds each time, so that only the weights differ."""

import warnings
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer

from ldm.concepts import for_each_concept
from ldm.console import phase
from ldm.data.class_prior import ClassPrior
from ldm.data.datamodule import DreamBoothData
from ldm.data.images import to_image
from ldm.data.sheet import Strip, draw_sheet, save_sheet
from ldm.diffusion.sampling import Sampling
from ldm.files import warn_if_unwritable
from ldm.formats.knowledge import advised_sampling
from ldm.models.codec import NotFiniteError
from ldm.training.averaged import averaged
from ldm.training.loggers import log_image
from ldm.training.step_callback import StepCallback, is_due
from ldm.values import Count, NonNegativeFloat, Prompts, SamplerName, Seed, TimestepInterval


class SampleImages(StepCallback):
    """Draws `prompts` every `every_steps`, one row per prompt, for `images/` of the run folder and the loggers."""

    def __init__(
        self,
        every_steps: Count | None,
        prompts: Prompts,
        per_prompt: Count,
        seed: Seed,
        sampler: SamplerName | None,
        steps: Count | None,
        guidance_scale: NonNegativeFloat | None,
        at_end: bool = True,
        guidance_interval: TimestepInterval | None = None,
    ):
        """per_prompt: images per prompt, with seeds `seed`, `seed + 1`, ...; at_end: also draw after the last step."""
        self.every_steps = every_steps
        self.prompts = list(prompts)
        self.seeds = range(seed, seed + per_prompt)
        self.settings = (sampler, steps, guidance_scale)
        self.guidance_interval = guidance_interval
        self.at_end = at_end
        self._priors_shown: set[str] = set()

    def sampling(self, pl_module: LightningModule) -> Sampling:
        """How images are drawn: what is null in the config is the base's own advice."""
        return advised_sampling(pl_module.base, *self.settings, guidance_interval=self.guidance_interval)

    def check(self, pl_module: LightningModule) -> None:
        """Raise UserError if the model cannot be sampled with these settings."""
        pl_module.model.passes(self.sampling(pl_module))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0:
            self.draw(trainer, pl_module)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.global_step == trainer.max_steps
        if self.at_end if last else is_due(trainer.global_step, self.every_steps, trainer.max_steps):
            self.draw(trainer, pl_module)
        for prior in trainer.datamodule.classes:
            if prior.bank.full and prior.bank.wanted:
                self._show_prior(trainer, pl_module, prior)

    @torch.no_grad()
    def draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sample every prompt with the current weights."""
        if not trainer.is_global_zero:
            return
        model, size, sampling = pl_module.model, trainer.datamodule.size, self.sampling(pl_module)
        strips = []
        try:
            templates = for_each_concept(self.prompts, trainer.datamodule.concepts)
            steps = len(templates) * model.passes(sampling)
            with (
                averaged(trainer),
                trainer.precision_plugin.forward_context(),
                phase("samples", steps) as advance,
            ):
                for prompt in templates:
                    prompts = [pl_module.with_identifier(prompt)] * len(self.seeds)
                    pictures = model.images(prompts, self.seeds, sampling, size, size, on_step=advance)
                    strips.append(
                        Strip(prompts[0], [to_image(pixels) for pixels in pictures], seeds=self.seeds)
                    )
        except NotFiniteError as error:
            warnings.warn(f"no sample images at step {trainer.global_step}: {error}", stacklevel=2)
            return
        step = trainer.global_step
        strips += photographs(trainer.datamodule)
        path = Path(trainer.default_root_dir) / "images" / f"step-{step:06d}.png"
        self._keep(trainer, path, "samples", f"step {step} of {trainer.max_steps}", strips, len(self.seeds))

    @torch.no_grad()
    def _show_prior(self, trainer: Trainer, pl_module: LightningModule, prior: ClassPrior) -> None:
        """The first of a class's prior samples on one contact sheet, once."""
        name = prior.name
        file = "prior.png" if name == "prior" else f"prior-{name}.png"
        path = Path(trainer.default_root_dir) / "images" / file
        if name in self._priors_shown or path.exists() or not trainer.is_global_zero:
            return
        self._priors_shown.add(name)
        numbers = list(range(min(prior.bank.wanted, 64)))
        latents = prior.bank.latents(numbers, pl_module.device)
        try:
            pictures = pl_module.model.decode(latents)
        except NotFiniteError as error:
            warnings.warn(f"prior samples are not shown: {error}", stacklevel=2)
            return
        drawn = Strip(prior.prompt, [to_image(pixels) for pixels in pictures])
        origin = f"pictures of {prior.files[0].parent}" if prior.files else "drawn by the untrained model"
        title = f"the first {len(numbers)} prior samples, {origin}"
        self._keep(trainer, path, path.stem, title, [drawn], 8, smallest=96)

    def _keep(
        self,
        trainer: Trainer,
        path: Path,
        tag: str,
        title: str,
        strips: list[Strip],
        columns: int,
        **options: int,
    ) -> None:
        """Draw a sheet, and write it to `path` and the loggers."""
        sheet, cells = draw_sheet(title, strips, columns, **options)
        with warn_if_unwritable(str(path)):
            save_sheet(sheet, cells, path, step=trainer.global_step)
        log_image(trainer, tag, sheet)


def photographs(data: DreamBoothData) -> list[Strip]:
    """The photographs of each subject as the model sees them: cropped and resized."""
    strips = []
    for concept, subject in zip(data.concepts, data.subjects, strict=True):
        plain = subject.without_augmentation()
        pictures = [to_image(plain.pixels(view)) for view in plain.views]
        several = len(data.concepts) > 1
        title = f"the photographs of {concept.placeholder}" if several else "the photographs"
        names = [f"{concept.placeholder} {path.name}" if several else path.name for path in plain.files]
        strips.append(Strip(title, pictures, names))
    return strips
