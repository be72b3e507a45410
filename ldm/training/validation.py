"""Validation that is comparable between steps: fixed images, noise and timesteps."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm import processes
from ldm.console import phase
from ldm.data.batch import Batch
from ldm.data.class_prior import ClassPrior
from ldm.data.datamodule import DreamBoothData
from ldm.data.subject import SubjectImages
from ldm.errors import UserError
from ldm.files import warn_if_unwritable
from ldm.formats.checkpoint_files import BEST
from ldm.methods.dreambooth import DreamBooth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator
from ldm.training.averaged import averaged
from ldm.training.checkpoint import save
from ldm.training.loggers import log_metrics
from ldm.training.rows import append_rows, truncate_rows
from ldm.training.step_callback import StepCallback, is_due
from ldm.values import Count, NonNegativeInt


class Validation(StepCallback):
    """Measures subject loss, and drift: how far the model's predictions for the class have moved from the base's.

    Rows go to `validation.jsonl` and the loggers, the best weights by `monitor` to `best.ckpt`.
    """

    def __init__(
        self,
        every_steps: Count | None,
        num_timesteps: Count = 4,
        drift_samples: NonNegativeInt = 8,
        monitor: Literal["subject_loss", "drift", "score"] | None = "score",
        at_end: bool = True,
    ):
        """num_timesteps: size of the timestep grid; drift_samples: prior samples used to measure drift.

        monitor: "subject_loss", "drift", or "score", their sum; lowest is best; null keeps no weights. Without
            drift_samples there is no drift, and the score is the subject loss.
        """
        if monitor == "drift" and not drift_samples:
            raise UserError("lightning.callbacks.validation: monitor=drift needs drift_samples above 0")
        self.every_steps = every_steps
        self.num_timesteps = num_timesteps
        self.drift_samples = drift_samples
        self.monitor = monitor
        self.at_end = at_end
        self.best = math.inf
        self.last_row: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.path = Path(trainer.default_root_dir) / "validation.jsonl"
        if trainer.is_global_zero:
            truncate_rows(self.path, trainer.global_step or -1)  # the row of step 0 is written again
        self._prepare(trainer.datamodule, pl_module)
        if trainer.global_step == 0:
            self.validate(trainer, pl_module)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.global_step == trainer.max_steps
        if self.at_end if last else is_due(trainer.global_step, self.every_steps, trainer.max_steps):
            self.validate(trainer, pl_module)

    @torch.no_grad()
    def validate(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Measure, log, and save the weights if they are the best so far."""
        with averaged(trainer), phase("validation"), trainer.precision_plugin.forward_context():
            losses = [[pl_module.denoising_error(batch) for batch in grid] for grid in self._subjects]
            drifts = [
                [
                    (_prediction(pl_module.model, batch) - untrained).square().mean(dim=(1, 2, 3))
                    for batch, untrained in grid
                ]
                for grid in self._priors
            ]
        device = pl_module.device
        row = {"subject_loss": _mean_over_processes(sum(losses, []), device)}
        if self.drift_samples:
            row["drift"] = _mean_over_processes(sum(drifts, []), device)
        row["score"] = sum(row.values())
        row |= self._apart("subject_loss", [_mean_over_processes(errors, device) for errors in losses])
        drift = [_mean_over_processes(errors, device) for errors in drifts]
        row |= self._apart("drift", [drift[place] for place in self._class_of] if drift else [])
        self.last_row = {"step": trainer.global_step, **row}
        if trainer.is_global_zero:
            with warn_if_unwritable(f"{self.path} at step {trainer.global_step}"):
                append_rows(self.path, [{"step": trainer.global_step, **row}])
        log_metrics(trainer, {f"val/{key}": value for key, value in row.items()}, trainer.global_step)
        # Step 0 is not saved: the base has not learned the subject.
        if self.monitor and trainer.global_step > 0 and row[self.monitor] < self.best:
            path = Path(trainer.default_root_dir) / "checkpoints" / BEST
            if save(trainer, path, weights_only=True):
                self.best = row[self.monitor]
        return row

    def _apart(self, key: str, values: Sequence[float]) -> dict[str, float]:
        """`values` by subject under `<key>_<name>`; empty for a single subject."""
        if len(self._names) == 1:
            return {}
        return {f"{key}_{name}": value for name, value in zip(self._names, values, strict=bool(values))}

    def state_dict(self) -> dict[str, object]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    @torch.no_grad()
    def _prepare(self, data: DreamBoothData, module: DreamBooth) -> None:
        """Encode everything, and get the untrained model's predictions. Each process takes some of the timesteps."""
        mine = slice(processes.rank(), None, processes.world_size())
        self._names = [concept.name for concept in data.concepts]
        self._class_of = [data.classes.index(prior) for prior in data.class_of]
        self._subjects = [self._subject_grid(images, data)[mine] for images in data.validation]
        self._priors = [
            self._prior_grid(prior, data, module, mine) for prior in data.classes if self.drift_samples
        ]

    def _subject_grid(self, images: SubjectImages, data: DreamBoothData) -> list[Batch]:
        """The validation images of one subject at every timestep of the grid."""
        batches = []
        for shape in dict.fromkeys(images.shapes):  # pictures of one shape go through the model together
            views = [view for view in images.views if images.shape_of(view) == shape]
            mean, std = data.source.posterior(torch.stack([images.pixels(view) for view in views]))
            noise = [
                torch.randn(mean.shape[1:], generator=generator(data.seed, "validation posterior", view // 2))
                for view in views
            ]
            latents = mean + std * torch.stack(noise).to(mean.device)
            weights = None
            if data.unmasked_weight != 1:
                cells = mean.shape[2], mean.shape[3]
                weights = torch.stack([images.cell_weights(view, cells) for view in views]).to(mean.device)
            prompts = [images.prompts[view // 2] for view in views]
            size_ids = [images.size_ids(view) for view in views]
            batches += self._grid(latents, prompts, size_ids, "validation subject", data, weights)
        return batches

    def _prior_grid(
        self, prior: ClassPrior, data: DreamBoothData, module: DreamBooth, mine: slice
    ) -> list[tuple[Batch, Tensor]]:
        """Prior samples of one class, with the untrained model's predictions."""
        numbers = range(min(self.drift_samples, prior.count))
        prior.bank.fill(numbers)
        latents = prior.bank.latents(numbers, module.device)
        size_ids = [prior.size_ids(number, prior.shapes[0]) for number in numbers]
        prompts = [prior.prompt] * len(numbers)
        batches = self._grid(latents, prompts, size_ids, "validation prior", data)[mine]
        with module.latents.untrained_model() as base, torch.autocast(module.device.type, enabled=False):
            return [(batch, _prediction(base, batch)) for batch in batches]

    def _grid(
        self,
        latents: Tensor,
        prompts: list[str],
        size_ids: list[list[int]],
        purpose: str,
        data: DreamBoothData,
        cell_weights: Tensor | None = None,
    ) -> list[Batch]:
        """One batch per timestep; the timesteps are the midpoints of equal parts of the schedule.

        cell_weights: [B, 1, h, w].
        """
        batches = []
        for k in range(self.num_timesteps):
            timestep = int((k + 0.5) * data.source.num_timesteps / self.num_timesteps)
            noise = [
                torch.randn(latents.shape[1:], generator=generator(data.seed, purpose, k, i))
                for i in range(len(latents))
            ]
            batches.append(
                Batch(
                    prompts=prompts,
                    noise=torch.stack(noise).to(latents.device),
                    timesteps=torch.full((len(latents),), timestep, device=latents.device),
                    latents=latents,
                    size_ids=torch.tensor(size_ids, dtype=torch.float32, device=latents.device),
                    subject_count=len(latents),
                    cell_weights=cell_weights,
                )
            )
        return batches


def _prediction(model: LatentDiffusion, batch: Batch) -> Tensor:
    """The prediction of `model` for the noisy latents of `batch`, [B, C, h, w]."""
    noisy = model.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
    return model.predict(noisy, batch.timesteps, model.embed(batch.prompts, batch.size_ids))


def _mean_over_processes(errors: list[Tensor], device: torch.device) -> float:
    """Mean of all errors of all processes; 0 if there are none."""
    total = torch.tensor(
        [sum(float(e.sum()) for e in errors), sum(len(e) for e in errors)], dtype=torch.float64
    )
    if processes.several():
        total = total.to(device)
        dist.all_reduce(total)
    return float(total[0] / total[1]) if total[1] else 0.0
