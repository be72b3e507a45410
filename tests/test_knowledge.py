"""The nouns that the embedded base says it knows, and a warning for other class words."""

import json
import shutil
import warnings

import pytest

from ldm.errors import UserError
from ldm.formats.base import fingerprint
from ldm.formats.knowledge import FILE, Knowledge, read_knowledge, warn_of_unknown_class
from ldm.world.drawing import World
from main import main
from tests.conftest import PROJECT, RECIPE

BASE = PROJECT / "assets" / "base"


def test_the_embedded_base_names_the_nouns_of_its_world():
    assert read_knowledge(BASE).nouns == World().nouns


@pytest.mark.parametrize(
    ("word", "known"), [("dog", 1), ("Teddy Bear", 1), ("small dog", 1), ("toy", 0), ("hotdog", 0)]
)
def test_a_class_word_is_known_by_its_noun(word, known):
    assert Knowledge(nouns=["dog", "teddy bear"]).knows(word) == bool(known)


def test_a_base_that_says_nothing_may_know_anything(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for base in (tiny, "runwayml/stable-diffusion-v1-5", tiny / "unet" / "config.json"):
            warn_of_unknown_class(base, "toy")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"nouns": "dog"}', '{"nouns": [1]}', "{", "[" * 100_000, "\xff"]
)
def test_another_content_is_one_line(tmp_path, content):
    (tmp_path / FILE).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=FILE) as error:
        read_knowledge(tmp_path)
    assert "\n" not in str(error.value)


def test_the_fingerprint_is_that_of_a_base_that_says_nothing(tiny, tmp_path):
    """Runs from before bases said what they know can still be resumed."""
    told = tmp_path / "told"
    shutil.copytree(tiny, told)
    (told / FILE).write_text(json.dumps({"nouns": ["dog"]}))
    assert fingerprint(told) == fingerprint(tiny)


def test_a_run_says_once_which_nouns_its_base_knows(tiny, tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    told = tmp_path / "told"
    shutil.copytree(tiny, told)
    (told / FILE).write_text(json.dumps({"nouns": ["dog", "cat"]}))
    words = ["--base", RECIPE, str(tiny_config), "-t", "false", f"model.params.base={told}"]
    assert main([*words, "--class_word", "toy"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "toy" in line]
    assert len(lines) == 1
    assert "it knows dog, cat" in lines[0]
    assert main([*words, "--class_word", "dog"]) == 0
    assert "it knows" not in capsys.readouterr().err
