"""What measures several subjects and masks: its plumbing at tiny size, its yardstick on the world's scenes."""

import contextlib
import csv
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import image_files, load_image
from ldm.data.masks import mask_of
from ldm.errors import StoppedError, UserError
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.metrics import subject_fidelity
from ldm.evaluation.several import Measured, nearest
from ldm.world.drawing import World
from ldm.world.mask_leakage import MEMBER, SCENE, make_photographs, measure
from ldm.world.runs import trained
from ldm.world.several_subjects import spread
from scripts import benchmark_concepts, measure_masks
from tests.browser import assert_sound, chromium, opened
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK
from tests.tiny_features import tiny_features

__all__ = ["chromium"]

FEATURES = PROJECT / "assets" / "features"


def test_the_measure_of_leakage_tells_a_leaked_scene_from_the_one_that_was_asked_for(tmp_path):
    world = World()
    make_photographs(tmp_path, world)
    photographs = [load_image(path) for path in image_files(tmp_path / "other_scenes")]
    trained_on = image_files(tmp_path / "one_scene")
    assert len(photographs) == len(trained_on) == 5
    assert all(mask_of(path, (64, 64)) is not None for path in trained_on)

    def drawn(scene):
        rngs = [np.random.default_rng(k) for k in range(2)]
        return [Image.fromarray(world.compose(MEMBER, scene, rng)) for rng in rngs]

    networks = Clip(FEATURES / "clip"), Dino(FEATURES / "dino")
    scenes = [scene for scene in world.scenes if scene != SCENE]
    good = measure({scene: drawn(scene) for scene in scenes}, photographs, "cat", *networks)
    leaked = measure({scene: drawn(SCENE) for scene in scenes}, photographs, "cat", *networks)
    assert good["right"] > 0.8
    assert good["leak"] < 0.05
    assert leaked["leak"] > 0.9
    assert leaked["right"] < 0.05
    assert good["dino"] > 0.5


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return tiny_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def compared(tiny_config, networks, tmp_path_factory):
    """Two subjects trained together and alone, and measured; returns the folder, what was told and the call."""
    clip, dino = networks
    out = tmp_path_factory.mktemp("compared")
    words = ["--base", RECIPE, str(tiny_config), "--outdir", str(out), "--groups", "one noun", "--seeds", "4"]
    evaluation = [f"networks.clip={clip}", f"networks.dino={dino}", "sampling.steps=1"]
    evaluation += ["sampling.images_per_prompt=1", "sampling.class_images=2"]
    words += ["--steps", "1", "--evaluation", *evaluation]
    words += ["--", *QUICK, "lightning.callbacks.validation=null"]
    told = io.StringIO()
    with contextlib.chdir(PROJECT), contextlib.redirect_stdout(told):
        assert benchmark_concepts.main(words) == 0
    return out, told.getvalue(), words


def test_subjects_are_compared_alone_and_together(compared, monkeypatch, capsys):
    out, told, words = compared
    rows = json.loads((out / "concepts.json").read_text())
    assert [row["subject"] for row in rows] == ["car", "taxi"]
    path = out / "car+taxi" / "seed-4" / "evaluation" / "concepts.json"
    both = json.loads(path.read_text())
    alone = json.loads((out / "taxi" / "seed-4" / "evaluation" / "metrics.json").read_text())
    assert rows[1]["dino"] == [both["subjects"][1]["metrics"]["dino"]["value"]]
    assert rows[1]["dino_alone"] == [alone["metrics"]["dino"]["value"]]
    with open(path.parent / "v2" / "images.csv", newline="") as file:
        scenes = [float(row["dino"]) for row in csv.DictReader(file) if "photo of [V]" in row["prompt"]]
    assert len(scenes) == 20
    assert rows[1]["scenes"] == [pytest.approx(np.mean(scenes))]
    assert rows[1]["confusion"] == [both["confusion"][1][0]]
    assert rows[1]["mistaken"] == [both["nearest"][1][0]]
    alone_dino = Dino(alone["networks"]["dino"]["network"])
    pictures, own, other = (
        alone_dino.images(map(load_image, sorted(folder.glob("*.png"))))
        for folder in (
            out / "taxi" / "seed-4" / "evaluation" / "subject",
            out / "data" / "taxi",
            PROJECT / "assets" / "benchmark" / "car",
        )
    )
    nearer = subject_fidelity(pictures, other) > subject_fidelity(pictures, own)
    assert rows[1]["mistaken_alone"] == [pytest.approx(nearer.double().mean().item())]
    assert rows[1]["together"] == [both["pairs"][0]["dino_lower"]]
    assert f"| one noun | taxi | {rows[1]['dino_alone'][0]:.3f} | {rows[1]['dino'][0]:.3f} |" in told
    lost = [row["dino"][0] - row["dino_alone"][0] for row in rows]
    assert f"| one noun | {sum(lost) / 2:+.3f} (" in told
    stamp = path.stat().st_mtime_ns
    monkeypatch.chdir(PROJECT)
    assert benchmark_concepts.main(words) == 0  # all of it is there
    assert path.stat().st_mtime_ns == stamp
    assert benchmark_concepts.main([*words, "model.params.learning_rate=1"]) == 2
    assert (
        "has a comparison of other settings (training.model.params.learning_rate was"
        in capsys.readouterr().err
    )
    assert benchmark_concepts.main(["--alone", "nowhere", *words]) == 2
    assert "--alone nowhere: no result of" in capsys.readouterr().err
    other = out.parent / "other"  # another setting, beside the same runs of single subjects
    words[words.index("--outdir") + 1] = str(other)
    assert benchmark_concepts.main(["--alone", str(out), *words]) == 0
    assert [folder.name for folder in other.iterdir() if folder.is_dir() and folder.name != "data"] == [
        "car+taxi"
    ]
    assert spread([1.0, 2.0]) == "1.500 ± 0.707"


def test_a_run_that_was_begun_is_resumed_and_a_stop_is_no_mistake(tmp_path):
    called = []

    def train(words):
        called.append(words)
        for name, last in (("checkpoints/last.ckpt", 1), ("model/dreambooth.json", 2)):
            if len(called) >= last:
                (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "one" / name).touch()
        return 75 if len(called) == 1 else 0

    with pytest.raises(StoppedError, match="the same command goes on"):
        trained(train, tmp_path, ["--base", "a.yaml"])
    for _ in range(2):
        assert trained(train, tmp_path, ["--base", "a.yaml"]) == tmp_path / "one"
    assert called == [["--base", "a.yaml", "--logdir", str(tmp_path)], ["--resume", str(tmp_path / "one")]]
    with pytest.raises(UserError, match="exit code 2"):
        trained(lambda words: 2, tmp_path / "other", [])
    with pytest.raises(KeyboardInterrupt):
        trained(lambda words: 130, tmp_path / "other", [])


def test_pictures_are_assigned_to_the_subject_they_are_likest():
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    own, other = torch.tensor([1.0, 0.1]), torch.tensor([0.1, 1.0])
    pictures = torch.stack([own, own, own, other]), torch.stack([other, other])
    measured = [Measured(None, None, *both) for both in zip(pictures, (first, second), strict=True)]
    assert nearest(measured) == [[0.75, 0.25], [0.0, 1.0]]


def test_the_page_of_several_subjects_in_a_browser(compared, chromium):
    path = compared[0] / "car+taxi" / "seed-4" / "evaluation" / "report.html"
    assert_sound(chromium, path)
    with opened(chromium, path) as page:
        both = json.loads((path.parent / "concepts.json").read_text())
        assert page.locator("img").count() == len(both["pairs"][0]["images"]) > 0
        for place, row in enumerate(both["confusion"]):
            cells = (
                page.locator("table").nth(1).locator("tbody tr").nth(place).locator("td").all_inner_texts()
            )
            assert cells == [f"{value:.3f}" for value in row]
        links = [link.get_attribute("href") for link in page.locator("a").all()]
        assert len(links) == 2
        assert all((path.parent / link).is_file() for link in links)


def test_masks_are_measured_for_each_seed_and_weight(tiny_config, networks, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    clip, dino = networks
    words = [
        "--base",
        RECIPE,
        str(tiny_config),
        "--outdir",
        str(tmp_path),
        "--seeds",
        "4",
        "--weights",
        "1",
        "0.1",
    ]
    words += ["--per_scene", "1", "--steps", "2", "--clip", str(clip), "--dino", str(dino)]
    quick = [*QUICK, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=1"]
    assert measure_masks.main([*words, "--", *quick]) == 0
    rows = json.loads((tmp_path / "masks.json").read_text())
    assert [(row["seed"], row["unmasked_weight"]) for row in rows] == [(4, 1.0), (4, 0.1)]
    assert all(0 <= row["leak"] <= 1 and 0 <= row["right"] <= 1 for row in rows)
    for weight in ("1", "0.1"):
        (config,) = (tmp_path / f"weight-{weight}" / "seed-4").glob("*/configs/config.yaml")
        assert f"unmasked_weight: {float(weight)}" in config.read_text()
    assert "| 0.1 | 4 |" in capsys.readouterr().out
    assert measure_masks.main([*words, "--", *quick, "model.params.learning_rate=1"]) == 2
    assert "has runs of other settings (training.model.params.learning_rate was" in capsys.readouterr().err
