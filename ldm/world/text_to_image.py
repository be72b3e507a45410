"""Training the UNet and the text encoder together, from scratch, on a trained VAE."""

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.data.images import pixels_of
from ldm.diffusion.loss import denoising_error
from ldm.diffusion.weighting import MinSnr
from ldm.files import find, replacing
from ldm.formats.components import Components
from ldm.formats.diffusers_folder import (
    read_tokenizer,
    read_vae,
    read_weights,
    save_diffusers_folder,
)
from ldm.models.latent_diffusion import LatentDiffusion
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
from ldm.world.drawing import NAMES
from ldm.world.from_scratch import keyed_weights, settings_of, update_average, warm_stable_decay


class TextToImage(pl.LightningModule):
    """Learns eps(x_t, t, caption) on the latents of the datamodule's pictures.

    first_stage, tokenizer: folders. unet, text_encoder, scheduler: configs of the networks and the schedule.
    start: a base whose UNet and text encoder, of these configs, are trained further; None starts from random weights.
    token_std: of the initial token embeddings. Those of tokens that occur in no caption, of which one may become a
    subject's identifier, are exported alike to names.
    min_snr_gamma: limits the weight of nearly clean samples (arXiv 2303.09556).
    latent_cache: file of the latents of all pictures, so that each is encoded once.
    """

    def __init__(
        self,
        first_stage: Text,
        tokenizer: Text,
        unet: Annotated[dict, KeywordsOf("diffusers.UNet2DConditionModel")],
        text_encoder: Annotated[dict, KeywordsOf("transformers.CLIPTextConfig")],
        scheduler: Annotated[dict, KeywordsOf("diffusers.DDIMScheduler")],
        learning_rate: PositiveFloat = 8e-4,
        total_steps: Annotated[Count, Unaffecting] = 20_000,
        warmup_steps: NonNegativeInt = 300,
        decay_steps: Annotated[NonNegativeInt, Unaffecting] = 4_000,
        weight_decay: NonNegativeFloat = 0.01,
        token_std: NonNegativeFloat = 0.06,
        min_snr_gamma: PositiveFloat | None = 5.0,
        start: Text | None = None,
        average_decay: Probability = 0.999,
        latent_cache: Annotated[Text, Unaffecting] = ".cache/latents",
        seed: Seed = 0,
    ):
        super().__init__()
        words = read_tokenizer(find(tokenizer), text_encoder["vocab_size"])
        with keyed_weights(seed, "text_encoder"), settings_of("text_encoder"):
            reader = CLIPTextModel(CLIPTextConfig(**text_encoder))
            nn.init.normal_(reader.get_input_embeddings().weight, std=token_std)
        with keyed_weights(seed, "unet"), settings_of("unet"):
            denoiser = UNet2DConditionModel.from_config(unet)
        with settings_of("scheduler"):
            self.model = LatentDiffusion(
                Components(
                    vae=read_vae(find(first_stage), variant=None, dtype=torch.float32),
                    unet=denoiser,
                    text_encoders={"text_encoder": reader},
                    tokenizers={"tokenizer": words},
                    scheduler_config=scheduler,
                    source="from scratch",
                    fingerprint="",
                )
            )
        self.trained = nn.ModuleDict(self.model.trainable).train()
        if start is not None:
            with settings_of("start"):
                for name, network in self.trained.items():
                    network.load_state_dict(read_weights(find(start) / name, name, None))
        self.average = copy.deepcopy(self.trained).eval().requires_grad_(False)
        self.learning_rate, self.weight_decay, self.average_decay = learning_rate, weight_decay, average_decay
        self.steps = (warmup_steps, total_steps, decay_steps)
        self.weighting = None if min_snr_gamma is None else MinSnr(min_snr_gamma)
        self.latent_cache = Path(latent_cache)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """batch: `index` [B] into the pictures, `caption` [B], `noise` [B, C, h, w], `timestep` [B]."""
        x = self.latents(batch["index"])
        # On sequences this short the fused attention's backward pass takes a third of a step on a CPU.
        with sdpa_kernel(SDPBackend.MATH):
            conditioning = self.model.embed(batch["caption"])
            error = denoising_error(
                lambda noisy, t: self.model.predict(noisy, t, conditioning),
                x,
                batch["noise"],
                batch["timestep"],
                self.model.schedule,
                self.weighting,
            )
        return error.mean()

    def latents(self, index: Tensor) -> Tensor:
        """Latents [B, C, h, w] of the pictures `index` [B]."""
        return torch.from_numpy(self._latents[index.cpu().numpy()].astype(np.float32)).to(index.device)

    def on_fit_start(self) -> None:
        self._latents = encoded(self.model.vae, self.trainer.datamodule.pixels, self.latent_cache)

    def on_train_batch_end(self, outputs, batch, batch_idx) -> None:
        update_average(self.average, self.trained, self.average_decay, self.global_step)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(
            self.trained.parameters(),
            self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            foreach=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_stable_decay(step, *self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, run: Path) -> str:
        """Write the averaged model in diffusers' layout to `run/model`; returns a message for the user."""
        save_diffusers_folder(self.averaged(), run / "model", torch.float16)
        return f"done: {run / 'model'} holds the model; copy it to assets/base to build on it"

    def averaged(self) -> Components:
        """The parts with the averaged weights, and with unused tokens alike to names."""
        parts = self.model.components()
        average = copy.deepcopy(self.average)
        parts.unet, parts.text_encoders = average["unet"], {"text_encoder": average["text_encoder"]}
        tokenizer = parts.tokenizers["tokenizer"]
        captions = tokenizer(self.trainer.datamodule.every_caption()).input_ids
        used = torch.tensor(sorted({token for ids in captions for token in ids}))
        names = torch.tensor(tokenizer(" ".join(NAMES), add_special_tokens=False).input_ids)
        reader = parts.text_encoders["text_encoder"]
        liken_to_names(reader.get_input_embeddings().weight, used, names)
        return parts


@torch.no_grad()
def liken_to_names(embeddings: Tensor, used: Tensor, names: Tensor) -> None:
    """Make the rows of `embeddings` [V, D] that are not in `used` [U] alike to those of `names` [N].

    A word that no caption has is then read as the name of an individual, so that fine-tuning can bind it to one. Each
    becomes twice the names' mean, which is what names share, and its own direction, as long as names are together.
    Without it such a word hardly changes a prediction: weight decay has shortened it, and its direction means nothing.
    """
    unused = torch.ones(len(embeddings), dtype=torch.bool)
    unused[used] = False
    common, length = 2 * embeddings[names].mean(dim=0), embeddings[names].norm(dim=1).mean()
    own = F.normalize(embeddings[unused], dim=1)
    embeddings[unused] = common + own * (length.square() - common.square().sum()).clamp(min=0).sqrt()


@torch.no_grad()
def encoded(
    vae: AutoencoderKL, pixels: NDArray[np.uint8], cache: Path, chunk: int = 250
) -> NDArray[np.float16]:
    """Posterior means of `pixels` [N, S, S, 3] at unit variance, [N, C, h, w]; cached in `cache`.

    The posterior's own noise is a hundredth of the latents' variance or less, so it is ignored.
    """
    path = cache / f"{weights_hash(vae)}-{len(pixels)}.npy"
    if not path.exists():
        parts = []
        for first in range(0, len(pixels), chunk):
            part = pixels_of(pixels[first : first + chunk]).to(vae.device)
            mean = vae.encode(part).latent_dist.mean
            parts.append((mean * vae.config.scaling_factor).half().cpu().numpy())
        with replacing(path, shared=True) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(parts))
    return np.load(path, mmap_mode="r")


def weights_hash(module: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=6)
    for value in module.state_dict().values():
        digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
