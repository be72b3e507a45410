"""Training a VAE: pictures to latents and back."""

import copy
import math
from pathlib import Path
from typing import Annotated

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from einops import reduce
from torch import Tensor

from ldm.data.images import pixels_of
from ldm.files import find, replacing_folder
from ldm.formats.diffusers_folder import read_weights, write_network
from ldm.values import (
    Count,
    KeywordsOf,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Seed,
    Text,
    Unaffecting,
)
from ldm.world.from_scratch import keyed_weights, settings_of, update_average, warm_stable_decay


class Autoencoder(pl.LightningModule):
    """Learns an `AutoencoderKL` (Kingma and Welling, arXiv 1312.6114) by its reconstruction error.

    No adversarial or perceptual term: at 64 px on smooth pictures the plain error already gives sharp edges,
    and a discriminator would double the cost.

    network: the `AutoencoderKL` config.
    start: a VAE of this config whose decoder alone is trained further, so that a base trained on its latents fits it
    still; None starts from random weights.
    edge_weight: weight of the L1 error of horizontal and vertical differences, which keeps outlines crisp.
    kl_weight: weight of the posterior's divergence from N(0, 1), per latent number; only bounds the latents.
    average_decay: of the exponential moving average of the weights, which is exported.
    """

    def __init__(
        self,
        network: Annotated[dict, KeywordsOf("diffusers.AutoencoderKL")],
        learning_rate: PositiveFloat = 2e-3,
        total_steps: Annotated[Count, Unaffecting] = 10_000,
        warmup_steps: NonNegativeInt = 200,
        decay_steps: Annotated[NonNegativeInt, Unaffecting] = 5_000,
        edge_weight: NonNegativeFloat = 0.1,
        kl_weight: NonNegativeFloat = 1e-6,
        average_decay: Probability = 0.998,
        start: Text | None = None,
        seed: Seed = 0,
    ):
        super().__init__()
        with keyed_weights(seed, "vae"), settings_of("network"):
            self.vae = AutoencoderKL.from_config(network)
        if start is None:
            start_deterministic(self.vae)
        else:
            with settings_of("start"):
                self.vae.load_state_dict(read_weights(find(start), "vae", None))
                scaling = AutoencoderKL.load_config(find(start))["scaling_factor"]
                self.vae.register_to_config(scaling_factor=scaling)
            for part in (self.vae.encoder, self.vae.quant_conv):
                if part is not None:
                    part.requires_grad_(False)
        self.start = start
        self.average = copy.deepcopy(self.vae).requires_grad_(False)
        self.learning_rate, self.average_decay = learning_rate, average_decay
        self.steps = (warmup_steps, total_steps, decay_steps)
        self.edge_weight, self.kl_weight = edge_weight, kl_weight

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """batch: `pixels` [B, 3, H, W] in [-1, 1] and `noise` [B, C, h, w], standard normal."""
        pixels = batch["pixels"]
        with torch.set_grad_enabled(self.start is None):
            posterior = self.vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * batch["noise"]
        output = self.vae.decode(latents).sample
        loss = F.mse_loss(output.float(), pixels) + self.edge_weight * edge_error(output.float(), pixels)
        return loss + self.kl_weight * posterior.kl().mean() / latents[0].numel()

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        update_average(self.average, self.vae, self.average_decay, self.global_step)

    def export(self, run: Path) -> str:
        """Write the averaged VAE to `run/vae`; returns a message for the user.

        scaling_factor, which gives the latents unit variance, is measured on the first pictures, or is the start's.
        """
        if self.start is None:
            self.average.register_to_config(scaling_factor=round(1 / self.latent_std(), 4))
        with replacing_folder(run / "vae") as folder:
            write_network(self.average, "vae", folder, torch.float16)
        return f"done: the VAE is in {run / 'vae'}; copy it to assets/base/vae to train a base on it"

    @torch.no_grad()
    def latent_std(self, count: int = 512) -> float:
        pixels = pixels_of(self.trainer.datamodule.pixels[:count])
        latents = [self.average.encode(part.to(self.device)).latent_dist.mean for part in pixels.split(64)]
        return float(torch.cat(latents).std())

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            [p for p in self.vae.parameters() if p.requires_grad],
            self.learning_rate,
            weight_decay=0.01,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_stable_decay(step, *self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def start_deterministic(vae: AutoencoderKL, log_variance: float = -5.0) -> None:
    """Start with a nearly certain posterior: otherwise the latents drown in their own noise at first, and the
    decoder learns a single constant picture."""
    channels = vae.config.latent_channels
    layer = vae.quant_conv if vae.quant_conv is not None else vae.encoder.conv_out
    with torch.no_grad():
        layer.weight[channels:].zero_()
        layer.bias[channels:].fill_(log_variance)


def edge_error(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels; both [B, 3, H, W]."""
    error = output - target
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, [B] in dB; both [B, 3, H, W] in [-1, 1]."""
    error = reduce(torch.square(output.clamp(-1, 1) - target), "b c h w -> b", "mean")
    return 10 / math.log(10) * torch.log(4 / error)
