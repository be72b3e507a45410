"""The nouns that the embedded base says it knows, and a warning for other class words."""

import json
import shutil
import warnings

import pytest

from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.formats.base import fingerprint
from ldm.formats.knowledge import FILE, Knowledge, advised_sampling, read_knowledge, warn_of_unknown_class
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.world.drawing import World
from main import main
from scripts import evaluate, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.tiny_features import tiny_features

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


def test_the_embedded_base_says_how_it_is_best_sampled_and_others_are_sampled_as_ever(tiny):
    own = Sampling("euler_a", 25, 1.25)
    assert advised_sampling(BASE) == own
    assert advised_sampling(BASE, steps=7, guidance_scale=1.0) == Sampling("euler_a", 7, 1.0)
    for base in (tiny, "runwayml/stable-diffusion-v1-5"):
        assert advised_sampling(base) == Sampling("ddim", 50, 7.5)
        assert advised_sampling(base, "euler") == Sampling("euler", 50, 7.5)


def test_sample_images_txt2img_and_evaluation_follow_the_bases_advice(
    tiny, tiny_config, tmp_path, monkeypatch
):
    """And so does what is made of the run's export, which carries it along."""
    told = tmp_path / "told"
    shutil.copytree(tiny, told)
    advice = {"sampler": "euler_a", "steps": 2, "guidance_scale": 1.5}
    (told / FILE).write_text(json.dumps({"nouns": ["dog"], "sampling": advice}))
    used, images = [], LatentDiffusion.images

    def noted(self, prompts, seeds, sampling, *others, **options):
        used.append(sampling)
        return images(self, prompts, seeds, sampling, *others, **options)

    monkeypatch.setattr(LatentDiffusion, "images", noted)
    words = ["--base", RECIPE, str(tiny_config), "-l", str(tmp_path / "logs"), f"model.params.base={told}"]
    words += ["lightning.callbacks.samples.params.steps=null", "lightning.trainer.max_steps=1"]
    words.append("lightning.callbacks.samples.params.guidance_interval=[200,800]")
    assert main(words) == 0
    (run,) = (tmp_path / "logs").iterdir()
    for model in (told, run, run / "model"):
        words = ["--ckpt", str(model), "--outdir", str(tmp_path / "out"), "--n_samples", "1"]
        assert txt2img.main([*words, "--guidance_interval", "200,800"]) == 0
    clip, dino = tiny_features(tmp_path / "features")
    words = ["--ckpt", str(run), "--outdir", str(tmp_path / "evaluation"), f"networks.clip={clip}"]
    words += [f"networks.dino={dino}", "sampling.images_per_prompt=1", "sampling.class_images=1"]
    compiled = []
    monkeypatch.setattr(LatentDiffusion, "compile_blocks", lambda model: compiled.append(model))
    words += ["--compile", "sampling.guidance_interval=[200,800]", "sampling.batch_size=auto"]
    assert evaluate.main(words) == 0
    assert len(compiled) == 2  # the run and its base
    assert len(used) > 5
    assert set(used) == {Sampling(**advice, guidance_interval=(200, 800))}
    result = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert {key: result["about"]["sampling"][key] for key in advice} == advice


@pytest.mark.parametrize(
    "content",
    [
        '{"nouns": [], "sampling": {"sampler": "best", "steps": 5, "guidance_scale": 1}}',
        '{"nouns": [], "sampling": {"sampler": "ddim", "steps": 0, "guidance_scale": 1}}',
        '{"nouns": [], "sampling": {"sampler": "ddim"}}',
        "[]",
        "{}",
        '{"nouns": "dog"}',
        '{"nouns": [1]}',
        "{",
        "[" * 100_000,
        "\xff",
    ],
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
