"""New tokens of a text encoder: their ids in the tokenizer, and their own, trainable rows of the embedding table."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import CLIPTextModel, CLIPTokenizer


class ExtendedEmbedding(nn.Embedding):
    """An embedding table with new rows after the old ones, in their own parameter.

    Its state is the whole table, `weight` [old + new, D], so that files have the usual layout.
    """

    def __init__(self, table: nn.Embedding, first: int, rows: Tensor):
        """table: the old one, whose weight is reused. first: id of the first new row. rows: [new, D] in fp32."""
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.detach())
        self.weight = table.weight
        self.first = first
        self.rows = nn.Parameter(rows)

    def forward(self, ids: Tensor) -> Tensor:
        """Embeddings [..., D] of `ids` [...], in the old table's dtype."""
        is_new = ids >= self.first
        old = embedding(ids.masked_fill(is_new, 0), self.weight)
        new = embedding((ids - self.first).clamp(min=0), self.rows.to(old.dtype))
        return torch.where(is_new.unsqueeze(-1), new, old)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        rows = self.rows.to(self.weight.dtype)
        whole = torch.cat([self.weight[: self.first], rows])
        destination[f"{prefix}weight"] = whole if keep_vars else whole.detach()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: object) -> None:
        whole = state_dict.get(f"{prefix}weight")
        if whole is not None:
            self.weight[: self.first].copy_(whole[: self.first])
            self.rows.copy_(whole[self.first :])


def add_tokens(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, tokens: Sequence[str], sources: Sequence[int]
) -> ExtendedEmbedding:
    """Add `tokens` to both, starting from the embeddings of the token ids in `sources`; returns the new table."""
    table = text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    return add_rows(text_encoder, tokenizer, tokens, table.weight.detach()[list(sources)].float().clone())


def add_rows(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, tokens: Sequence[str], rows: Tensor
) -> ExtendedEmbedding:
    """Add `tokens` with the embeddings `rows` [new, D] to both, after those added before; returns the new table."""
    first = len(tokenizer)
    table = text_encoder.get_input_embeddings()
    assert isinstance(table, nn.Embedding)
    rows = rows.to(table.weight.device, torch.float32)
    tokenizer.add_tokens(list(tokens))
    text_encoder.config.vocab_size = first + len(rows)
    if isinstance(table, ExtendedEmbedding):
        first, rows = table.first, torch.cat([table.rows.detach(), rows])
    extended = ExtendedEmbedding(table, first, rows)
    text_encoder.set_input_embeddings(extended)
    return extended


def taken_tokens(tokens: Sequence[str], tokenizer: CLIPTokenizer) -> list[str]:
    """Those of `tokens` that are in the vocabulary already, or stand in `tokens` before, in any case."""
    known = {word.lower() for word in tokenizer.get_vocab()}
    lower = [token.lower() for token in tokens]
    taken = []
    for place, token in enumerate(tokens):
        if {lower[place], f"{lower[place]}</w>"} & known or lower[place] in lower[:place]:
            taken.append(token)
    return taken


def vectors_of(token: str, count: int) -> list[str]:
    """The names of a token's `count` vectors, as in diffusers: <dog>, <dog>_1, <dog>_2."""
    return [token, *(f"{token}_{number}" for number in range(1, count))]


def with_all_vectors(prompt: str, tokenizer: CLIPTokenizer) -> str:
    """`prompt` with each new token replaced by the names of all its vectors, as in diffusers' pipelines.

    In any case, as the tokenizer reads them.
    """
    added = tokenizer.added_tokens_encoder
    for token in sorted((own for own in added if f"{own}_1" in added), key=len, reverse=True):
        count = 1
        while f"{token}_{count}" in added:
            count += 1
        pieces = re.split(re.escape(token), prompt, flags=re.IGNORECASE)
        prompt = " ".join(vectors_of(token, count)).join(pieces)
    return prompt
