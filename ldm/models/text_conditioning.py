"""From prompts to conditioning of a denoising network: one class for each way."""

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from ldm.devices import sent
from ldm.diffusion.conditioning import Conditioning
from ldm.errors import UserError
from ldm.formats.components import Components
from ldm.models.graphed import GraphedPasses
from ldm.models.new_tokens import with_all_vectors


class TextConditioning(Protocol):
    """The model's interface to its text encoders and tokenizers. It owns none of the networks."""

    window: int
    """Tokens that the text encoders read, including start and end."""
    sized: bool
    """Whether the network also gets the sizes and the crop of each image."""

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """One row per prompt, with gradients if a text encoder trains."""

    def tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        """Token ids [B, window] for each text encoder, on its device."""

    def texts(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """The text encoders' pass: the first fields of `Conditioning` for `tokens`."""

    def keywords(self, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, object]:
        """`conditioning` as keywords of the denoising network, with tensors in `dtype`."""

    def unused_layers(self) -> list[nn.Module]:
        """Layers of the text encoders that are not used for conditioning and get no gradient."""


def text_transformer(text_encoder: nn.Module) -> CLIPTextModel:
    """The module with the layers, which some versions and classes of transformers nest in `text_model`."""
    return getattr(text_encoder, "text_model", text_encoder)


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str], window: int) -> Tensor:
    """Token ids [B, window], padded; longer prompts are truncated."""
    written_out = [with_all_vectors(prompt, tokenizer) for prompt in prompts]
    return tokenizer(
        written_out, padding="max_length", truncation=True, max_length=window, return_tensors="pt"
    ).input_ids


def warn_of_cut(tokenizer: CLIPTokenizer, prompt: str, window: int) -> None:
    """Warn of a prompt with more tokens than `window`, and quote what is cut."""
    words = tokenizer(with_all_vectors(prompt, tokenizer), add_special_tokens=False, verbose=False).input_ids
    room = window - 2  # start and end tokens
    if len(words) > room:
        cut = tokenizer.decode(words[room:]).strip()
        warnings.warn(
            f"prompt longer than the {window} tokens the model reads; cut: '{cut}'",
            stacklevel=2,
        )


class ClipStates:
    """The normalized states of one CLIP text encoder: Stable Diffusion 1.x and 2.x."""

    sized = False

    def __init__(self, components: Components, clip_skip: int):
        """clip_skip: 1 conditions on the last layer, 2 on the one before, etc."""
        (self.text_encoder,) = components.text_encoders.values()
        (self.tokenizer,) = components.tokenizers.values()
        self.transformer = text_transformer(self.text_encoder)
        self.used = len(self.transformer.encoder.layers) + 1 - clip_skip
        refuse_other_layers(self.used, clip_skip, components)
        self.clip_skip = clip_skip
        self.window = int(self.text_encoder.config.max_position_embeddings)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, L, D]."""
        return Conditioning(*self.texts(*self.tokens(prompts)))

    def tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        return [sent(tokenize(self.tokenizer, prompts, self.window), self.text_encoder.device)]

    def texts(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """States [B, L, D] for ids [B, L]."""
        if self.clip_skip == 1:
            return (self.text_encoder(*ids).last_hidden_state,)
        states = self.text_encoder(*ids, output_hidden_states=True).hidden_states[self.used]
        return (self.transformer.final_layer_norm(states),)

    def keywords(self, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, object]:
        return {"encoder_hidden_states": conditioning.states.to(dtype)}

    def unused_layers(self) -> list[nn.Module]:
        return list(self.transformer.encoder.layers)[self.used :]


class ClipPair:
    """The joined states of two CLIP text encoders, and the second's pooled text: Stable Diffusion XL.

    Podell et al., arXiv 2307.01952, section 2.1: the states are those before the last layer, not normalized;
    section 2.2: the network also gets the size and the crop of each image.
    """

    sized = True

    def __init__(self, components: Components, clip_skip: int):
        """clip_skip: 1 conditions on the layer before the last, as in training, 2 on the one before that, etc."""
        self.text_encoders = list(components.text_encoders.values())
        self.tokenizers = list(components.tokenizers.values())
        self.transformers = [text_transformer(encoder) for encoder in self.text_encoders]
        layers = [len(transformer.encoder.layers) for transformer in self.transformers]
        self.used = [count - clip_skip for count in layers]
        refuse_other_layers(min(self.used), clip_skip, components)
        self.window = min(int(encoder.config.max_position_embeddings) for encoder in self.text_encoders)
        # Published configs say 2, for which transformers pools at a prompt's highest id, which may be a new token's.
        end = self.tokenizers[-1].eos_token_id
        self.transformers[-1].eos_token_id = self.text_encoders[-1].config.eos_token_id = end

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """States [B, L, D1 + D2] and pooled text [B, P]."""
        return Conditioning(*self.texts(*self.tokens(prompts)))

    def tokens(self, prompts: Sequence[str]) -> list[Tensor]:
        return [
            sent(tokenize(tokenizer, prompts, self.window), encoder.device)
            for encoder, tokenizer in zip(self.text_encoders, self.tokenizers, strict=True)
        ]

    def texts(self, *ids: Tensor) -> tuple[Tensor, ...]:
        """States [B, L, D1 + D2] and pooled text [B, P] for two times ids [B, L]."""
        states = []
        for encoder, own, used in zip(self.text_encoders, ids, self.used, strict=True):
            output = encoder(own, output_hidden_states=True)
            states.append(output.hidden_states[used])
        return torch.cat(states, dim=-1), output.text_embeds

    def keywords(self, conditioning: Conditioning, dtype: torch.dtype) -> dict[str, object]:
        assert conditioning.pooled is not None
        assert conditioning.size_ids is not None
        added = {"text_embeds": conditioning.pooled.to(dtype), "time_ids": conditioning.size_ids}
        return {"encoder_hidden_states": conditioning.states.to(dtype), "added_cond_kwargs": added}

    def unused_layers(self) -> list[nn.Module]:
        """Those of the first text encoder; the pooled text needs all layers of the second."""
        transformer, used = self.transformers[0], self.used[0]
        return [*list(transformer.encoder.layers)[used:], transformer.final_layer_norm]


class Wrapped:
    """A text conditioning around another one, which does all but `encode`."""

    def __init__(self, text: TextConditioning):
        self.text = text
        self.window, self.sized = text.window, text.sized
        self.keywords, self.unused_layers = text.keywords, text.unused_layers
        self.tokens, self.texts = text.tokens, text.texts


class Remembered(Wrapped):
    """Caches each prompt's conditioning, encoded alone and in full precision, for text encoders that do not train."""

    PROMPTS = 256
    """Maximum number in the cache: 160 MB for Stable Diffusion XL in fp32."""

    def __init__(self, text: TextConditioning, device: torch.device):
        """device: of the text encoders."""
        super().__init__(text)
        self.device = device
        self.known: dict[str, Conditioning] = {}

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return reduce(Conditioning.joined_with, (self._of(prompt) for prompt in prompts))

    def _of(self, prompt: str) -> Conditioning:
        if prompt not in self.known:
            if len(self.known) == self.PROMPTS:
                self.known.pop(next(iter(self.known)))
            # Independent of the batch's other prompts and of autocast; otherwise a resume would differ.
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                self.known[prompt] = self.text.encode([prompt])
        return self.known[prompt]


class Recorded(Wrapped):
    """Records the text encoders' passes with gradients as CUDA graphs, and replays them (`GraphedPasses`)."""

    def __init__(self, text: TextConditioning, text_encoders: Sequence[nn.Module]):
        super().__init__(text)
        self.graphs = GraphedPasses(text.texts, *text_encoders)

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(*self.graphs(*self.tokens(prompts)))


def refuse_other_layers(used: int, clip_skip: int, components: Components) -> None:
    """Raise UserError unless layer `clip_skip` exists; used: the number of layers up to it."""
    most = used + clip_skip - 1
    if not 1 <= clip_skip <= most:
        raise UserError(
            f"clip_skip is {clip_skip}: the text encoder of {components.source} has layers 1 to {most}"
        )


def text_conditioning(components: Components, clip_skip: int) -> TextConditioning:
    """The text conditioning for the model of `components`; clip_skip: see `ClipStates` and `ClipPair`."""
    kind = ClipStates if len(components.text_encoders) == 1 else ClipPair
    return kind(components, clip_skip)
