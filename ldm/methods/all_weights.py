"""The paper's tuning: all layers of the denoiser train, and of the text encoders unless their rate is 0."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.methods.tuning import Untrained, check_learned, check_rates, untrained_copy
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.values import NonNegativeFloat, Rates


class AllWeights:
    """Trains every weight (DreamBooth, arXiv 2208.12242, section 3.3); see `ldm.methods.tuning.Tuning`."""

    def __init__(self, learning_rate: NonNegativeFloat, text_encoder_learning_rate: Rates | None = None):
        """Learning rates of the denoiser and of the text encoders (None: the same). A rate of 0 freezes a network."""
        self.learning_rate = learning_rate
        self.text_encoder_learning_rate = (
            learning_rate if text_encoder_learning_rate is None else text_encoder_learning_rate
        )

    def attach(self, model: LatentDiffusion) -> None:
        check_rates(model, self.text_encoder_learning_rate)
        for name, network in model.trainable.items():
            network.requires_grad_(self._rate(model, name) > 0)
        # DDP would wait for gradients of unused layers.
        for layer in model.unused_text_layers():
            layer.requires_grad_(False)

    def parameter_groups(self, model: LatentDiffusion) -> list[dict[str, object]]:
        groups = [
            {
                "name": name,
                "params": [parameter for parameter in network.parameters() if parameter.requires_grad],
                "lr": self._rate(model, name),
            }
            for name, network in model.trainable.items()
        ]
        return [group for group in groups if group["params"]]

    def learned(self, model: LatentDiffusion) -> dict[str, Tensor]:
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in model.state_dict().items() if name in trained}

    def restore(self, model: LatentDiffusion, learned: Mapping[str, Tensor], source: str) -> None:
        check_learned(self.learned(model), learned, source)
        model.load_state_dict(learned, strict=False)

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """A frozen copy, since training overwrites every weight."""
        return untrained_copy(model.frozen_copy(dtype), model)

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, object],
        card: str | None,
    ) -> None:
        model.save(folder, dtype, subject, card)

    def _rate(self, model: LatentDiffusion, name: str) -> float:
        rates = self.text_encoder_learning_rate if name in model.text_encoders else self.learning_rate
        return rates[name] if isinstance(rates, Mapping) else rates
