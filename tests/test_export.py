"""scripts/export.py on a trained run: folders and single files that other tools read."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open

from ldm.concepts import Learned
from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.formats.diffusers_folder import save_diffusers_folder
from ldm.formats.families import FAMILIES, SD1
from ldm.methods.export import card_path, refuse_taken
from ldm.methods.load import load_for_sampling
from ldm.methods.model_card import model_card
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.runs import state
from tests.small_sd import part, small_configs, small_sd, tokenizers_are_read_once  # noqa: F401 - a fixture

STEP = [
    "data.params.size=64",
    "data.params.prior.count=1",
    "data.params.prior.chunk_size=1",
    "data.params.prior.steps=1",
    "lightning.trainer.max_steps=1",
    "lightning.trainer.accelerator=cpu",
    "lightning.callbacks.samples=null",
    "lightning.callbacks.validation=null",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def runs(root):
    """Run folders: one step on scaled-down Stable Diffusion 1.x and 2.x, text encoder included."""
    from main import main

    found = {}
    for version in ("v1", "v2"):
        configs = small_configs(root / "configs" / version, version)
        base = save_diffusers_folder(small_sd(configs), root / f"base-{version}", torch.float32)
        words = [f"model.params.base={base}", *STEP]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(PROJECT)
            assert main(["--base", RECIPE, "-l", str(root / f"logs-{version}"), *words]) == 0
        found[version] = next((root / f"logs-{version}").iterdir())
    return found


@pytest.fixture(scope="module")
def run(runs):
    return runs["v1"]


@pytest.fixture
def published(root, monkeypatch):
    """Treat the scaled-down sizes as the published ones."""
    small = [
        dataclasses.replace(family, configs=root / "configs" / family.configs.name) for family in FAMILIES
    ]
    monkeypatch.setattr("ldm.formats.single_file.FAMILIES", small)


def exported(run, out, *words):
    assert export.main(["--ckpt", str(run), "--out", str(out), *words]) == 0
    return out


def equal(left, right, dtype=torch.float32):
    """Assert that two models have bit-equal weights once both are in `dtype`."""
    for name in SD1.networks:
        ours, theirs = part(left, name).state_dict(), part(right, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key].to(dtype), theirs[key].to(dtype)) for key in ours), name


def test_a_folder_holds_what_was_trained(run, tmp_path):
    trained = load_for_sampling(run).model
    base = load_base(trained.source)
    folder = exported(run, tmp_path / "model", "--dtype", "fp32")
    equal(StableDiffusionPipeline.from_pretrained(folder), trained)
    for name in ("unet", "text_encoder"):
        before, after = part(base, name).state_dict(), part(trained, name).state_dict()
        assert not all(torch.equal(before[key], after[key]) for key in before)
    half = load_base(exported(run, tmp_path / "half"), dtype=torch.float16)
    equal(half, trained, torch.float16)
    assert json.loads((folder / "dreambooth.json").read_text()) == {
        "identifier": "sks",
        "class_word": "dog",
        "step": 1,
    }


@pytest.mark.parametrize(("version", "name"), [("v1", "dog.ckpt"), ("v2", "dog.safetensors")])
def test_a_single_file_holds_what_was_trained_here_and_in_diffusers(runs, version, name, tmp_path, published):
    run = runs[version]
    trained = load_for_sampling(run).model
    path = exported(run, tmp_path / name, "--dtype", "fp32")
    loaded = load_base(path)
    equal(loaded, trained)
    assert loaded.scheduler_config["prediction_type"] == trained.prediction_type
    folder = str(run / "model")
    equal(StableDiffusionPipeline.from_single_file(str(path), config=folder, local_files_only=True), trained)
    assert {path.name for path in tmp_path.iterdir()} == {name, f"{name}.md"}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            assert file.metadata()["modelspec.trigger_phrase"] == "sks dog"


@pytest.mark.parametrize(
    ("version", "sampler", "scheduler"),
    [
        ("v1", "ddim", DDIMScheduler),
        ("v1", "euler_a", EulerAncestralDiscreteScheduler),  # draws more noise from the picture's generator
        ("v2", "ddim", DDIMScheduler),
    ],
)
def test_diffusers_draws_the_images_of_txt2img(runs, version, sampler, scheduler, tmp_path):
    """The same seed: equal up to rounding by a level or two of 255."""
    folder = exported(runs[version], tmp_path / "model", "--dtype", "fp32")
    words = ["--prompt", "a photo of a [V] dog", "--n_samples", "2", "--steps", "4", "--scale", "3"]
    words += [
        "--sampler",
        sampler,
        "--spacing",
        "leading",
        "--seed",
        "7",
        "--device",
        "cpu",
        "--outdir",
        str(tmp_path / "images"),
    ]
    assert txt2img.main(["--ckpt", str(runs[version]), *words]) == 0
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    pipeline.set_progress_bar_config(disable=True)
    paths = sorted((tmp_path / "images" / "samples").iterdir())
    assert len(paths) == 2
    for number, path in enumerate(paths):
        generator = torch.Generator().manual_seed(7 + number)
        options = {"num_inference_steps": 4, "guidance_scale": 3.0, "generator": generator}
        theirs = np.asarray(pipeline("a photo of a sks dog", **options).images[0], dtype=int)
        ours = np.asarray(Image.open(path), dtype=int)
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() <= 2
        assert ours.std() > 5


def test_each_export_has_a_card(run, tmp_path, published):
    cards = [
        run / "model" / "README.md",  # training exports too
        exported(run, tmp_path / "model") / "README.md",
        card_path(exported(run, tmp_path / "dog.safetensors")),
    ]
    for card in cards:
        text = card.read_text()
        front = yaml.safe_load(text.split("---")[1])
        assert front["instance_prompt"] == "a photo of sks dog"
        assert front["base_model"].startswith("base-v")
        for words in (
            "a photo of sks dog on the beach",
            "| Subject class | dog |",
            "| Optimizer steps | 1 |",
        ):
            assert words in text
        recipe = yaml.safe_load(Path(RECIPE).read_text())
        settings = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
        assert settings["model"]["learning_rate"] == recipe["model"]["params"]["learning_rate"]
        assert settings["trainer"]["max_steps"] == 1
        assert settings["data"]["prior"]["count"] == 1
        assert str(tmp_path.parents[1]) not in text  # no path of this machine
        assert "data_root" not in text
        assert "cache" not in settings["data"]["prior"]


def test_a_ckpt_may_lie_beside_a_safetensors_file(tmp_path):
    for path in (tmp_path / "dog.safetensors", card_path(tmp_path / "dog.safetensors")):
        path.write_text("")
    refuse_taken(tmp_path / "dog.ckpt")
    with pytest.raises(UserError, match="exists already"):
        refuse_taken(tmp_path / "dog.safetensors")


def test_how_a_base_is_read_is_said_as_in_training(tiny, tmp_path):
    """The same options in all scripts; here, the prediction type of a base that does not say it."""
    folder = exported(tiny, tmp_path / "model", "--prediction_type", "v_prediction")
    assert load_base(folder).scheduler_config["prediction_type"] == "v_prediction"


def test_an_exported_folder_can_be_exported_again(run, tmp_path, published):
    again = exported(run / "model", tmp_path / "dog.safetensors", "--dtype", "fp32")
    equal(load_base(again), load_for_sampling(run).model)
    assert "a photo of sks dog" in card_path(again).read_text()


def test_an_export_conditions_on_the_layer_of_its_run(run, tmp_path):
    content = state(run)
    content["config"]["model"]["params"]["clip_skip"] = 2  # whose last layer does not train
    content["state_dict"] = {key: v for key, v in content["state_dict"].items() if ".layers.11." not in key}
    torch.save(content, tmp_path / "skip.ckpt")
    folder = exported(tmp_path / "skip.ckpt", tmp_path / "model")
    assert load_for_sampling(folder).model.clip_skip == 2
    assert load_for_sampling(run / "model").model.clip_skip == 1


def test_a_plain_base_can_be_converted(tiny, tmp_path):
    folder = exported(tiny, tmp_path / "model", "--dtype", "fp32")
    equal(load_base(folder), load_base(tiny))
    assert not (folder / "dreambooth.json").exists()
    assert "instance_prompt" not in (folder / "README.md").read_text()


def refused(capsys, ckpt, out):
    assert export.main(["--ckpt", str(ckpt), "--out", str(out)]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    return message


def test_mistakes_end_in_one_line_and_write_nothing(tiny, tmp_path, capsys):
    target = tmp_path / "out" / "model"
    assert "not found" in refused(capsys, "nowhere", target)
    said = refused(capsys, tiny, target.with_suffix(".safetensors"))
    assert "size" in said
    assert f"a folder can: --out {target}\n" in said
    assert not target.parent.exists()
    taken = tmp_path / "taken"
    taken.mkdir()
    assert "taken exists already" in refused(capsys, tiny, taken)
    (tmp_path / "dog.ckpt.md").write_text("notes")
    assert "dog.ckpt.md exists already" in refused(capsys, tiny, tmp_path / "dog.ckpt")
    assert "a single file ends in .safetensors or .ckpt" in refused(capsys, tiny, tmp_path / "dog.pt")
    (tmp_path / "gone").symlink_to("nowhere")
    assert "gone exists already" in refused(capsys, tiny, tmp_path / "gone")
    assert "cannot be written to" in refused(capsys, tiny, "/proc/nowhere/model")
    broken = shutil.copytree(tiny, tmp_path / "broken")
    (broken / "unet" / "config.json").unlink()
    assert "config.json is missing" in refused(capsys, broken, target)


def test_the_card_says_how_to_skip_layers_elsewhere():
    text = model_card("base", [Learned("sks", "dog")], clip_skip=2)
    assert "| CLIP skip | 2 (in diffusers: `clip_skip=1`) |" in text
