"""The paper's metrics during training: subject fidelity, prompt fidelity, and drift of the class."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from ldm import processes
from ldm.concepts import PLACEHOLDER, Concept, for_each_concept
from ldm.console import phase
from ldm.data.images import to_image
from ldm.data.subject import SubjectImages
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.evaluation.charts import path_chart
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.metrics import METRICS, Seen
from ldm.evaluation.protocol import without_identifier
from ldm.files import replacing, warn_if_unwritable
from ldm.formats.knowledge import advised_sampling
from ldm.models.codec import NotFiniteError
from ldm.training.averaged import averaged
from ldm.training.checkpoint import save
from ldm.training.loggers import log_metrics
from ldm.training.rows import append_rows, read_rows, truncate_rows
from ldm.training.step_callback import StepCallback
from ldm.training.validation import Validation
from ldm.values import Count, NonNegativeFloat, Prompts, SamplerName, Seed, Text, TimestepInterval

BEST_FIDELITY = "best-fidelity.ckpt"

MEASURED = ("dino", "clip_i", "clip_t")
"""Metrics of the subject's images, one by one."""


class Fidelity(StepCallback):
    """Samples `prompts` at each validation and scores them as scripts/evaluate.py does, on fewer images.

    Rows go to `fidelity.jsonl` and the loggers (`val/dino`, `val/clip_i`, `val/clip_t`, beside validation's
    `val/drift`); `fidelity.svg` plots fidelity against drift; the weights with the highest
    `dino - drift_weight * drift` are kept as `best-fidelity.ckpt`. It must follow the validation callback.
    """

    def __init__(
        self,
        prompts: Prompts,
        per_prompt: Count,
        seed: Seed,
        sampler: SamplerName | None,
        steps: Count | None,
        guidance_scale: NonNegativeFloat | None,
        dino: Text,
        clip: Text,
        dino_revision: Text | None = None,
        clip_revision: Text | None = None,
        drift_weight: NonNegativeFloat = 1.0,
        keep_best: bool = True,
        guidance_interval: TimestepInterval | None = None,
        validation: Validation | None = None,
    ):
        """per_prompt: images per prompt, with seeds `seed`, `seed + 1`, ...; dino, clip: folders or hub ids."""
        if validation is None:
            raise UserError(
                "config lightning.callbacks.fidelity needs the validation callback: put that one before it"
            )
        self._validation = validation
        self.templates = list(prompts)
        self.per_prompt = per_prompt
        self.seeds = [seed + k for _ in prompts for k in range(per_prompt)]
        self.settings = (sampler, steps, guidance_scale)
        self.guidance_interval = guidance_interval
        self.networks = (dino, dino_revision), (clip, clip_revision)
        self.drift_weight = drift_weight
        self.keep_best = keep_best

    def sampling(self, pl_module: LightningModule) -> Sampling:
        """How images are drawn: what is null in the config is the base's own advice."""
        return advised_sampling(pl_module.base, *self.settings, guidance_interval=self.guidance_interval)

    def check(self, pl_module: LightningModule) -> None:
        """Raise UserError if the model cannot be sampled with these settings."""
        pl_module.model.passes(self.sampling(pl_module))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Before the first step, so that a missing network wastes no training.
        if trainer.is_global_zero:
            dino, clip = self.networks
            self._dino, self._clip = Dino(*dino), Clip(*clip)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.path = Path(trainer.default_root_dir) / "fidelity.jsonl"
        if trainer.is_global_zero:
            truncate_rows(self.path, trainer.global_step or -1)  # the row of step 0 is written again
            self._rows = read_rows(self.path)
            for network in (self._dino, self._clip):
                network.device = pl_module.device
                network.model.to(pl_module.device)
            self._subjects = [
                self._subject(concept, images)
                for concept, images in zip(
                    trainer.datamodule.concepts, trainer.datamodule.validation, strict=True
                )
            ]
        self.on_step(trainer, pl_module)

    def _subject(self, concept: Concept, images: SubjectImages) -> "_Subject":
        """Prompts and features for `concept`; `images` are the held-out ones, if any."""
        prompts = [p for p in for_each_concept(self.templates, [concept]) for _ in range(self.per_prompt)]
        texts = [without_identifier(prompt.replace(concept.placeholder, PLACEHOLDER)) for prompt in prompts]
        real = images.images
        return _Subject(
            concept.name, prompts, self._clip.texts(texts), self._dino.images(real), self._clip.images(real)
        )

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validated = self._validation.last_row
        if validated.get("step") != trainer.global_step:
            return
        row, is_best = {}, False
        if trainer.is_global_zero and (row := self._measured(trainer, pl_module, validated.get("drift"))):
            self._rows.append(row)
            with warn_if_unwritable(f"{self.path} at step {trainer.global_step}"):
                append_rows(self.path, [row])
                with replacing(self.path.with_suffix(".svg"), sync=False) as temporary:
                    temporary.write_text(plot(self._rows))
            is_best = best(self._rows) is row
        values = {f"val/{key}": row[key] for key in row if key.startswith(MEASURED)}
        log_metrics(trainer, values, trainer.global_step)
        # Only the first process measures; all save.
        if processes.gather(is_best)[0] and self.keep_best:
            save(trainer, Path(trainer.default_root_dir) / "checkpoints" / BEST_FIDELITY, weights_only=True)

    def _measured(
        self, trainer: Trainer, pl_module: LightningModule, drift: float | None
    ) -> dict[str, float]:
        """The row of this step; empty if the samples are not finite. drift: None where it is not measured."""
        try:
            measured = self.measure(trainer, pl_module)
        except NotFiniteError as error:
            warnings.warn(f"fidelity is not measured at step {trainer.global_step}: {error}", stacklevel=2)
            return {}
        score = measured["dino"] - self.drift_weight * (drift or 0.0)
        drifted = {} if drift is None else {"drift": drift}
        return {"step": trainer.global_step, **measured, **drifted, "score": score}

    @torch.no_grad()
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """DINO, CLIP-I and CLIP-T of new samples against the validation images: the mean, and of each subject."""
        found = {}
        for subject in self._subjects:
            with phase("fidelity"):
                images = self._draw(trainer, pl_module, subject.prompts)
            dino, clip = self._dino.images(images), self._clip.images(images)
            seen = Seen(dino, clip, subject.texts, subject.dino, subject.clip)
            found[subject.name] = {key: float(METRICS[key].measure(seen).mean()) for key in MEASURED}
        means = {key: fmean([values[key] for values in found.values()]) for key in MEASURED}
        if len(found) == 1:
            return means
        return means | {f"{key}_{name}": values[key] for name, values in found.items() for key in MEASURED}

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, templates: Sequence[str]
    ) -> list[Image.Image]:
        prompts = [pl_module.with_identifier(prompt) for prompt in templates]
        size = trainer.datamodule.size
        with averaged(trainer), trainer.precision_plugin.forward_context():
            pictures = pl_module.model.images(
                prompts, self.seeds, self.sampling(pl_module), size, size, batch_size=self.per_prompt
            )
        return [to_image(pixels) for pixels in pictures]


@dataclass(frozen=True)
class _Subject:
    """One subject's prompts, their text features, and the features of its images."""

    name: str
    prompts: list[str]
    texts: Tensor
    dino: Tensor
    clip: Tensor


def best(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float] | None:
    """The row with the highest score, except step 0, the base before training."""
    return max((row for row in rows if row["step"] > 0), key=lambda row: row["score"], default=None)


def plot(rows: Sequence[Mapping[str, float]]) -> str:
    """Fidelity against drift over the run, or against the step where drift is not measured, as SVG."""
    has_drift = all("drift" in row for row in rows)
    points = [(row["drift" if has_drift else "step"], row["dino"], f"{row['step']}") for row in rows]
    chosen = best(rows)
    along = "drift of the class (numbers: steps; red: the best)" if has_drift else "step (red: the best)"
    labels = (along, "DINO with the subject")
    return path_chart(points, *labels, marked=None if chosen is None else list(rows).index(chosen))
