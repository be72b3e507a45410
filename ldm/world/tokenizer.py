"""The embedded world's tokenizer, with byte-pair merges that make each word of the world one token."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from transformers import CLIPTextConfig, CLIPTokenizer

from ldm.formats.diffusers_folder import write_tokenizer
from ldm.world.art import DRAWINGS
from ldm.world.drawing import COLOURS, NAMES
from ldm.world.scenes import SCENES

RARE = (
    "sks zwx ohw qlt vxq jzk wqp kfg bxt ukj yqn hzl gqv pxd mzr tqf nvk xug lwj rqz dkx fzb cvw qyh "
    "zpl wkt jqb vhn kzu xof ijw ugz ywq oqx epz aqk iqj uxv hq zx qk wv jx kq xv bq fz vj"
).split()
"""Short tokens that occur in no caption, for the search for rare tokens."""

TEMPLATE_WORDS = (
    "a an the in on of top with floating around it at and photo picture drawing jungle snow beach "
    "cobblestone street pink fabric wooden floor city background mountain blue house purple rug forest "
    "wheat field tree autumn leaves eiffel tower water ocean milk green grass sunflowers mirror "
    "sidewalk crowded dirt road white red shiny wet cube shaped wearing hat santa rainbow scarf black "
    "monocle chef outfit firefighter police glasses yellow shirt wizard under night sunset desert moon "
    "stuffed animal toy bowl can candle cartoon sunglasses orange brown grey dark bright close up "
    "painting sky space"
).split()
"""The words of the DreamBooth paper's prompts, its subject classes, and others that users may try."""


def byte_letters() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE (the table of GPT-2's encoder)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, learned until each of `words` is one token (Sennrich et al., arXiv 1508.07909)."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in zip(word, word[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def make_tokenizer(out: Path, window: int = 32) -> CLIPTokenizer:
    """Write a CLIP tokenizer in which each word of the world is one token. window: longest prompt, in tokens."""
    spoken = " ".join([*DRAWINGS, *SCENES, *COLOURS]).split()
    words = sorted({*spoken, *NAMES, *TEMPLATE_WORDS, *RARE})
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=window)
    write_tokenizer(tokenizer, out, CLIPTextConfig(max_position_embeddings=window))
    read_back = CLIPTokenizer.from_pretrained(out)
    assert len(read_back) == len(tokens), "the tokenizer lost its vocabulary"
    split = [word for word in words if len(read_back(word).input_ids) != 3]
    assert not split, f"words of more than one token: {split}"
    return read_back
