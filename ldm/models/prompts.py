"""The identifier that a run trains: the user's word, or a rare token."""

import warnings

from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.models.identifier import BYTE_TOKENS, default_id_range, dictionary_words, search_rare_tokens

MAX_TOKENS = 3
"""The paper's identifiers are one to three tokens long (section 3.2, "rare-token identifiers")."""


def resolve_identifier(identifier: str, tokenizer: CLIPTokenizer, seed: int) -> str:
    """The identifier to train: `identifier` itself, or for "auto" a rare token of `tokenizer`.

    Raises UserError for an empty identifier and for more than 3 tokens.
    """
    if identifier == "auto":
        return search_rare_tokens(tokenizer, count=1, seed=seed)[0].text
    tokens = tokenizer(str(identifier or ""), add_special_tokens=False).input_ids
    if not 1 <= len(tokens) <= MAX_TOKENS:
        raise UserError(
            f"model.params.identifier '{identifier}' is {len(tokens)} tokens: take 1 to {MAX_TOKENS}, or 'auto';"
            " scripts/rare_tokens.py lists good ones"
        )
    if _is_word(str(identifier), tokens, tokenizer):
        warnings.warn(
            f"identifier '{identifier}' looks like a word, whose meaning the model would have to unlearn;"
            " scripts/rare_tokens.py lists rare tokens",
            stacklevel=2,
        )
    return str(identifier)


def _is_word(identifier: str, tokens: list[int], tokenizer: CLIPTokenizer) -> bool:
    """Whether an identifier already means something: a listed word, or a single token that is not rare."""
    if identifier.lower() in dictionary_words():
        return True
    first, _ = default_id_range(tokenizer)
    # A small vocabulary has no rare end; in it, a token of more than 3 letters is a word.
    return len(tokens) == 1 and (tokens[0] < first or (first == BYTE_TOKENS and len(identifier) > 3))
