"""Prompts become the token ids that the text encoders were trained on, exclamation marks included."""

import json

import pytest
from transformers import CLIPTokenizer

from ldm.formats.diffusers_folder import load_tokenizer, write_tokenizer
from ldm.formats.families import SD1, SD2
from tests.conftest import PROJECT

PROMPTS = [
    "wow!",
    "!",
    "a photo of a dog!!! on the beach !",
    "hi ! there",
    "a photo of a sks dog",
    "Café, 12!",
    "",
]
END = 49407


@pytest.fixture(scope="module")
def tokenizers():
    return {family: load_tokenizer(family.configs) for family in (SD1, SD2)}


def ids(tokenizer, prompt):
    return tokenizer(prompt, padding="max_length", max_length=20, truncation=True).input_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_sd_2_reads_what_sd_1_reads_and_pads_with_0(tokenizers, prompt):
    """OpenCLIP and CLIP share the vocabulary; only the padding differs."""
    first, second = ids(tokenizers[SD1], prompt), ids(tokenizers[SD2], prompt)
    length = first.index(END) + 1
    assert second[:length] == first[:length]
    assert set(first[length:]) <= {END}
    assert set(second[length:]) <= {0}


def test_an_exclamation_mark_is_open_clips_256_and_in_diffusers_the_padding(tokenizers):
    theirs = CLIPTokenizer.from_pretrained(SD2.configs / "tokenizer")
    assert ids(tokenizers[SD2], "wow!")[:4] == [49406, 2781, 256, END]
    assert ids(theirs, "wow!")[:4] == [49406, 2781, 0, END]
    for prompt in (prompt for prompt in PROMPTS if "!" not in prompt):
        assert ids(tokenizers[SD2], prompt) == ids(theirs, prompt)


@pytest.mark.parametrize("folder", [SD1.configs / "tokenizer", PROJECT / "assets" / "base" / "tokenizer"])
def test_other_tokenizers_read_as_transformers_does(folder):
    ours, theirs = load_tokenizer(folder), CLIPTokenizer.from_pretrained(folder)
    for prompt in (*PROMPTS, "a <|endoftext|> b"):
        assert ids(ours, prompt) == ids(theirs, prompt)


def test_what_is_written_for_other_tools_is_as_it_was(tokenizers, tmp_path):
    """In the files the exclamation mark remains the padding, as all tools expect."""
    ids(tokenizers[SD2], "wow!")
    plain = CLIPTokenizer.from_pretrained(SD2.configs / "tokenizer")
    sizes = type("Config", (), {"max_position_embeddings": 77})
    for name, tokenizer in (("ours", tokenizers[SD2]), ("plain", plain)):
        write_tokenizer(tokenizer, tmp_path / name, sizes)
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "ours" / "special_tokens_map.json").read_text())["pad_token"] == "!"
