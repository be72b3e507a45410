"""Adapters of the peft library: a few small matrices beside the base's layers train; the base is unchanged.

LoRA (Hu et al., arXiv 2106.09685), DoRA (Liu et al., arXiv 2402.09353), OFT (Qiu et al., arXiv 2306.07280) and others,
by the class of peft's config.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig

from ldm.formats.lora import save_lora_folder
from ldm.formats.subject import notes_of
from ldm.methods.adapter_layers import add_adapter, merge_adapters, remove_adapters, switched_off
from ldm.methods.all_weights import AllWeights
from ldm.methods.lora import lora_of
from ldm.methods.tuning import Untrained, check_rates, untrained_copy
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.values import NonNegativeFloat, Rates, Seed


class Adapter(AllWeights):
    """Trains an adapter of the denoiser, and one of each text encoder; see `ldm.methods.tuning.Tuning`."""

    def __init__(
        self,
        learning_rate: NonNegativeFloat,
        config: Callable[..., PeftConfig],
        seed: Seed,
        text_encoder_config: Callable[..., PeftConfig] | None = None,
        text_encoder_learning_rate: Rates | None = None,
    ):
        """config: of the denoiser's adapter; text_encoder_config: of the text encoders' adapters (None: no adapter).

        A learning rate of 0 also leaves out the adapter. seed: of the adapters' initial weights.
        """
        super().__init__(learning_rate, text_encoder_learning_rate)
        self.config = config
        self.text_encoder_config = text_encoder_config
        self.seed = seed

    def attach(self, model: LatentDiffusion) -> None:
        check_rates(model, self.text_encoder_learning_rate)
        for name, network in model.trainable.items():
            network.requires_grad_(False)
            config = self.text_encoder_config if name in model.text_encoders else self.config
            if config is not None and self._rate(model, name) > 0:
                add_adapter(network, config(), self.seed, f"adapter {name}")
        # DDP would wait for gradients of unused layers.
        for layer in model.unused_text_layers():
            remove_adapters(layer)

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """The same model with its adapters switched off; only another precision needs a copy of it."""
        if any(network.dtype != dtype for network in model.trainable.values()):
            copy = model.frozen_copy(dtype)
            remove_adapters(copy)
            return untrained_copy(copy, model)

        @contextmanager
        def base() -> Iterator[LatentDiffusion]:
            training = {network: network.training for network in model.trainable.values()}
            with switched_off(model):
                for network in training:
                    network.eval()
                try:
                    yield model
                finally:
                    for network, mode in training.items():
                        network.train(mode)

        return base

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, object],
        card: str | None,
    ) -> None:
        """Write a LoRA or DoRA in diffusers' layout; other adapters are merged into a whole model."""
        lora = lora_of(model)
        if lora is not None:
            save_lora_folder(lora, folder, dtype, notes_of(subject, card))
            return
        merged = model.frozen_copy(torch.float32)
        merge_adapters(merged)
        merged.save(folder, dtype, subject, card)
