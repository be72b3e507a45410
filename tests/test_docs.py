"""Everything named in the README, docs/ and CONTRIBUTING.md exists: files, scripts, config keys, overlays."""

import json
import re
import shutil
import sys
import types
from functools import cache

import pytest
import torch
import yaml

import main
from ldm.data.images import image_files, load_image
from ldm.evaluation import metrics
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.protocol import Item
from ldm.evaluation.scores import Networks, score
from ldm.methods.load import load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers import SAMPLERS
from ldm.world.drawing import World, caption
from scripts import evaluate, export, txt2img
from tests.conftest import PROJECT
from tests.tiny_features import tiny_features

PAGES = sorted(
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "assets/*/README.md", "configs/*/README.md")
    for path in PROJECT.glob(pattern)
)
EXAMPLES = {  # of CONTRIBUTING.md
    "ldm/methods/biases.py",
    "configs/biases.yaml",
    "configs/stable-diffusion/xl.yaml",
}
NOT_IN_THE_FIRST_YAML = {"model.params.parameterization"}  # a key of CompVis' configs


@cache
def text_of(page):
    return (PROJECT / page).read_text(encoding="utf-8")


def test_the_pages_are_found():
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/settings.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", text_of(page))
    lost = [
        link
        for link in links
        if not link.startswith(("http://", "https://")) and not ((PROJECT / page).parent / link).exists()
    ]
    assert not lost


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # it names former paths
def test_paths_in_the_text_exist(page):
    """Any `ldm/...`, `scripts/...`, `configs/...`, `tests/...` or `docs/...` with an ending."""
    paths = re.findall(
        r"(?<![\w/.])((?:ldm|scripts|configs|tests|docs)/[\w./-]+\.(?:py|yaml|md))\b", text_of(page)
    )
    assert not [path for path in set(paths) - EXAMPLES if not (PROJECT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_config_keys_in_the_text_are_keys_of_the_recipe(page):
    recipe = yaml.safe_load((PROJECT / "configs" / "dreambooth.yaml").read_text())
    names = re.findall(
        r"(?<![\w.])((?:model|data|lightning)\.(?:params|trainer|callbacks)\.[\w.]*\w)", text_of(page)
    )
    for name in set(names) - NOT_IN_THE_FIRST_YAML:
        node = recipe
        for key in name.split("."):
            assert key in node, f"{page} names {name}"
            node = node[key]
            if node is None:  # null in the recipe; an overlay may set keys below it
                break


def test_the_readme_lists_every_overlay_and_sampler():
    configs = PROJECT / "configs"
    overlays = [*configs.glob("*.yaml"), *(configs / "stable-diffusion").glob("*.yaml")]
    named = {path.relative_to(PROJECT).as_posix() for path in overlays} | {f"`{name}`" for name in SAMPLERS}
    assert not [name for name in named if name not in text_of("README.md")]


def test_the_readme_lists_every_option_of_main(capsys):
    with pytest.raises(SystemExit):
        main.parse(["--help"])
    options = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out)) - {"--help", "--train"}
    assert len(options) >= 15
    assert not [option for option in options if option not in text_of("README.md")]


def test_the_nouns_that_the_embedded_base_knows_are_told():
    told = re.findall(r"^> (.*)", text_of("docs/base-model.md"), re.M)
    assert " ".join(told).split(", ") == World().nouns


def test_sks_is_an_unused_word_of_the_embedded_vocabulary():
    vocabulary = json.loads((PROJECT / "assets" / "base" / "tokenizer" / "vocab.json").read_text())
    recipe = yaml.safe_load((PROJECT / "configs" / "dreambooth.yaml").read_text())
    assert recipe["model"]["params"]["identifier"] == "sks"
    assert "sks</w>" in vocabulary
    world = World()
    captions = [caption(world.facts(0, index), by_name=True) for index in range(300)]
    assert not [text for text in captions if "sks" in text.split()]


def test_the_tuning_of_contributing_trains_checkpoints_and_samples(train, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", text_of("CONTRIBUTING.md"), re.S)
    name = "ldm.methods.biases"
    module = types.ModuleType(name)
    exec(next(block for block in blocks if "class Biases" in block), vars(module))
    monkeypatch.setitem(sys.modules, name, module)
    run = train(f"model.params.tuning.target={name}.Biases", "lightning.trainer.max_steps=4")
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    held = checkpoint["state_dict"]
    assert held
    assert all(re.fullmatch(r"model\.unet\..*\.bias", key) for key in held)
    loaded = load_for_sampling(run).model.state_dict()
    base = LatentDiffusion.from_base(checkpoint["base"])
    moved = {key for key, value in base.state_dict().items() if not torch.equal(value, loaded[key])}
    assert moved == {key.removeprefix("model.") for key in held}


def test_the_metric_of_contributing_is_measured(monkeypatch, tmp_path):
    block = next(
        b for b in re.findall(r"```python\n(.*?)```", text_of("CONTRIBUTING.md"), re.S) if "Metric(" in b
    )
    metric = eval(block, vars(metrics))
    monkeypatch.setitem(metrics.METRICS, metric.key, metric)
    clip, dino = tiny_features(tmp_path)
    files = image_files(PROJECT / "assets" / "subject" / "dog")
    items = [Item("subject", "a [V] dog", "a dog", 0, files[0])]
    items += [Item("class", "a dog", "a dog", seed, path) for seed, path in enumerate(files[1:3])]
    result, rows = score(items, {"training": files}, Networks(Dino(str(dino)), Clip(str(clip))))
    assert result["metrics"][metric.key]["count"] == 2
    features = Clip(str(clip)).images(load_image(path) for path in files)
    expected = metrics.cosine(features[1:3], features).mean()
    assert result["metrics"][metric.key]["value"] == pytest.approx(float(expected), rel=1e-5)
    assert metric.key in rows[0].cells()


def test_the_metric_of_contributing_with_a_network_of_its_own(monkeypatch, tmp_path, capsys):
    """Through the script, on pictures made elsewhere."""
    blocks = re.findall(r"```python\n(.*?)```", text_of("CONTRIBUTING.md"), re.S)
    names: dict = {"Dino": Dino}
    exec(next(block for block in blocks if "OTHERS" in block), names)
    monkeypatch.setattr("ldm.evaluation.features.OTHERS", names["OTHERS"])
    metric = eval(next(block for block in blocks if '"dinov2",' in block), vars(metrics))
    monkeypatch.setitem(metrics.METRICS, metric.key, metric)
    clip, dino = tiny_features(tmp_path / "features")
    _, other = tiny_features(tmp_path / "others", seed=1)
    dog = PROJECT / "assets" / "subject" / "dog"
    shutil.copytree(dog, tmp_path / "made" / "a_sks_dog")
    words = ["--images", tmp_path / "made", "--real", dog, "--class_word", "dog", "--identifier", "sks"]
    words += ["--outdir", tmp_path / "out", f"networks.clip={clip}", f"networks.dino={dino}"]
    assert evaluate.main([*map(str, words)]) == 2
    assert "config networks.others has no dinov2" in capsys.readouterr().err
    settings = (PROJECT / "configs" / "evaluation.yaml").read_text()
    config = tmp_path / "evaluation.yaml"
    config.write_text(settings.replace("others: {}", "others: {dinov2: facebook/dinov2-small}"))
    monkeypatch.setattr(evaluate, "CONFIG", config)
    assert evaluate.main([*map(str, words), f"networks.others.dinov2={other}"]) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    features = Dino(str(other)).images(map(load_image, image_files(dog)))
    expected = metrics.subject_fidelity(features, features).mean()
    assert result["metrics"]["dinov2"]["value"] == pytest.approx(float(expected), rel=1e-5)
    assert result["networks"]["others"]["dinov2"]["network"] == str(other)
    assert f"with the real images ({other})" in (tmp_path / "out" / "report.html").read_text()


def test_the_options_in_migrating_md_are_options_here(capsys):
    """Its right columns; keys and overlays are checked above."""
    named = set()
    for row in re.findall(r"^\| .* \| (.*) \|$", text_of("docs/migrating.md"), re.M):
        named |= set(re.findall(r"--[a-z][\w-]*", row))
    options = set()
    for parse in (main.parse, txt2img.parse, export.parse):
        with pytest.raises(SystemExit):
            parse(["--help"])
        options |= set(re.findall(r"--[a-zA-Z][\w-]*", capsys.readouterr().out))
    assert len(named) > 8
    assert not named - options
