"""The search for a rare-token identifier, as in the paper (Ruiz et al., section 3.2).

An identifier should have no meaning yet, for the text encoder or the UNet, and the tokenizer should keep it as one
unit. So the search draws random tokens from the rare end of the vocabulary, decodes them, and keeps texts that encode
to the same tokens. A byte-pair vocabulary lists its merges by decreasing frequency, so the rare end is the last ids:
40000 to 49405 for CLIP. (The paper's 5000 to 10000 are for T5; in CLIP those are `bee`, `nba`, `amy`.)

A list excludes dictionary words. It has no abbreviations, so look at the candidates before a long run. `sks`, which is
common elsewhere, is the name of a rifle, and users have reported gun-shaped drift.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import CLIPTokenizer

from ldm.concepts import AUTO
from ldm.errors import UserError
from ldm.files import PROJECT
from ldm.randomness import permutation

SHORT_WORDS = PROJECT / "assets" / "short-words.txt"
BYTE_TOKENS = 512
"""Number of ids before the first merge: each byte, within a word and at its end."""

RARE_MERGES = 9406
"""Number of last merges that count as rare: CLIP's ids 40000 to 49405; in a smaller vocabulary, all."""

CANDIDATES = 500
"""Number of rare tokens searched for one far from others."""

MAX_LENGTH = 3
"""Maximum number of tokens in an identifier (the paper's k = 1, 2, 3)."""


@dataclass(frozen=True)
class Identifier:
    """An identifier's text and its token ids."""

    text: str
    ids: tuple[int, ...]


def resolve_identifiers(identifiers: Sequence[str], tokenizer: CLIPTokenizer, seed: int) -> list[str]:
    """The identifiers to train: each itself, or for "auto" the rare token farthest from the others.

    Distance is that of ids in the vocabulary, since nearby byte-pair tokens were merged in similar texts.
    Raises UserError if two are equal.
    """
    given = {word: resolve_identifier(word, tokenizer, seed) for word in identifiers if word != AUTO}
    chosen: list[str] = []
    for word in identifiers:
        if word == AUTO:
            taken = [ids_of(text, tokenizer) for text in (*given.values(), *chosen)]
            word = farthest(tokenizer, [id for ids in taken for id in ids], seed).text
        chosen.append(given.get(word, word))
    for place, text in enumerate(chosen):
        if text.lower() in (other.lower() for other in chosen[:place]):
            raise UserError(f"two subjects have the identifier '{text}': give each its own, or 'auto'")
    return chosen


def farthest(tokenizer: CLIPTokenizer, taken: Sequence[int], seed: int) -> Identifier:
    """The rare token whose id is farthest from those `taken`; the first of the search if none are."""
    found = search_rare_tokens(tokenizer, count=CANDIDATES if taken else 1, seed=seed)
    return max(found, key=lambda candidate: min((abs(candidate.ids[0] - id) for id in taken), default=0))


def ids_of(identifier: str, tokenizer: CLIPTokenizer) -> list[int]:
    """Token ids of an identifier."""
    ids: list[int] = tokenizer(identifier, add_special_tokens=False).input_ids
    return ids


def resolve_identifier(identifier: str, tokenizer: CLIPTokenizer, seed: int) -> str:
    """The identifier to train: `identifier` itself, or for "auto" a rare token of `tokenizer`.

    Raises UserError for an empty identifier and for more than 3 tokens.
    """
    if identifier == AUTO:
        return search_rare_tokens(tokenizer, count=1, seed=seed)[0].text
    tokens = ids_of(str(identifier or ""), tokenizer)
    if not 1 <= len(tokens) <= MAX_LENGTH:
        raise UserError(
            f"model.params.identifier '{identifier}' is {len(tokens)} tokens: use 1 to {MAX_LENGTH}, or 'auto';"
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
    """Whether an identifier already has a meaning: a listed word, or a single token that is not rare."""
    if identifier.lower() in dictionary_words():
        return True
    if identifier in tokenizer.added_tokens_encoder:
        return False
    first, _ = default_id_range(tokenizer)
    # In a small vocabulary, which has no rare end, a token of more than three letters is a word.
    return len(tokens) == 1 and (tokens[0] < first or (first == BYTE_TOKENS and len(identifier) > 3))


def search_rare_tokens(
    tokenizer: CLIPTokenizer,
    count: int,
    seed: int,
    id_range: tuple[int, int] | None = None,
    max_chars: int = 3,
    length: int = 1,
) -> list[Identifier]:
    """The first `count` candidates, or fewer if there are no more, in an order shuffled by `seed`.

    id_range: first and last id to draw from, inclusive; by default `default_id_range`.
    max_chars: maximum letters per token. length: tokens in an identifier, 1 to 3, written as one word.
    Raises `UserError` for settings out of range and if no candidate is found.
    """
    first, last = id_range or default_id_range(tokenizer)
    if not 0 <= first <= last < len(tokenizer):
        raise UserError(f"id range {first} to {last}: the vocabulary has the ids 0 to {len(tokenizer) - 1}")
    if not 1 <= length <= MAX_LENGTH or max_chars < 1 or count < 1:
        raise UserError(
            f"length {length}, {max_chars} letters, {count} candidates: use 1 to 3 tokens, and 1 or more of the others"
        )
    parts = tokens_by_place(tokenizer, range(first, last + 1), max_chars)
    found: dict[str, Identifier] = {}
    for ids in drawn(parts, length, seed):
        text = tokenizer.decode(list(ids)).strip()
        if text not in found and reads_back(tokenizer, text, ids):
            found[text] = Identifier(text, ids)
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"no rare tokens of at most {max_chars} letters among the ids {first} to {last}: widen the range"
        )
    return list(found.values())


def default_id_range(tokenizer: CLIPTokenizer) -> tuple[int, int]:
    """First and last id of the vocabulary's rare end, before the start and end tokens."""
    last = tokenizer.vocab_size - 3  # new tokens come after them
    return max(BYTE_TOKENS, last + 1 - RARE_MERGES), last


def tokens_by_place(tokenizer: CLIPTokenizer, ids: range, max_chars: int) -> dict[bool, list[int]]:
    """Ids of tokens of at most `max_chars` letters that are not words, by whether they end a word.

    Only letters a to z: others are hard to type, and in CLIP mostly words of other languages or emoji.
    """
    parts: dict[bool, list[int]] = {True: [], False: []}
    words = dictionary_words()
    for id, token in zip(ids, tokenizer.convert_ids_to_tokens(list(ids)), strict=True):
        letters = token.removesuffix("</w>")
        plain = letters.isascii() and letters.isalpha() and len(letters) <= max_chars
        if plain and letters not in words:
            parts[token.endswith("</w>")].append(id)
    return parts


def drawn(parts: dict[bool, list[int]], length: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Token ids in shuffled order: `length` - 1 that do not end a word, then one that does.

    For length 1 each token that ends a word is drawn once; for more, in up to 50 combinations, since most of them are
    encoded as other tokens.
    """
    ends, starts = parts[True], parts[False]
    for round_ in range(1 if length == 1 else 50):
        for end in permutation(len(ends), seed, "identifier", round_).tolist():
            order = permutation(len(starts), seed, "identifier start", round_, ends[end]).tolist()
            before = tuple(starts[place] for place in order[: length - 1])
            if len(before) == length - 1:
                yield (*before, ends[end])


def reads_back(tokenizer: CLIPTokenizer, text: str, ids: tuple[int, ...]) -> bool:
    """Whether the tokenizer encodes `text` as exactly `ids`, alone and in a prompt."""
    within = tokenizer(f"a photo of a {text} dog", add_special_tokens=False).input_ids
    around = tokenizer("a photo of a dog", add_special_tokens=False).input_ids
    alone = tokenizer(text, add_special_tokens=False).input_ids
    return tuple(alone) == ids and within == [*around[:-1], *ids, around[-1]]


def dictionary_words() -> frozenset[str]:
    """English words of at most three letters."""
    lines = SHORT_WORDS.read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())
