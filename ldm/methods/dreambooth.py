"""DreamBooth: teach a latent diffusion model one subject, and keep its class as it was.

Ruiz et al., arXiv 2208.12242. `training_step` is equation 2; the rest says what trains, and how.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from ldm.devices import DTYPES
from ldm.diffusion.loss import denoising_error
from ldm.errors import UserError
from ldm.methods.frozen import FrozenBase
from ldm.methods.model_card import card_of_run
from ldm.methods.what_trains import choose_what_trains, restore
from ldm.models.latent_diffusion import LatentDiffusion, read_subject
from ldm.models.prompts import PLACEHOLDER, fill_in_identifier, resolve_identifier


class DreamBooth(LightningModule):
    """The frozen first stage, and the text encoder and UNet that train."""

    def __init__(
        self,
        base: str,
        identifier: str,
        optimizer: Callable[..., Optimizer],
        learning_rate: float,
        seed: int,
        text_encoder_learning_rate: float | None = None,
        lr_schedule: str = "constant",
        lr_warmup_steps: int = 0,
        prior_loss_weight: float = 1.0,
        min_snr_gamma: float | None = None,
        clip_skip: int = 1,
        gradient_checkpointing: bool = False,
        weights_precision: str = "fp32",
        compile: bool = False,
        tf32: bool = False,
        revision: str | None = None,
        variant: str | None = None,
        use_ema: bool = True,
        vae: str | None = None,
        prediction_type: str | None = None,
        export_dtype: str = "fp32",
    ):
        """`configs/dreambooth.yaml` says what each setting means."""
        super().__init__()
        self.model = LatentDiffusion.from_base(
            base,
            clip_skip,
            revision=revision,
            variant=variant,
            use_ema=use_ema,
            vae=vae,
            prediction_type=prediction_type,
        )
        if weights_precision not in ("fp32", "bf16"):
            raise UserError(f"model.params.weights_precision is '{weights_precision}': fp32 or bf16")
        self.model.unet.to(DTYPES[weights_precision])
        self.model.text_encoder.to(DTYPES[weights_precision])
        self.identifier = resolve_identifier(identifier, self.model.tokenizer, seed)
        self.base = base
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.text_encoder_learning_rate = (
            learning_rate if text_encoder_learning_rate is None else text_encoder_learning_rate
        )
        self.lr_schedule = lr_schedule
        self.lr_warmup_steps = lr_warmup_steps
        self.prior_loss_weight = prior_loss_weight
        self.min_snr_gamma = min_snr_gamma
        self.export_dtype = export_dtype
        self.compile_blocks, self.tf32 = compile, tf32
        self.gradient_norm: Tensor | None = None
        """Of this step's gradients before they are clipped, where a callback computes it at every step."""
        self.frozen = FrozenBase(self.model)
        choose_what_trains(self.model, self.learning_rate, self.text_encoder_learning_rate)
        if gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()
            self.model.text_encoder.activation_checkpointing_enable()

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Equation 2 of the paper: the subject's error plus lambda times the class prior's."""
        subject = self.subject_latents(batch)  # [B, C, h, w]
        prior = batch.get("prior_latents", subject[:0])  # [B, C, h, w], drawn by the frozen base
        error = self.denoising_error(torch.cat([subject, prior]), batch)  # [2B]
        subject_error, prior_error = error.split([len(subject), len(prior)])
        subject_loss = subject_error.mean()
        prior_loss = prior_error.mean() if len(prior) else torch.zeros_like(subject_loss)
        loss = subject_loss + self.prior_loss_weight * prior_loss
        return {"loss": loss, "subject_loss": subject_loss.detach(), "prior_loss": prior_loss.detach()}

    def denoising_error(self, latents: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """Error of every sample, [B], for clean `latents` [B, C, h, w] and the batch's noise, timesteps and prompts."""
        states = self.model.embed([self.with_identifier(prompt) for prompt in batch["prompts"]])
        return denoising_error(
            lambda x, timesteps: self.model.predict(x, timesteps, states),
            latents,
            batch["noise"],
            batch["timesteps"],
            self.model.alphas_cumprod,
            self.model.prediction_type,
            self.min_snr_gamma,
        )

    def subject_latents(self, batch: Mapping[str, Any]) -> Tensor:
        """Latents [B, C, h, w] of the batch's subject images, drawn from the first stage's posterior."""
        if "pixels" in batch:
            return self.model.encode(batch["pixels"], batch["posterior_noise"])
        mean, std = self.posteriors
        rows = [self.posterior_rows[view] for view in batch["views"]]
        return mean[rows] + std[rows] * batch["posterior_noise"]

    def with_identifier(self, prompt: str) -> str:
        """`prompt` with the run's identifier in place of [V]."""
        return fill_in_identifier(prompt, self.identifier)

    def check(self, data: Any) -> None:
        """Raise UserError for data that this model cannot be trained on, before anything is written."""
        self.model.latent_shape(data.size, data.size)
        if self.compile_blocks and not torch.cuda.is_available():
            # On a CPU torch 2.13's compiled convolutions have had gradients of zero.
            raise UserError("model.params.compile is for GPUs, and there is none: leave it false")
        for prompt in data.subject.prompts:
            if PLACEHOLDER not in prompt and self.identifier not in prompt.split():
                raise UserError(
                    f"prompt '{prompt}' of the subject's images: write [V] where its identifier goes"
                )
        if PLACEHOLDER in data.prior_prompt:
            raise UserError(
                f"data.params.prior_prompt '{data.prior_prompt}' is the class's: leave [V] out of it"
            )

    def setup(self, stage: str) -> None:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        data = self.trainer.datamodule
        with_prior = self.prior_loss_weight > 0
        latent_shape = self.model.latent_shape(data.size, data.size)

        def draw_prior(indices: Sequence[int]) -> Tensor:
            return self.frozen.sample_prior(indices, data.prior_prompt, latent_shape, data.seed, data.prior)

        data.connect(
            latent_shape,
            self.model.num_timesteps,
            with_prior,
            draw_prior,
            self.encode,
            self.model.fingerprint,
        )
        self.frozen.take(data.prior["precision"])
        if with_prior and not data.prior_files:
            self.frozen.needed_for("prior")

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Latents of `pixels` on this module's device; see LatentDiffusion.encode."""
        return self.model.encode(pixels.to(self.device), noise.to(self.device))

    def configure_optimizers(self) -> dict[str, Any]:
        groups = [
            {"name": "unet", "params": _trained(self.model.unet), "lr": self.learning_rate},
            {
                "name": "text_encoder",
                "params": _trained(self.model.text_encoder),
                "lr": self.text_encoder_learning_rate,
            },
        ]
        groups = [group for group in groups if group["params"]]
        # A fused optimizer would unscale fp16's gradients itself, after they were clipped.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        options = {"fused": False} if scaled and "fused" in self.optimizer.keywords else {}
        optimizer = self.optimizer(groups, **options)
        schedule = get_scheduler(
            self.lr_schedule,
            optimizer,
            num_warmup_steps=self.lr_warmup_steps,
            num_training_steps=self.trainer.max_steps,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        """Lightning's own refuses every fused optimizer under mixed precision, bf16 too, where nothing is scaled."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if gradient_clip_val and gradient_clip_algorithm == "value":
            nn.utils.clip_grad_value_(parameters, gradient_clip_val)
        elif gradient_clip_val and self.gradient_norm is None:
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)
        elif gradient_clip_val:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        # Now and not before the next backward pass: prior samples and the next forward pass have their room.
        optimizer.zero_grad()

    def state_dict(self, *args, **kwargs) -> dict[str, Tensor]:
        """What trains. The rest is the base's, and comes from there."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {key: value for key, value in super().state_dict(*args, **kwargs).items() if key in trained}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False):
        """Strict on what trains: a key missing or left over is an error; the base's own weights stay."""
        learned = {key.removeprefix("model."): value for key, value in state_dict.items()}
        restore(self.model, learned, "checkpoint")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["identifier"] = self.identifier
        checkpoint["base"] = str(self.base)
        checkpoint["base_fingerprint"] = self.model.fingerprint

    def export(self, run: Path) -> str:
        """Write the model in diffusers' layout to `run/model`; returns what to tell the user."""
        data, step = self.trainer.datamodule, self.trainer.global_step
        subject = {"identifier": self.identifier, "class_word": data.class_word, "step": step}
        card = card_of_run(run, self.model, **subject)
        self.model.save(run / "model", self.export_dtype, subject, card)
        return (
            f"done: {run / 'model'} holds the model, {run / 'images'} its samples. Sample it with\n"
            f'  python scripts/txt2img.py --ckpt {run} --prompt "a photo of [V] {data.class_word} on the moon"'
        )

    def exported_step(self, run: Path) -> int | None:
        """Step of the model that `export` has written to `run`; None where there is none."""
        return read_subject(run / "model").get("step")

    def on_train_start(self) -> None:
        """The text encoder and UNet in training mode, the first stage not; no dropout, which nothing could key."""
        self.model.unet.train()
        self.model.text_encoder.train(self.text_encoder_learning_rate > 0)
        self.model.vae.eval()
        dropouts = [m for m in self.model.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        if dropouts or self.model.text_encoder.config.attention_dropout > 0:
            raise UserError(
                f"base {self.base}: it has dropout, whose draws could not be repeated; set it to 0"
            )

        if self.compile_blocks and self.device.type == "cuda":
            self.model.unet.compile_repeated_blocks(fullgraph=True)
        self.encode_views(self.trainer.datamodule.subject)
        data = self.trainer.datamodule
        data.bank.load_existing()
        if data.with_prior and data.prior.get("fill_at_start"):
            data.bank.fill(range(data.prior_count))
        self.frozen.done_with("setup")

    def encode_views(self, subject: Any) -> None:
        """The first stage is frozen, so every view of the subject is encoded once; alone, to be the same in any run."""
        if subject.random_crop:
            return
        moments = [self.model.posterior(subject.pixels(view)[None].to(self.device)) for view in subject.views]
        self.posteriors = tuple(torch.cat(parts) for parts in zip(*moments, strict=True))
        self.posterior_rows = {view: row for row, view in enumerate(subject.views)}

    def on_train_batch_start(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        if self.trainer.datamodule.bank.full:
            self.frozen.done_with("prior")


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
