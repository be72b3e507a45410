"""Which weights train, and what a checkpoint must therefore hold: all of them, and nothing else."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.formats.modules import misfit
from ldm.models.latent_diffusion import LatentDiffusion, text_transformer


def choose_what_trains(
    model: LatentDiffusion, learning_rate: float, text_encoder_learning_rate: float | None
) -> None:
    """Let the UNet and the text encoder train where their rate is above 0; None is the UNet's rate."""
    rate = learning_rate if text_encoder_learning_rate is None else text_encoder_learning_rate
    model.unet.requires_grad_(learning_rate > 0)
    text_encoder = model.text_encoder.requires_grad_(rate > 0)
    # Layers past the one that conditions get no gradient; DDP would wait for it.
    layers = text_transformer(text_encoder).encoder.layers
    for layer in layers[len(layers) + 1 - model.clip_skip :]:
        layer.requires_grad_(False)


def restore(model: LatentDiffusion, learned: Mapping[str, Tensor], source: str) -> None:
    """Put the trained tensors of a checkpoint in the place of those that train in `model`.

    source: names the checkpoint in messages. Raises UserError unless `learned` holds exactly what trains, in
    shapes that fit, as finite floating-point numbers.
    """
    wanted = {name: value for name, value in model.named_parameters() if value.requires_grad}
    problem = misfit(wanted, learned)
    if problem:
        raise UserError(
            f"{source} does not fit its model: {problem}; is it whole, and the base the right one?"
        )
    broken = next((name for name, value in learned.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(f"{source} holds numbers that are not finite ({broken}): take an earlier one")
    model.load_state_dict(dict(learned), strict=False)
