"""The judges of the embedded world, and the figure, run from their command lines on a world of two nouns."""

import json

import pytest
from PIL import Image, ImageChops

import ldm.world.figure
from ldm.world import base_judge, distances, judge, prior_judge
from ldm.world.drawing import World
from ldm.world.figure import by_likeness
from scripts.figure import main as figure
from scripts.judge_base import main as judge_base
from scripts.judge_prior import main as judge_prior
from tests.tiny_features import tiny_features


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    """Two nouns, scenes and colours, barely trained judges, few pictures, and one sampler step."""
    whole = World.__init__

    def shrunk(self, *args, **options):
        whole(self, *args, **options)
        self.known = {noun: self.known[noun][:2] for noun in ("boot", "hat")}
        kept = {name for names in self.known.values() for name in names} | {
            "hat-sun-noto",
            "boot-hiking-noto",
        }
        self.members = {name: member for name, member in self.members.items() if name in kept}
        self.nouns, self.scenes, self.colours = list(self.known), self.scenes[:2], self.colours[:2]
        self.withheld = {
            role: [name for name in names if name in kept] for role, names in self.withheld.items()
        }

    def hardly_trained(world, cache):
        return judge.trained_judge(world, tmp_path, count=64, passes=1)

    monkeypatch.setattr(World, "__init__", shrunk)
    for module in (base_judge, prior_judge):
        monkeypatch.setattr(module, "UNSEEN", 60)
    for module in (base_judge, distances, prior_judge):
        monkeypatch.setattr(module, "trained_judge", hardly_trained)
    short = [way for way in prior_judge.WAYS if way.steps == 10]
    monkeypatch.setattr(prior_judge, "WAYS", short)


def test_the_base_is_judged(small_world, tmp_path, capsys):
    out = tmp_path / "table.json"
    assert judge_base(["--steps", "2", "--distances", "24", "--out", str(out)]) == 0
    table = json.loads(out.read_text())
    (found,) = [sets for way, sets in table.pop("distances").items() if way != distances.FLOOR]
    assert all(row["low"] <= row["value"] <= row["high"] for row in found.values())
    shares = [value for name, value in table.items() if "PSNR" not in name and "share of" not in name]
    assert all(0 <= share <= 1 for share in shares)
    assert table["VAE: PSNR on unseen pictures, dB"] > 25
    printed = capsys.readouterr().out
    assert all(name in printed for name in table)


def test_ways_to_draw_the_prior_are_judged_row_by_row(small_world, capsys):
    assert judge_prior(["--per_noun", "2"]) == 0
    told = capsys.readouterr()
    header, _, *rows = told.out.strip().splitlines()
    assert header.startswith("| sampler | steps |")
    assert [row.split(" | ")[2:5] for row in rows] == [["3.0", "all", "20"], ["1.5", "all", "20"]]
    assert "drawing: 4 of 4" in told.err  # nouns


def test_one_picture_of_a_noun_has_no_distances(capsys):
    with pytest.raises(SystemExit, match="2"):
        judge_prior(["--per_noun", "1"])
    assert "at least 2" in capsys.readouterr().err


def test_the_figures_have_their_rows_and_find_the_likest_pictures(train, tmp_path, monkeypatch):
    monkeypatch.setattr(ldm.world.figure, "PER_SCENE", 1)
    run, out = train(), tmp_path / "figure.png"
    _, dino = tiny_features(tmp_path / "features")
    settings = ["--out", str(out), "--steps", "1", "--zoom", "1", "--dino", str(dino)]
    assert figure(["--run", str(run), "--without_prior", str(run), *settings]) == 0
    assert Image.open(out).size == (8 * (32 + 2) - 2, 6 * (32 + 24))
    assert figure(["--runs", str(run), str(run), *settings]) == 0
    assert Image.open(out).size == (8 * (32 + 2) - 2, 2 * (32 + 24))
    untitled = Image.open(out).copy()
    assert figure(["--runs", str(run), str(run), "--titles", "LoRA", "OFT", *settings]) == 0
    changed = ImageChops.difference(untitled, Image.open(out)).getbbox()
    assert changed is not None  # the titles, and nothing below the last one
    assert changed[3] <= 2 * (32 + 24) - 32
    (tmp_path / "subject").mkdir()
    for number, colour in ((0, "red"), (3, "blue")):
        Image.new("RGB", (32, 32), colour).save(tmp_path / "subject" / f"{number:02d}-0.png")
    shown = ["--evaluations", str(tmp_path), str(tmp_path), *settings, "--prompts"]
    assert figure([*shown, "3", "0"]) == 0
    drawn = Image.open(out)
    assert drawn.size == (8 * (32 + 2) - 2, 2 * (32 + 24))
    assert [drawn.getpixel((x, 24 + 16)) for x in (16, 50)] == [(0, 0, 255), (255, 0, 0)]
    assert figure([*shown, "1"]) == 2  # no such picture
    for words in (["--run", str(run)], ["--runs", str(run), "--titles", "LoRA", "OFT"]):
        with pytest.raises(SystemExit, match="2"):
            figure(words)


def test_the_likest_picture_comes_first(tmp_path):
    grey, red = (Image.new("RGB", (32, 32), colour) for colour in ("grey", "red"))
    assert by_likeness([red, grey, red], [grey], str(tiny_features(tmp_path / "features")[1]))[0] == 1
