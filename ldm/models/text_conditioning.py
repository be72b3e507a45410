"""How prompts become what a denoising network is told: one class for each way of conditioning on text."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.diffusion.conditioning import Conditioning
from ldm.errors import UserError
from ldm.formats.components import Components


class TextConditioning(Protocol):
    """Text encoders and tokenizers of a model, as the model asks them. It owns none of the networks."""

    window: int
    """Tokens that the text encoders read, start and end included."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """One row for each of `prompts`, with gradients where a text encoder trains."""

    def keywords(self, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        """`conditioning` as keywords of the denoising network, its tensors in `dtype`."""

    def unused_layers(self) -> list[nn.Module]:
        """Layers of the text encoders that nothing is conditioned on: they get no gradient."""


def text_transformer(text_encoder: nn.Module) -> CLIPTextModel:
    """The module that holds the layers: some versions and classes of transformers nest it under `text_model`."""
    return getattr(text_encoder, "text_model", text_encoder)


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], window: int) -> Tensor:
    """Token ids [B, window], padded; a longer prompt is cut."""
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=window, return_tensors="pt"
    ).input_ids


def warn_of_cut(tokenizer: CLIPTokenizer, prompt: str, window: int) -> None:
    """Quote what is cut from a prompt of more tokens than `window`."""
    words = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
    room = window - 2  # start and end tokens
    if len(words) > room:
        cut = tokenizer.decode(words[room:]).strip()
        warnings.warn(
            f"prompt longer than the {window} tokens the model reads; cut: '{cut}'",
            stacklevel=2,
        )


class ClipStates:
    """The states of one CLIP text encoder, normed: Stable Diffusion 1.x and 2.x."""

    def __init__(
        self,
        text_encoders: Mapping[str, CLIPTextModel],
        tokenizers: Mapping[str, CLIPTokenizer],
        clip_skip: int,
        source: str,
    ):
        """clip_skip: 1 conditions on the last layer, 2 on the one before, and so on. source: for messages."""
        (self.text_encoder,) = text_encoders.values()
        (self.tokenizer,) = tokenizers.values()
        self.transformer = text_transformer(self.text_encoder)
        layers = len(self.transformer.encoder.layers)
        if not 1 <= clip_skip <= layers:
            raise UserError(
                f"clip_skip is {clip_skip}: the text encoder of {source} has layers 1 to {layers}"
            )
        self.clip_skip = clip_skip
        self.window = int(self.text_encoder.config.max_position_embeddings)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, L, D]."""
        ids = tokenize(self.tokenizer, prompts, self.window).to(self.text_encoder.device)
        if self.clip_skip == 1:
            return Conditioning(self.text_encoder(ids).last_hidden_state)
        states = self.text_encoder(ids, output_hidden_states=True).hidden_states[-self.clip_skip]
        return Conditioning(self.transformer.final_layer_norm(states))

    def keywords(self, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, Any]:
        return {"encoder_hidden_states": conditioning.states.to(dtype)}

    def unused_layers(self) -> list[nn.Module]:
        layers = list(self.transformer.encoder.layers)
        return layers[len(layers) + 1 - self.clip_skip :]


def text_conditioning(components: Components, clip_skip: int) -> TextConditioning:
    """The way of conditioning of the model that `components` are, on its layer `clip_skip` from the last."""
    return ClipStates(components.text_encoders, components.tokenizers, clip_skip, components.source)
