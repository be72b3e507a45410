"""Textual inversion: trains embeddings of new tokens; the base's weights are unchanged.

Gal et al., arXiv 2208.01618; the baseline of DreamBooth's Table 1. It can be combined with another tuning: pivotal
tuning with a LoRA, Custom Diffusion with its token.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import replacing_folder
from ldm.formats.embeddings import EMBEDDINGS_FILE, OF_SDXL
from ldm.formats.families import tokenizer_of
from ldm.formats.small_folder import save_small_folder
from ldm.formats.subject import notes_of
from ldm.methods.all_weights import AllWeights
from ldm.methods.tuning import Tuning, Untrained, check_learned, untrained_copy
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.new_tokens import ExtendedEmbedding, add_tokens, taken_tokens, vectors_of
from ldm.targets import completed
from ldm.values import Count, Must, NonNegativeFloat, PositiveFloat, Rates, Text


@dataclass(frozen=True)
class NewToken:
    """A token to add to the vocabulary."""

    token: Annotated[str, Must(lambda token: len(token.split()) == 1, "a word without spaces, such as <dog>")]
    """Its text in prompts, such as <dog>: an identifier of the run."""
    initial_word: Text
    """Word whose embedding it starts from: the class word (Gal et al., section 4)."""
    vectors: Count = 1
    """Its number of rows in the embedding table and of places in a prompt."""


class TextualInversion:
    """Trains new tokens; see `ldm.methods.tuning.Tuning`."""

    def __init__(
        self,
        learning_rate: NonNegativeFloat,
        tokens: Sequence[NewToken],
        token_learning_rate: PositiveFloat | None = None,
        beside: Callable[..., Tuning] | None = None,
        text_encoder_learning_rate: Rates | None = None,
    ):
        """token_learning_rate: of the new rows; None for `learning_rate`. beside: another tuning to combine with."""
        self.token_learning_rate = token_learning_rate or learning_rate
        if not tokens or self.token_learning_rate == 0:
            raise UserError(
                "model.params.tuning: textual inversion needs a token and a learning rate above 0 for it"
            )
        self.tokens = tokens
        names = [file_name(new.token) for new in tokens]
        if len(tokens) > 1 and len({"", *names}) <= len(tokens):
            raise UserError(
                "model.params.tuning: the letters and digits of each token name its file: make them differ"
            )
        rates = {"learning_rate": learning_rate, "text_encoder_learning_rate": text_encoder_learning_rate}
        self.beside: Tuning = completed(beside or NoTuning, "model.params.tuning.params.beside", **rates)

    def attach(self, model: LatentDiffusion) -> None:
        self.beside.attach(model)
        for name, encoder in model.text_encoders.items():
            tokenizer = model.tokenizers[tokenizer_of(name)]
            names: list[str] = []
            sources: list[int] = []
            for new in self.tokens:
                vectors = vectors_of(new.token, new.vectors)
                if taken := taken_tokens([*names, *vectors], tokenizer):
                    raise UserError(
                        f"model.params.tuning: '{taken[0]}' is a token already: choose another, such as"
                        f" <my-{new.initial_word}>"
                    )
                word = tokenizer(new.initial_word, add_special_tokens=False).input_ids
                names += vectors
                sources += [word[place % len(word)] for place in range(new.vectors)]
            add_tokens(encoder, tokenizer, names, sources)

    def check(self, prompts: Sequence[str]) -> None:
        """Raise UserError for a token that no training prompt contains, so that it would not train.

        prompts: with identifiers in place of placeholders.
        """
        for new in self.tokens:
            if not any(new.token in prompt for prompt in prompts):
                raise UserError(
                    f"model.params.tuning: no training prompt contains the token '{new.token}', so it would not train:"
                    " make it model.params.identifier, or the identifier of its item in data.params.concepts"
                )

    def parameter_groups(self, model: LatentDiffusion) -> list[dict[str, Any]]:
        rows = list(self._rows(model).values())
        own = {id(parameter) for parameter in rows}
        groups = [
            {**group, "params": [parameter for parameter in group["params"] if id(parameter) not in own]}
            for group in self.beside.parameter_groups(model)
        ]
        tokens = {"name": "tokens", "params": rows, "lr": self.token_learning_rate}
        return [*(group for group in groups if group["params"]), tokens]

    def learned(self, model: LatentDiffusion) -> dict[str, Tensor]:
        rows = self._rows(model)
        return {**self.beside.learned(model), **{name: rows[name].detach() for name in rows}}

    def restore(self, model: LatentDiffusion, learned: Mapping[str, Tensor], source: str) -> None:
        rows = self._rows(model)
        check_learned(self.learned(model), learned, source)
        self.beside.restore(model, {k: v for k, v in learned.items() if k not in rows}, source)
        with torch.no_grad():
            for name, parameter in rows.items():
                parameter.copy_(learned[name])

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """The other tuning's untrained model, with the tokens' initial embeddings."""
        inner, first = self.beside.untrained(model, dtype), self._copies(model)

        @contextmanager
        def base() -> Iterator[LatentDiffusion]:
            trained = self._copies(model)
            self._put(model, first)
            try:
                with inner() as untrained:
                    yield untrained
            finally:
                self._put(model, trained)

        return base

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, object],
        card: str | None,
    ) -> None:
        """Write the tokens for diffusers' `load_textual_inversion`, with the other tuning's export."""
        files = self.embeddings(model)
        if isinstance(self.beside, NoTuning):
            save_small_folder(folder, files, dtype, notes_of(subject, card))
            return
        with replacing_folder(folder) as temporary:
            self.beside.export(model, temporary / "beside", dtype, subject, card)
            save_small_folder(temporary / "tokens", files, dtype, {})
            for part in ("beside", "tokens"):
                for path in (temporary / part).iterdir():
                    path.rename(temporary / path.name)
                (temporary / part).rmdir()

    def embeddings(self, model: LatentDiffusion) -> dict[str, dict[str, Tensor]]:
        """Files by name, one per token: its vectors [n, D] for each text encoder."""
        files, first = {}, 0
        for new in self.tokens:
            part = slice(first, first + new.vectors)
            first += new.vectors
            vectors = {name: table.rows[part] for name, table in self._tables(model).items()}
            if len(vectors) == 1:
                vectors = {new.token: next(iter(vectors.values()))}
            else:
                vectors = {OF_SDXL[name]: rows for name, rows in vectors.items()}
            name = EMBEDDINGS_FILE if len(self.tokens) == 1 else file_name(new.token) + ".safetensors"
            files[name] = vectors
        return files

    def _tables(self, model: LatentDiffusion) -> dict[str, ExtendedEmbedding]:
        """By text encoder."""
        found = {}
        for name, encoder in model.text_encoders.items():
            table = encoder.get_input_embeddings()
            assert isinstance(table, ExtendedEmbedding)
            found[name] = table
        return found

    def _rows(self, model: LatentDiffusion) -> dict[str, nn.Parameter]:
        """By name in a checkpoint."""
        return {f"{name}.new_tokens": table.rows for name, table in self._tables(model).items()}

    def _copies(self, model: LatentDiffusion) -> list[Tensor]:
        return [rows.detach().clone() for rows in self._rows(model).values()]

    @torch.no_grad()
    def _put(self, model: LatentDiffusion, values: Sequence[Tensor]) -> None:
        for rows, value in zip(self._rows(model).values(), values, strict=True):
            rows.copy_(value)


def file_name(token: str) -> str:
    """The letters and digits of `token`."""
    return re.sub(r"\W", "", token)


class NoTuning(AllWeights):
    """A tuning that trains nothing, the default beside new tokens."""

    def __init__(self, learning_rate: NonNegativeFloat, text_encoder_learning_rate: Rates | None = None):
        """The learning rates are ignored."""
        super().__init__(learning_rate=0.0, text_encoder_learning_rate=0.0)

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """The model itself; only another precision needs a copy."""
        same = all(network.dtype == dtype for network in model.trainable.values())
        return untrained_copy(model if same else model.frozen_copy(dtype), model)
