"""DreamBooth: teach a latent diffusion model subjects, and preserve their classes.

Ruiz et al., arXiv 2208.12242. `training_step` is equation 2. The tuning decides what trains
(`ldm.methods.tuning`), the data module what a batch contains.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from diffusers.optimization import get_scheduler
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from ldm.concepts import Concept, fill_in_identifiers
from ldm.data.batch import Batch
from ldm.data.datamodule import DreamBoothData
from ldm.devices import DTYPES, set_tf32
from ldm.diffusion.loss import denoising_error
from ldm.diffusion.weighting import Weighting, weighting_of
from ldm.errors import UserError, quoted
from ldm.formats.knowledge import warn_of_unknown_class
from ldm.formats.subject import read_subject, subject_facts
from ldm.methods.all_weights import AllWeights
from ldm.methods.base_latents import BaseLatents, prior_sampling
from ldm.methods.model_card import card_of_run
from ldm.methods.prior_target import untrained_prior_target
from ldm.methods.subjects import check_prompts, losses_by_subject, with_identifiers
from ldm.methods.tuning import Tuning
from ldm.methods.weight_average import WeightAverage, is_averaging
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator
from ldm.targets import completed
from ldm.values import (
    Count,
    FolderName,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PredictionType,
    Probability,
    Provided,
    Rates,
    Seed,
    Text,
    Unaffecting,
)

POLYNOMIAL_END = 1e-7
"""The last learning rate of diffusers' schedule "polynomial"."""

Schedule = Literal[
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
]
"""Names of diffusers.optimization.get_scheduler, except piecewise_constant, which needs rules."""


class DreamBooth(LightningModule):
    """A latent diffusion model with a frozen VAE; the tuning chooses what trains in its other networks."""

    def __init__(
        self,
        base: Annotated[Text, Unaffecting],
        identifier: Text,
        optimizer: Callable[..., Optimizer],
        learning_rate: NonNegativeFloat,
        seed: Seed,
        text_encoder_learning_rate: Rates | None = None,
        tuning: Callable[..., Tuning] = AllWeights,
        lr_schedule: Schedule = "constant",
        lr_warmup_steps: NonNegativeInt = 0,
        prior_loss_weight: NonNegativeFloat = 1.0,
        prior_target: Literal["noise", "untrained"] = "noise",
        min_snr_gamma: PositiveFloat | None = None,
        weighting: Callable[..., Weighting] | None = None,
        ema: Annotated[Probability | None, Unaffecting] = None,
        clip_skip: Count = 1,
        gradient_checkpointing: Annotated[bool, Unaffecting] = False,
        weights_precision: Literal["fp32", "bf16"] = "fp32",
        compile: Annotated[bool, Unaffecting] = False,
        cuda_graphs: Annotated[bool, Unaffecting] = False,
        tf32: bool = False,
        revision: Annotated[Text | None, Unaffecting] = None,
        variant: Annotated[FolderName | None, Unaffecting] = None,
        use_ema: Annotated[bool, Unaffecting] = True,
        vae: Annotated[Text | None, Unaffecting] = None,
        prediction_type: PredictionType | None = None,
        zero_terminal_snr: bool = False,
        export_dtype: Annotated[Literal["fp32", "fp16"], Unaffecting] = "fp32",
        concepts: Annotated[Sequence[Concept], Provided] = (),
    ):
        """`configs/dreambooth.yaml` explains each setting.

        concepts: the subjects, which a run takes from its data.
        """
        super().__init__()
        if lr_schedule == "constant" and lr_warmup_steps:
            raise UserError(
                "model.params.lr_schedule constant has no warm-up: set constant_with_warmup, or lr_warmup_steps 0"
            )
        if ema is not None and is_averaging(optimizer):
            raise UserError(
                "model.params.ema averages weights, and so does the optimizer: leave it null, or take another optimizer"
            )
        self.model = LatentDiffusion.from_base(
            base,
            clip_skip,
            revision=revision,
            variant=variant,
            use_ema=use_ema,
            vae=vae,
            prediction_type=prediction_type,
            zero_terminal_snr=zero_terminal_snr,
        )
        for network in self.model.trainable.values():
            network.to(DTYPES[weights_precision])
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            self.model.enable_gradient_checkpointing()
        self.base = base
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.lr_warmup_steps = lr_warmup_steps
        self.prior_loss_weight = prior_loss_weight
        self.prior_from_untrained = prior_target == "untrained" and prior_loss_weight > 0
        self.weighting = weighting_of(weighting, min_snr_gamma)
        self.ema = ema
        self.average: WeightAverage | None = None
        self._average_state: Mapping[str, object] | None = None
        self.export_dtype = export_dtype
        self.compile_blocks, self.cuda_graphs, self.tf32 = compile, cuda_graphs, tf32
        self._gradient_norm: Tensor | None = None
        rates = {"learning_rate": learning_rate, "text_encoder_learning_rate": text_encoder_learning_rate}
        self.tuning: Tuning = completed(tuning, "model.params.tuning", **rates)
        self.tuning.attach(self.model)
        used = [group["lr"] for group in self.tuning.parameter_groups(self.model)]
        if not used:
            raise UserError(
                "nothing would train: raise model.params.learning_rate or text_encoder_learning_rate above 0"
            )
        if lr_schedule == "polynomial" and max(used) <= POLYNOMIAL_END:
            raise UserError(
                f"model.params.lr_schedule polynomial ends at {POLYNOMIAL_END}: raise model.params.learning_rate"
            )
        # After the tuning, which may add tokens.
        self.subjects = with_identifiers(concepts, identifier, self.model.tokenizer, seed)

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Equation 2 of the paper: the subject's error plus lambda times the class prior's."""
        error = self.denoising_error(batch, self.target(batch))  # [2B]
        subject_error, prior_error = batch.halves(error)  # [B] each
        subject_loss = subject_error.mean()
        prior_loss = prior_error.mean() if len(prior_error) else torch.zeros_like(subject_loss)
        loss = subject_loss + self.prior_loss_weight * prior_loss
        means = {"loss": loss, "subject_loss": subject_loss.detach(), "prior_loss": prior_loss.detach()}
        return means | losses_by_subject(self.subjects, batch, subject_error, prior_error)

    def target(self, batch: Batch) -> Tensor | None:
        """The training target, [2B, C, h, w]; None for the noise or velocity of eq. 1."""
        if not self.prior_from_untrained:
            return None
        with self.latents.untrained_model() as base:
            return untrained_prior_target(base, batch, self.prompts(batch))

    def denoising_error(self, batch: Batch, target: Tensor | None = None) -> Tensor:
        """Error of every example of `batch`, [2B], in one pass of the denoiser. target: as in `target`."""
        conditioning = self.model.embed(self.prompts(batch), batch.size_ids)
        return denoising_error(
            lambda x, timesteps: self.model.predict(x, timesteps, conditioning),
            batch.latents,
            batch.noise,
            batch.timesteps,
            self.model.schedule,
            self.weighting,
            target,
            batch.cell_weights,
        )

    def prompts(self, batch: Batch) -> list[str]:
        """The prompts of `batch` with placeholders replaced by the run's identifiers, [2B]."""
        return [self.with_identifier(prompt) for prompt in batch.prompts]

    def with_identifier(self, prompt: str) -> str:
        """`prompt` with placeholders replaced by the run's identifiers."""
        return fill_in_identifiers(prompt, self.subjects)

    def check(self, data: DreamBoothData, trainer: Trainer) -> None:
        """Raise UserError if `trainer` cannot train this model on `data`, before anything is written."""
        for width, height in {
            shape for images in (*data.subjects, *data.validation) for shape in images.shapes
        }:
            self.model.latent_shape(height, width)
        for prior in data.classes:
            warn_of_unknown_class(self.base, prior.class_word)
        # On a CPU, compiled convolutions of torch 2.13 had zero gradients.
        for key, wanted in (("compile", self.compile_blocks), ("cuda_graphs", self.cuda_graphs)):
            if wanted and not torch.cuda.is_available():
                raise UserError(f"model.params.{key} needs a GPU, and there is none: leave it false")
        if self.cuda_graphs and (reason := self.no_graphs(trainer)):
            raise UserError(f"model.params.cuda_graphs: {reason}; leave it false")
        for subject, images in zip(self.subjects, data.subjects, strict=True):
            check_prompts(subject, images)
        if hasattr(self.tuning, "check"):
            prompts = [text for images in data.subjects for text in (*images.prompts, *images.templates)]
            self.tuning.check([self.with_identifier(text) for text in prompts])
        data.timesteps(generator(0, "check"), self.model.schedule.num_timesteps)
        if self.prior_loss_weight > 0:
            self.model.passes(prior_sampling(data.prior))
        if self.model.dropouts():
            raise UserError(f"base {self.base}: it has dropout, whose draws are not repeatable; set it to 0")

    def no_graphs(self, trainer: Trainer) -> str | None:
        """Why this run's passes cannot be recorded as CUDA graphs; None if they can."""
        if self.compile_blocks:
            return "model.params.compile is not tested with it"
        if self.gradient_checkpointing:
            return "a recorded pass cannot be computed again, as model.params.gradient_checkpointing asks"
        if trainer.accumulate_grad_batches > 1:
            return "a replay overwrites the gradients that lightning.trainer.accumulate_grad_batches sums up"
        return "with several devices it is not tested" if trainer.world_size > 1 else None

    def setup(self, stage: str) -> None:
        set_tf32(self.tf32)
        data = self.trainer.datamodule
        untrained = self.tuning.untrained(self.model, DTYPES[data.prior["precision"]])
        self.latents = BaseLatents(self.model, untrained, self.compile_blocks)
        data.connect(self.latents, with_prior=self.prior_loss_weight > 0)

    def on_fit_start(self) -> None:
        """Start or restore the average; a run that only exports its last step again trains nothing, but needs it."""
        if self.ema is not None:
            self.average = WeightAverage(self.trainer.optimizers[0], self.ema, self._average_state)
            self._average_state = None

    def on_train_start(self) -> None:
        """Set training mode for networks that train, evaluation mode for others.

        Callbacks run first, so validation has used the untrained model by now.
        """
        for network in self.model.trainable.values():
            network.train(any(parameter.requires_grad for parameter in network.parameters()))
        self.model.vae.eval()
        self.model.remember_prompts()
        for optimizer in self.trainer.optimizers:
            if hasattr(optimizer, "train"):  # schedule-free optimizers start in evaluation mode
                optimizer.train()
        if self.compile_blocks and self.device.type == "cuda":
            self.model.compile_blocks()
        if self.cuda_graphs and self.device.type == "cuda":
            self.model.record_graphs()
        self.trainer.datamodule.prepare_latents()
        self._release_untrained()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._release_untrained()

    def _release_untrained(self) -> None:
        if not (self.trainer.datamodule.draws_prior or self.prior_from_untrained):
            self.latents.release_untrained()

    def configure_optimizers(self) -> dict[str, object]:
        groups = self.tuning.parameter_groups(self.model)
        # A fused optimizer would unscale fp16 gradients itself, after clipping.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        options = {"fused": False} if scaled and "fused" in getattr(self.optimizer, "keywords", {}) else {}
        optimizer = self.optimizer(groups, **options)
        optimizer.defaults["lr"] = max(group["lr"] for group in groups)  # of which "polynomial" takes its end
        schedule = get_scheduler(
            self.lr_schedule,
            optimizer,
            num_warmup_steps=self.lr_warmup_steps,
            num_training_steps=self.trainer.max_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def gradient_norm(self) -> Tensor:
        """2-norm of this step's gradients before clipping; computed once for both the guard and the clipping."""
        if self._gradient_norm is None:
            parameters = [p for group in self.trainer.optimizers[0].param_groups for p in group["params"]]
            self._gradient_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        return self._gradient_norm

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients: Lightning refuses fused optimizers in mixed precision, even in bf16, without scaling."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm())

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Free gradients now, so that prior sampling and the next forward pass can use the memory.
        optimizer.zero_grad()
        self._gradient_norm = None
        if self.average:
            self.average.update()

    def state_dict(self, *args: object, **kwargs: object) -> dict[str, Tensor]:
        """Everything that training changes. The rest is the base's, and read from there."""
        return {f"model.{name}": value for name, value in self.tuning.learned(self.model).items()}

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> None:
        """Load a `state_dict`. Raises UserError for a tensor that is missing, unused or misshapen."""
        learned = {name.removeprefix("model."): value for name, value in state_dict.items()}
        self.tuning.restore(self.model, learned, "checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["identifier"] = self.subjects[0].identifier
        checkpoint["concepts"] = [asdict(subject) for subject in self.subjects]
        checkpoint["base"] = str(self.base)
        checkpoint["base_fingerprint"] = self.model.fingerprint
        if self.average and "optimizer_states" in checkpoint:  # weights alone are the average already
            checkpoint["weight_average"] = self.average.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._average_state = checkpoint.get("weight_average")

    def export(self, run: Path) -> str:
        """Write the trained model to `run/model`; returns a message."""
        step = self.trainer.global_step
        card = card_of_run(run, self.model, self.subjects, step)
        subject = subject_facts(self.subjects, step, self.model.clip_skip)
        self.tuning.export(self.model, run / "model", DTYPES[self.export_dtype], subject, card)
        first = self.subjects[0]
        prompt = f"a photo of {first.placeholder} {first.class_word} on the moon"
        return (
            f"done: the model is in {run / 'model'}, its samples in {run / 'images'}. Sample it with\n"
            f"  python scripts/txt2img.py --ckpt {quoted(run)} --prompt {quoted(prompt)}"
        )

    def exported_step(self, run: Path) -> int | None:
        """Step of the model that `export` wrote to `run`; None if there is none."""
        return read_subject(run / "model").step
