"""The rare-token search, on CLIP's vocabulary and on the embedded base's."""

import pytest

from ldm.errors import UserError
from ldm.formats.diffusers_folder import load_tokenizer
from ldm.models.identifier import default_id_range, dictionary_words, search_rare_tokens
from scripts.rare_tokens import main
from tests.small_sd import CONFIGS
from tests.tiny import TOKENIZER

EVERYTHING = 100_000


@pytest.fixture(scope="module")
def clip():
    return load_tokenizer(CONFIGS / "v1")


@pytest.fixture(scope="module")
def world():
    return load_tokenizer(TOKENIZER)


def test_the_default_range_is_the_papers_idea_in_clips_ids(clip, world):
    assert default_id_range(clip) == (40000, 49405)
    assert default_id_range(load_tokenizer(CONFIGS / "v2")) == (40000, 49405)
    first, last = default_id_range(world)
    assert (first, last) == (512, len(world) - 3)


def test_candidates_are_short_rare_unambiguous_and_no_words(clip, world):
    for tokenizer in (clip, world):
        first, last = default_id_range(tokenizer)
        candidates = search_rare_tokens(tokenizer, EVERYTHING, seed=0)
        assert len(candidates) > 50
        assert len({candidate.text for candidate in candidates}) == len(candidates)
        for text, ids in ((candidate.text, candidate.ids) for candidate in candidates):
            assert len(ids) == 1
            assert first <= ids[0] <= last
            assert 1 <= len(text) <= 3
            assert text not in dictionary_words()
            assert tuple(tokenizer(text, add_special_tokens=False).input_ids) == ids
            assert text in tokenizer.decode(tokenizer(f"a {text} dog").input_ids).split()


def test_clips_best_known_rare_token_is_found_and_known_words_are_not(clip):
    found = {candidate.text: candidate.ids for candidate in search_rare_tokens(clip, EVERYTHING, seed=0)}
    assert found["sks"] == (48136,)
    assert not {"bee", "nba", "amy", "dog", "fib", "hug", "jap"} & found.keys()
    common = {c.text for c in search_rare_tokens(clip, EVERYTHING, seed=0, id_range=(5000, 10000))}
    assert {"nba", "amy"} <= common  # the paper's range is T5's: in CLIP's vocabulary it holds names
    assert "bee" not in common


def test_the_order_is_the_seeds(clip):
    first = search_rare_tokens(clip, 10, seed=1)
    assert search_rare_tokens(clip, 10, seed=1) == first
    assert search_rare_tokens(clip, 5, seed=1) == first[:5]
    assert search_rare_tokens(clip, 10, seed=2) != first


@pytest.mark.parametrize("length", [2, 3])
def test_identifiers_of_several_tokens_are_one_word_that_reads_back(clip, world, length):
    for tokenizer in (clip, world):
        candidates = search_rare_tokens(tokenizer, 30, seed=0, length=length)
        assert len(candidates) == 30
        for candidate in candidates:
            assert len(candidate.ids) == length
            assert candidate.text.isalpha()
            assert tuple(tokenizer(candidate.text, add_special_tokens=False).input_ids) == candidate.ids
            tokens = tokenizer.convert_ids_to_tokens(list(candidate.ids))
            assert not {token.removesuffix("</w>") for token in tokens} & dictionary_words()


def test_fewer_letters_can_be_asked_for(clip):
    assert {len(candidate.text) for candidate in search_rare_tokens(clip, EVERYTHING, 0, max_chars=2)} == {2}


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"id_range": (0, 49408)}, "ids 0 to 49407"),
        ({"id_range": (9, 8)}, "id range 9 to 8"),
        ({"id_range": (0, 10)}, "widen the range"),
        ({"length": 4}, "1 to 3 tokens"),
        ({"length": 0}, "1 to 3 tokens"),
        ({"max_chars": 0}, "0 letters"),
    ],
)
def test_settings_that_find_nothing_say_why(clip, options, hint):
    with pytest.raises(UserError, match=hint):
        search_rare_tokens(clip, 1, 0, **options)


def test_the_script_lists_candidates_with_ids(capsys):
    assert main(["--count", "3", "--seed", "5"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = search_rare_tokens(load_tokenizer(CONFIGS / "v1"), 3, 5)
    assert lines == [[candidate.text, str(candidate.ids[0])] for candidate in expected]


def test_the_script_takes_a_base_and_a_range(tiny, capsys):
    assert main(["--base", str(tiny), "--count", "2", "--length", "2", "--ids", "600", "900"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(600 <= int(id) <= 900 for line in lines for id in line.split("\t")[1].split())


def test_the_script_ends_in_one_line_without_a_tokenizer(tmp_path, capsys):
    assert main(["--base", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} has no CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json)\n"
    )
