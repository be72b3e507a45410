"""The embedded world: numbered pictures, withheld members, and a tokenizer that knows its words."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from ldm.concepts import with_article
from ldm.errors import UserError
from ldm.world.datasets import TUNING
from ldm.world.drawing import NAMES, World
from ldm.world.drawing import caption as caption_of
from ldm.world.pictures import WorldPictures, WorldSamples
from ldm.world.scenes import SCENES
from ldm.world.tokenizer import RARE
from scripts.make_world import main as make_world

ASSETS = Path(__file__).resolve().parents[1] / "assets"


@pytest.fixture(scope="module")
def world() -> World:
    return World(ASSETS / "world")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ASSETS / "base" / "tokenizer")


def test_a_picture_is_a_function_of_its_number(world):
    pixels, caption, facts = world.picture(0, 7)
    world.picture(0, 8)
    again = World(ASSETS / "world").picture(0, 7)
    assert (pixels == again[0]).all()
    assert (caption, facts) == again[1:]
    assert (pixels != world.picture(1, 7)[0]).any()
    assert pixels.shape == (64, 64, 3)
    assert pixels.dtype == np.uint8


def test_captions_say_what_is_shown(world):
    for index in range(200):
        _, caption, facts = world.picture(0, index)
        assert facts.noun in caption
        assert (facts.colour or "") in caption
        assert any(caption.endswith(scene) for scene in SCENES) <= caption.endswith(facts.scene)


def test_captions_can_call_individuals_by_name(world):
    called: dict[tuple[str, str], set[str]] = {}
    for index in range(2000):
        facts = world.facts(0, index)
        plain, named = caption_of(facts), caption_of(facts, by_name=True)
        if facts.name is None:
            assert named == plain
            assert facts.variant > 0, "every known member in its own hues has a name"
        else:
            assert f"{facts.name} {facts.noun}" in named
            assert named.replace(f"{facts.name} ", "").split()[-1] == plain.split()[-1]
            called.setdefault((facts.noun, facts.name), set()).add(facts.member)
        assert not set(NAMES) & set(plain.split())
    assert all(len(members) == 1 for members in called.values()), "one name, one individual of a noun"


def test_articles():
    assert with_article("owl") == "an owl"
    assert with_article("teddy bear") == "a teddy bear"


def test_withheld_members_are_never_drawn_by_number(world):
    hidden = {name for names in world.withheld.values() for name in names}
    assert len(hidden) >= 12
    assert hidden <= world.members.keys()
    assert not hidden & {world.picture(0, index)[2].member for index in range(1000)}
    assert len(world.nouns) == 20
    assert all(len(names) >= 2 for names in world.known.values())


def test_the_art_is_small():
    assert sum(path.stat().st_size for path in (ASSETS / "world").iterdir()) < 3_000_000


def test_art_that_is_missing_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match="no world art"):
        World(tmp_path)


@pytest.mark.parametrize(("what", "shipped"), [("subject", "subject/dog"), ("benchmark", "benchmark")])
def test_what_is_shipped_is_what_the_script_makes(tmp_path, what, shipped, capsys):
    assert make_world([what, "--out", str(tmp_path)]) == 0
    assert str(tmp_path) in capsys.readouterr().out
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    folder = ASSETS / shipped
    kept = {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*") if path.suffix != ".md"
    }
    assert made == kept


def test_settings_are_tuned_on_subjects_that_are_withheld_for_it(tmp_path, world, capsys):
    assert make_world(["tuning", "--out", str(tmp_path)]) == 0
    assert "drawing: 4 of 4" in capsys.readouterr().err  # it can take minutes
    assert set(TUNING.values()) <= set(world.withheld["tuning"])
    assert all(len(list((tmp_path / folder).glob("*.png"))) == 5 for folder in TUNING)


def test_samples_are_a_function_of_their_number(tmp_path, world):
    data = WorldPictures(art=str(ASSETS / "world"), count=8, latent_shape=(4, 2, 2), cache=str(tmp_path))
    data.setup("fit")
    samples = WorldSamples(data)
    assert sorted(samples[n]["index"] for n in range(8)) == list(range(8))
    assert [samples[n]["index"] for n in range(8)] != [samples[n]["index"] for n in range(8, 16)]
    one, again = samples[11], samples[11]
    assert (one["noise"] == again["noise"]).all()
    assert one["timestep"] == again["timestep"]
    picture, words, _ = world.picture(0, one["index"])
    assert one["caption"] == words
    assert np.allclose(np.moveaxis(one["pixels"].numpy(), 0, -1), picture / 127.5 - 1, atol=1e-6)


def test_the_share_of_captions_with_names_is_a_setting(tmp_path):
    options = {"art": str(ASSETS / "world"), "count": 64, "latent_shape": (4, 2, 2), "cache": str(tmp_path)}
    shares = {}
    for share in (0.0, 0.5, 1.0):
        data = WorldPictures(**options, caption_dropout=0.0, name_share=share)
        data.setup("fit")
        samples = [WorldSamples(data)[n] for n in range(64)]
        shares[share] = np.mean([bool(set(NAMES) & set(one["caption"].split())) for one in samples])
    named = np.mean([data.world.facts(0, index).name is not None for index in range(64)])
    assert shares[0.0] == 0
    assert 0 < shares[0.5] < shares[1.0] == named


def test_each_word_is_one_token(tokenizer, world):
    words = {word for index in range(300) for word in world.picture(0, index)[1].split()}
    for word in words | set(RARE) | set(NAMES):
        assert len(tokenizer(word).input_ids) == 3, word
    assert tokenizer.model_max_length == 32


def test_rare_tokens_occur_in_no_caption(world):
    words = {word for i in range(1000) for word in caption_of(world.facts(0, i), by_name=True).split()}
    assert len(set(RARE)) >= 30
    assert not words & set(RARE)
    assert all(len(token) <= 3 for token in RARE)


def test_the_shipped_tokenizer_is_what_the_script_makes(tmp_path):
    assert make_world(["tokenizer", "--out", str(tmp_path)]) == 0
    for made in tmp_path.iterdir():
        assert made.read_text() == (ASSETS / "base" / "tokenizer" / made.name).read_text()
    assert {"vocab.json", "merges.txt", "tokenizer.json"} <= {path.name for path in tmp_path.iterdir()}
