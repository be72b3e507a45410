"""Stable Diffusion XL and the paper's feature networks by hub ids, from the hub's cache, without a network."""

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.formats.diffusers_folder import read_vae
from main import main
from scripts import evaluate, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.hub_cache import COMMIT, put_in_cache
from tests.runs import QUICK, resume
from tests.tiny import SIDE
from tests.tiny_features import tiny_features

CONFIGS = PROJECT / "configs" / "stable-diffusion"
XL = "stabilityai/stable-diffusion-xl-base-1.0"
CLIP, DINO = "openai/clip-vit-base-patch32", "facebook/dino-vits16"
VAE = "madebyollin/sdxl-vae-fp16-fix"
FP16 = [(".safetensors", ".fp16.safetensors")]
OPTIMIZER = "model.params.optimizer={target: torch.optim.SGD, params: {momentum: 0.9}}"


@pytest.fixture(scope="module")
def cache(xl, tmp_path_factory):
    """The hub's cache with all that the recipes for SDXL and its evaluation name."""
    cache, made = tmp_path_factory.mktemp("hub"), tmp_path_factory.mktemp("made")
    halved = shutil.copytree(xl, made / "xl")
    for path in halved.rglob("*.safetensors"):
        save_file({key: value.half() for key, value in load_file(path).items()}, path, {"format": "pt"})
    put_in_cache(cache, XL, halved, FP16)
    put_in_cache(cache, VAE, xl / "vae")
    clip, dino = tiny_features(made)
    put_in_cache(cache, CLIP, clip)
    torch.save(load_file(dino / "model.safetensors"), dino / "pytorch_model.bin")
    (dino / "model.safetensors").unlink()  # older repositories have only the pickle
    put_in_cache(cache, DINO, dino)
    return cache


@pytest.fixture(autouse=True)
def offline(cache, monkeypatch):
    """The environment variables HF_HOME and HF_HUB_OFFLINE, which are read when huggingface_hub is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def run(cache, tiny_config, tmp_path_factory):
    """A run of xl.yaml with its base by hub id and variant, at the fixture's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        logs = tmp_path_factory.mktemp("logs")
        words = [f"model.params.base={XL}", "model.params.variant=fp16", OPTIMIZER, *QUICK]
        words += ["lightning.trainer.max_steps=2", "lightning.callbacks.validation=null"]
        recipe = ["-b", RECIPE, str(CONFIGS / "xl.yaml"), str(tiny_config)]
        assert main([*recipe, *words, "-l", str(logs)]) == 0
        return next(logs.iterdir())


def test_a_base_by_hub_id_and_variant_trains_resumes_and_is_sampled(run, xl, tmp_path):
    base = load_base(XL, variant="fp16")
    whole = load_base(xl)
    for name, network in whole.networks.items():
        ours = base.networks[name].state_dict()
        assert all(torch.equal(ours[key], v.half().float()) for key, v in network.state_dict().items()), name
    assert base.source == XL
    assert resume(run, "lightning.trainer.max_steps=3") == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    words = ["--prompt", "a [V] dog", "--steps", "2", "--n_samples", "1", "--outdir", str(tmp_path)]
    assert txt2img.main(["--ckpt", str(run), *words]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "set the variant to match"), ({"variant": "bf16"}, "set the variant to match")],
)
def test_a_variant_that_the_cache_lacks_is_named(options, message):
    with pytest.raises(UserError, match=message):
        load_base(XL, **options)


def test_another_vae_by_hub_id_need_not_have_the_bases_variant(xl):
    vae = load_base(XL, variant="fp16", vae=VAE).vae.state_dict()
    own = read_vae(xl, variant=None, dtype=torch.float32).state_dict()
    assert all(torch.equal(vae[key], value) for key, value in own.items())


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["sampling.steps=2", "sampling.images_per_prompt=1", "sampling.class_images=2"]),
        pytest.param(["--no_base"], marks=pytest.mark.slow),  # the paper's numbers of images and steps
    ],
)
def test_the_papers_evaluation_serves_it(run, tmp_path, words):
    """Nothing of configs/stable-diffusion/evaluation.yaml is overridden but, in the short one, its numbers."""
    command = ["--ckpt", str(run), "--config", str(CONFIGS / "evaluation.yaml"), "--device", "cpu"]
    assert evaluate.main([*command, "--outdir", str(tmp_path / "out"), *words]) == 0
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    about, networks = result["about"], result["networks"]
    assert [networks[name]["network"] for name in ("dino", "clip")] == [DINO, CLIP]
    assert {networks[name]["revision"] for name in ("dino", "clip")} == {COMMIT}
    drawn = about["sampling"]
    assert (about["prompts"], drawn["sampler"], drawn["guidance_scale"]) == ("live", "ddim", 7.5)
    subject, of_class = 25 * drawn["images_per_prompt"], drawn["class_images"]
    if "--no_base" in words:
        assert (subject, of_class, drawn["steps"]) == (100, 64, 50)
    else:
        assert result["base"]["dino"]["value"] != result["metrics"]["dino"]["value"]
    counts = {name: metric["count"] for name, metric in result["metrics"].items() if metric["count"]}
    assert [counts[name] for name in ("dino", "clip_i", "clip_t", "pres")] == [*[subject] * 3, of_class]
    pictures = [Image.open(path) for path in (tmp_path / "out").glob("*/*.png")]
    assert len(pictures) == subject + of_class
    assert {picture.size for picture in pictures} == {(SIDE, SIDE)}
    assert any("wearing a red hat" in picture.text["prompt"] for picture in pictures)
