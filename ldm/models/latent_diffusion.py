"""A latent diffusion model as one object: VAE, text encoders, UNet, tokenizers, noise schedule.

The networks are those of diffusers and transformers. Pixels are in [-1, 1] everywhere.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ldm.diffusion.conditioning import Conditioning, whole_image
from ldm.diffusion.guidance import guided
from ldm.diffusion.sampling import Sampling, initial_noise, make_scheduler, sample, scheduler_for
from ldm.diffusion.schedule import VariancePreserving
from ldm.errors import is_out_of_memory, say
from ldm.formats.base import Components, load_base
from ldm.formats.diffusers_folder import save_diffusers_folder
from ldm.formats.knowledge import note_for_copies
from ldm.formats.subject import notes_of
from ldm.models import codec
from ldm.models.codec import NotFiniteError
from ldm.models.deep_features import reused_deep_features
from ldm.models.graphed import GraphedPasses
from ldm.models.text_conditioning import Recorded, Remembered, text_conditioning, warn_of_cut
from ldm.randomness import image_generator

COMPILED_GRAPHS = 64
"""Enough for 3 widths x 2 gradient modes x the batch shapes of a run."""


class LatentDiffusion(nn.Module):
    """The model of Rombach et al. (arXiv 2112.10752), as in Stable Diffusion 1.x, 2.x and XL."""

    def __init__(self, components: Components, clip_skip: int = 1):
        """clip_skip: 1 conditions on the text encoders' layer used in training, 2 on the one before."""
        super().__init__()
        self.vae = components.vae.eval().requires_grad_(False)
        self.text_encoders = dict(components.text_encoders)
        """The text encoders by folder name, which is also their name in a checkpoint."""
        for name, encoder in self.text_encoders.items():
            self.add_module(name, encoder)
        self.unet = components.unet
        self.tokenizers = dict(components.tokenizers)
        """One per text encoder, by folder name."""
        self.scheduler_config = dict(components.scheduler_config)
        self.source = components.source
        self.fingerprint = components.fingerprint
        self.zero_unconditional = components.zero_unconditional
        self.text = text_conditioning(components, clip_skip)
        self.clip_skip = clip_skip
        self.at_once: int | None = None
        """The most pictures that are drawn together, once memory has run out; None so far."""
        self.graphs: GraphedPasses | None = None
        """Of the UNet's passes with gradients, if they are recorded."""
        # From diffusers, so that training adds noise exactly as its samplers remove it.
        alphas_cumprod = make_scheduler("ddpm", self.scheduler_config).alphas_cumprod
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    @classmethod
    def from_base(cls, base: str | Path, clip_skip: int = 1, **options) -> "LatentDiffusion":
        """Load `base`: a diffusers folder, hub id or single file. `options` go to `ldm.formats.base.load_base`."""
        return cls(load_base(base, **options), clip_skip)

    def components(self) -> Components:
        """The parts, for writing them to files."""
        return Components(
            vae=self.vae,
            unet=self.unet,
            text_encoders=dict(self.text_encoders),
            tokenizers=dict(self.tokenizers),
            scheduler_config=self.scheduler_config,
            source=self.source,
            fingerprint=self.fingerprint,
            zero_unconditional=self.zero_unconditional,
        )

    @property
    def prediction_type(self) -> str:
        """A `PredictionType`."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def schedule(self) -> VariancePreserving:
        """This model's noise schedule and prediction type."""
        return VariancePreserving(self.alphas_cumprod, self.prediction_type)

    @property
    def tokenizer(self) -> CLIPTokenizer:
        """The first text encoder's tokenizer; the others have the same tokens, but may pad differently."""
        return next(iter(self.tokenizers.values()))

    @property
    def trainable(self) -> dict[str, nn.Module]:
        """The networks that a tuning may change, by folder name, the denoiser first."""
        return {"unet": self.unet, **self.text_encoders}

    @property
    def device(self) -> torch.device:
        """The device of the networks that may train."""
        return self.unet.device

    @property
    def native_size(self) -> int:
        """The UNet's own image side in pixels."""
        return int(self.unet.config.sample_size * codec.factor(self.vae))

    @property
    def text_window(self) -> int:
        """Tokens that the text encoders read, including start and end (77 for CLIP)."""
        return self.text.window

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the latent of an image of `height` x `width` px."""
        return codec.latent_shape(self.vae, height, width)

    def posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, each [B, C, h, w] in fp32, of latents of `pixels` [B, 3, H, W] in [-1, 1]."""
        return codec.posterior(self.vae, pixels)

    def encode(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Latents [B, C, h, w] drawn from the posterior of `pixels` with standard normal `noise` of that shape."""
        mean, std = self.posterior(pixels)
        return mean + std * noise

    def decode(self, latents: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], fp32, for latents [B, C, h, w]. Raises NotFiniteError."""
        pictures = codec.decode(self.vae, latents)
        self._refuse_not_finite(pictures)
        return pictures.clamp(-1, 1)

    def embed(self, prompts: Sequence[str], size_ids: Tensor | None = None) -> Conditioning:
        """Conditioning of `prompts`, states [B, L, D], with gradients where the text encoders train.

        size_ids: original size, crop corner and target size of the images, [B, 6] in px, each vertical first, for a
        family that uses them; None for uncropped images of the model's own size.
        Equal prompts, frequent in a DreamBooth batch, are encoded once. An empty one is what guidance takes for no
        prompt: zeros where `zero_unconditional`. A warning quotes what is cut from a prompt longer than the window.
        """
        unique = sorted(set(prompts))
        for prompt in unique:
            warn_of_cut(self.tokenizer, prompt, self.text_window)
        conditioning = self.text.encode(unique).rows([unique.index(prompt) for prompt in prompts])
        if self.zero_unconditional and "" in unique:
            conditioning = conditioning.without_text(
                [row for row, prompt in enumerate(prompts) if not prompt]
            )
        if not self.text.sized:
            return conditioning
        if size_ids is None:
            size_ids = whole_image(self.native_size, self.native_size).expand(len(prompts), -1)
        return replace(conditioning, size_ids=size_ids.to(conditioning.states.device))

    def remember_prompts(self) -> None:
        """From now on encode each prompt only once, if no text encoder trains."""
        if not self.text_trains():
            self.text = Remembered(self.text, self.device)

    def text_trains(self) -> bool:
        """Whether anything of a text encoder trains."""
        return any(p.requires_grad for encoder in self.text_encoders.values() for p in encoder.parameters())

    def unused_text_layers(self) -> Sequence[nn.Module]:
        """Layers of the text encoders after the one used for conditioning, which get no gradient."""
        return self.text.unused_layers()

    def predict(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction [B, C, h, w] in fp32 for noisy latents `x` [B, C, h, w] and timesteps [B]."""
        dtype = next(self.unet.parameters()).dtype  # diffusers' own property takes 1 ms: it asks every module
        keywords = self.text.keywords(conditioning, dtype)
        denoise = self.graphs or self._denoise
        return denoise(x.to(dtype), timesteps, keywords).float()

    def _denoise(self, x: Tensor, timesteps: Tensor, keywords: Mapping[str, object]) -> Tensor:
        return self.unet(x, timesteps, **keywords).sample

    @torch.no_grad()
    def images(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        sampling: Sampling,
        height: int | None = None,
        width: int | None = None,
        batch_size: int | None = None,
        noise_seeds: Sequence[int | None] | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1], fp32: picture i depends only on `prompts[i]` and `seeds[i]`.

        height, width: in pixels; by default the model's own size. batch_size: pictures drawn together; by default
        all. noise_seeds: start picture i from the noise of `noise_seeds[i]` instead of its own seed's; None: its own.
        Where memory runs out, half as many are drawn together from then on.
        """
        shape = self.latent_shape(height or self.native_size, width or self.native_size)
        size = batch_size or max(len(prompts), 1)
        others = [None] * len(prompts) if noise_seeds is None else noise_seeds
        pictures: list[Tensor] = []
        first = 0
        while first < len(prompts):
            part = slice(first, first + min(size, self.at_once or size))
            try:
                drawn = self._drawn(prompts[part], seeds[part], others[part], shape, sampling, on_step)
            except RuntimeError as error:
                count = len(prompts[part])
                if count == 1 or not is_out_of_memory(error):
                    raise
                self.at_once = count // 2
            else:
                pictures.append(drawn)
                first = part.stop
                continue
            # Not in the handler, where the error still holds the failed pass's tensors.
            say(f"{count} pictures at once need more memory than there is: {self.at_once} from here on")
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        return torch.cat(pictures)

    def _drawn(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        noise_seeds: Sequence[int | None],
        latent_shape: Sequence[int],
        sampling: Sampling,
        on_step: Callable[[], object] | None,
    ) -> Tensor:
        """Pictures [B, 3, H, W] drawn together; parameters as in `images`."""
        generators = [image_generator(seed) for seed in seeds]
        # From a picture's own generator, so that a stochastic sampler does not draw the same noise again.
        starts = [
            own if other in (None, seed) else image_generator(other)
            for own, seed, other in zip(generators, seeds, noise_seeds, strict=True)
        ]
        noise = initial_noise(starts, latent_shape)
        return self.decode(self.sample(prompts, generators, latent_shape, sampling, noise, on_step))

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[str],
        generators: Sequence[torch.Generator],
        latent_shape: Sequence[int],
        sampling: Sampling,
        noise: Tensor | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """Latents [B, C, h, w] for `prompts`, image i drawn only with `generators[i]`.

        noise: start from it instead of a draw, [B, C, h, w]. on_step: called after each step.
        """
        if noise is None:
            noise = initial_noise(generators, latent_shape)
        height, width = (side * codec.factor(self.vae) for side in noise.shape[2:])
        size_ids = whole_image(height, width).expand(len(prompts), -1)
        positive = self.embed(prompts, size_ids)
        negative = self.embed([sampling.negative_prompt] * len(prompts), size_ids)
        with reused_deep_features(self.unet, sampling.deepcache):
            return sample(
                guided(self.predict, positive, negative, sampling.guidance_scale, sampling.guidance_interval),
                sampling,
                self.scheduler_config,
                noise.to(self.unet.device),
                generators,
                on_step,
            )

    def passes(self, sampling: Sampling) -> int:
        """Number of sampling steps, each with one call of `on_step`.

        Raises UserError if this model's noise schedule does not allow these settings.
        """
        return len(scheduler_for(sampling, self.scheduler_config)[1])

    def for_sampling(
        self, device: torch.device | str, dtype: torch.dtype, compiled: bool = False
    ) -> "LatentDiffusion":
        """This model on `device`, its text encoders and UNet in `dtype`, and if that is bf16, the VAE too.

        compiled: its UNet's transformer blocks are compiled.

        With fp16 the VAE stays in fp32 unless its config allows fp16 (`force_upcast`): activations of Stable
        Diffusion's VAE exceed fp16's 65504.
        """
        fits = dtype == torch.bfloat16 or self.vae.config.get("force_upcast") is False
        vae = dtype if fits else torch.float32
        for network, wanted in [*((own, dtype) for own in self.trainable.values()), (self.vae, vae)]:
            nn.Module.to(
                network, wanted
            )  # diffusers' own `to` warns about fp32 modules, even if there are none
        self.to(device)
        if compiled:
            self.compile_blocks()
        return self

    def save(
        self, folder: Path, dtype: torch.dtype, subject: Mapping[str, Any], card: str | None = None
    ) -> None:
        """Write the model in diffusers' layout, with the meaning of [V] in `dreambooth.json`.

        dtype: of the weights. card: text of its README.md.
        """
        notes = {**note_for_copies(self.source), **notes_of(subject, card)}
        save_diffusers_folder(self.components(), folder, dtype, notes)

    def frozen_copy(self, dtype: torch.dtype) -> "LatentDiffusion":
        """A copy of this model in `dtype`, only for inference; the VAE is shared, not copied."""
        parts = self.components()
        parts.unet = _copy_for_inference(self.unet, dtype)
        parts.text_encoders = {
            name: _copy_for_inference(encoder, dtype) for name, encoder in self.text_encoders.items()
        }
        return LatentDiffusion(parts, self.clip_skip)

    def move_trainable_to(self, device: torch.device) -> None:
        """Move the trainable networks and the noise schedule.

        The VAE stays: a frozen copy shares it with its model, which moves it.
        """
        for network in self.trainable.values():
            network.to(device)
        self.alphas_cumprod = self.alphas_cumprod.to(device)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory, a third more time."""
        self.unet.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.activation_checkpointing_enable()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the UNet's transformer blocks, which share one code object across all widths.

        Each width, batch shape and gradient mode has its own graph. Training, validation, drift and samples need more
        than torch's limit of 8, beyond which it raises an error.
        """
        import torch._dynamo  # takes a second, and is only needed for compiled runs

        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_GRAPHS)
        self.unet.compile_repeated_blocks(fullgraph=True, backend=backend)

    def record_graphs(self) -> None:
        """From now on record passes with gradients as CUDA graphs, and replay them (`GraphedPasses`)."""
        self.graphs = GraphedPasses(self._denoise, self.unet)
        if self.text_trains():
            self.text = Recorded(self.text, list(self.text_encoders.values()))

    def dropouts(self) -> list[nn.Module]:
        """Dropout layers, whose draws cannot be keyed by the sample number."""
        layers = [m for m in self.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        return layers + [own for own in self.text_encoders.values() if own.config.attention_dropout > 0]

    def _refuse_not_finite(self, pictures: Tensor) -> None:
        if pictures.isfinite().all():
            return
        if all(parameter.isfinite().all() for parameter in self.parameters()):
            reason = "a number became too large for fp16; use --precision bf16 or full"
            if self.unet.dtype != torch.float16:
                reason = f"a number became too large in {str(self.unet.dtype).removeprefix('torch.')}"
        else:
            reason = "the model's weights are not finite either; use an earlier checkpoint"
        raise NotFiniteError(f"pictures with values that are not finite: {reason}")


def _copy_for_inference(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A frozen copy of `module` in `dtype`, without an intermediate copy in its own dtype (4 GB for SD 1.x)."""
    done = {
        id(p): nn.Parameter(p.detach().to(dtype, copy=True), requires_grad=False) for p in module.parameters()
    }
    return copy.deepcopy(module, done).eval()
