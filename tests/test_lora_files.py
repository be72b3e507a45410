"""LoRA files: the same LoRA in diffusers, in kohya's layout and here, and pictures with several."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_kohya
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.data.png import png_text
from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.formats.lora import LAYOUTS, LORA_FILE, read_lora, save_lora
from ldm.methods.load import load_for_sampling
from ldm.methods.lora import add_lora, extract_lora, lora_of
from ldm.methods.tuning import tuning_of
from ldm.models.latent_diffusion import LatentDiffusion
from main import main
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.pictures import drawn
from tests.runs import QUICK
from tests.tiny_xl import tiny_xl

LORA = str(PROJECT / "configs" / "lora.yaml")
CONFIG = "model.params.tuning.params.config"
KINDS = {
    "lora": [
        f"{CONFIG}.params.target_modules=[to_q,to_v,to_out.0,proj_in,conv1]",
        f"{CONFIG}.params.lora_alpha=2",
    ],
    "dora": [f"{CONFIG}.params.target_modules=[to_q,to_v,conv1]", f"{CONFIG}.params.use_dora=true"],
}


@pytest.fixture(scope="module")
def runs(tiny_config, tmp_path_factory):
    """Runs of 6 steps at a high learning rate: a LoRA and a DoRA, also on convolutions, and all weights."""
    found = {}
    for kind, words in {**KINDS, "full": ["model.params.learning_rate=2e-3"]}.items():
        logs = tmp_path_factory.mktemp(kind)
        overlay = [] if kind == "full" else [LORA]
        words = [*words, "lightning.trainer.max_steps=6", "lightning.callbacks.validation=null"]
        assert main(["-b", RECIPE, str(tiny_config), *overlay, "-l", str(logs), *QUICK, *words]) == 0
        found[kind] = next(logs.iterdir())
    return found


def exported(run, out, *words):
    assert export.main(["--ckpt", str(run), "--out", str(out), "--dtype", "fp32", *words]) == 0
    return out


def drawn_by_diffusers(base, *loras):
    """The same picture by a pipeline of diffusers with `load_lora_weights`; loras: (file or folder, scale)."""
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for number, (path, _) in enumerate(loras):
        pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=f"number{number}")
    pipeline.set_adapters([f"number{n}" for n in range(len(loras))], [scale for _, scale in loras])
    image = pipeline(
        "a photo of sks dog",
        num_inference_steps=4,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(42),
        height=32,
        width=32,
    ).images[0]
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_draws_the_same_picture_from_what_a_run_has_written(runs, tiny, tmp_path, kind):
    run = runs[kind]
    ours = drawn(tmp_path / "run", run)
    assert abs(ours - drawn(tmp_path / "base", tiny)).max() > 5
    theirs = drawn_by_diffusers(tiny, (run / "model" / LORA_FILE, 1.0))
    assert abs(ours - theirs).max() <= 1
    added = drawn(tmp_path / "added", tiny, "--lora", run / "model", "--prompt", "a photo of [V] dog")
    assert abs(ours - added).max() <= 1
    about = json.loads((run / "model" / "dreambooth.json").read_text())
    assert about == {"identifier": "sks", "class_word": "dog", "step": 6}
    assert "base_model:" in (run / "model" / "README.md").read_text()


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A tiny SDXL, and a LoRA of its UNet and both text encoders with random numbers in it."""
    base = tiny_xl(tmp_path_factory.mktemp("xl") / "base")
    model = LatentDiffusion.from_base(base)
    node = {"target": "peft.LoraConfig", "params": {"r": 3}}
    params = {
        "seed": 1,
        **{key: {**node, "params": {"r": 3, "target_modules": layers}} for key, layers in XL_LAYERS.items()},
    }
    tuning_of(
        {"tuning": {"target": "ldm.methods.adapter.Adapter", "params": params}, "learning_rate": 1}
    ).attach(model)
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=draws)
    return base, lora_of(model)


XL_LAYERS = {"config": ["to_q", "to_v", "proj_in", "conv1"], "text_encoder_config": ["q_proj", "out_proj"]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_of_sdxl_is_read_by_diffusers_and_here(xl, tmp_path, layout):
    base, lora = xl
    assert set(lora) == {"unet", "text_encoder", "text_encoder_2"}
    path = tmp_path / "xl.safetensors"
    save_lora(lora, path, LAYOUTS[layout], torch.float32)
    model = LatentDiffusion.from_base(base)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_lora(model, read_lora(path, model.trainable))
    pipeline = StableDiffusionXLPipeline.from_pretrained(base)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    pipeline.fuse_lora(components=list(lora))
    pipeline.unload_lora_weights()
    changed = 0
    for network in lora:
        fused = getattr(pipeline, network).state_dict()
        for name, value in model.trainable[network].state_dict().items():
            torch.testing.assert_close(value, fused[name])
            changed += not torch.equal(value, before[f"{network}.{name}"])
    assert changed == sum(map(len, lora.values()))


def test_kohyas_layout_has_the_keys_and_alphas_of_diffusers_conversion(runs, tiny, tmp_path):
    path = exported(runs["lora"], tmp_path / "dog.safetensors", "--form", "kohya")
    ours = load_file(path)
    theirs = convert_state_dict_to_kohya(load_file(runs["lora"] / "model" / LORA_FILE))
    # Kohya and the web UI number text encoders only where there are two.
    theirs = {key.replace("lora_te1_", "lora_te_"): value for key, value in theirs.items()}
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
    assert any(key.startswith("lora_te_text_model_encoder_layers_0") for key in ours)
    assert any("conv1" in key for key in ours)
    picture = drawn(tmp_path / "run", runs["lora"])
    assert abs(picture - drawn(tmp_path / "added", tiny, "--lora", path)).max() <= 1
    assert abs(picture - drawn_by_diffusers(tiny, (path, 1.0))).max() <= 1
    assert (tmp_path / "dog.safetensors.md").is_file()
    merged = exported(tiny, tmp_path / "merged", "--lora", f"{path}:0.5")
    assert (
        f"| Added to it | `--lora {tmp_path.name}/dog.safetensors:0.5` |"
        in (merged / "README.md").read_text()
    )


def test_dora_in_kohyas_layout_comes_back_whole(runs, tiny, tmp_path):
    path = exported(runs["dora"], tmp_path / "dog.safetensors", "--form", "kohya")
    scales = [value for key, value in load_file(path).items() if key.endswith(".dora_scale")]
    assert {value.ndim for value in scales} == {2, 4}  # a number for each row, as ComfyUI divides by
    networks = LatentDiffusion.from_base(tiny).trainable
    again, before = read_lora(path, networks), read_lora(runs["dora"] / "model", networks)
    assert again.keys() == before.keys()
    for name, layers in before.items():
        for layer, change in layers.items():
            for part in ("down", "up", "magnitude") if name == "unet" else ("down", "up"):
                assert torch.equal(getattr(again[name][layer], part), getattr(change, part))


def test_files_of_others_are_read_by_their_own_names(runs, tiny, tmp_path):
    """`lora_te1_`, an alpha that is not the rank, CompVis' names of blocks, and older names of diffusers."""
    networks = LatentDiffusion.from_base(tiny).trainable
    want = read_lora(runs["lora"] / "model", networks)
    kohya = load_file(exported(runs["lora"], tmp_path / "dog.safetensors", "--form", "kohya"))
    renamed = {key.replace("lora_te_", "lora_te1_"): value for key, value in kohya.items()}
    renamed |= {key: torch.tensor(2.0) for key in renamed if key.endswith(".alpha")}
    mid = "lora_unet_mid_block_attentions_0_proj_in"
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        renamed[f"lora_unet_middle_block_1_proj_in.{part}"] = renamed.pop(f"{mid}.{part}")
    save_file(renamed, tmp_path / "renamed.safetensors")
    old = {
        key.replace(".lora_A.", ".lora.down.")
        .replace(".lora_B.", ".lora.up.")
        .replace(".text_model.", "."): value
        for key, value in load_file(runs["lora"] / "model" / LORA_FILE).items()
    }
    save_file(old, tmp_path / "old.safetensors")
    for name, scale in (("renamed", 2.0), ("old", None)):
        found = read_lora(tmp_path / f"{name}.safetensors", networks)
        assert {n: set(layers) for n, layers in found.items()} == {
            n: set(layers) for n, layers in want.items()
        }
        for network, layers in want.items():
            for layer, change in layers.items():
                factor = scale / change.rank if scale else 1.0
                torch.testing.assert_close(found[network][layer].up, change.up * factor)
                assert torch.equal(found[network][layer].down, change.down)


def test_several_at_once_and_their_scales_are_those_of_diffusers(runs, tiny, tmp_path):
    one = runs["lora"] / "model" / LORA_FILE
    other = exported(runs["full"], tmp_path / "other.safetensors", "--form", "kohya", "--rank", "4")
    words = ["--lora", f"{one}:0.5", f"{other}:1.5"]
    ours = drawn(tmp_path / "ours", tiny, *words)
    assert abs(ours - drawn_by_diffusers(tiny, (one, 0.5), (other, 1.5))).max() <= 1
    assert abs(ours - drawn(tmp_path / "half", tiny, "--lora", f"{one}:0.5")).max() > 1
    picture = next((tmp_path / "ours" / "samples").iterdir())
    assert json.loads(png_text(picture)["loras"]) == words[1:]
    assert txt2img.main(["--from-image", str(picture), "--outdir", str(tmp_path / "again")]) == 0
    assert abs(ours - np.asarray(Image.open(tmp_path / "again" / "samples" / "00000.png"))).max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_model_draws_the_picture(runs, tiny, tmp_path, kind):
    folder = exported(runs[kind], tmp_path / "merged")
    assert not [key for key in load_base(folder).unet.state_dict() if "lora" in key]
    picture = drawn(tmp_path / "run", runs[kind])
    assert abs(picture - drawn(tmp_path / "out", folder)).max() <= 1
    baked = tmp_path / "baked"
    assert export.main(["--ckpt", str(tiny), "--lora", str(runs[kind] / "model"), "--out", str(baked)]) == 0
    assert abs(picture - drawn(tmp_path / "again", baked)).max() <= 2  # fp16


def test_extraction_is_the_best_of_its_rank_and_tells_its_error(runs, tmp_path, capsys):
    loaded = load_for_sampling(runs["full"])
    base = loaded.read_base()
    errors = []
    for rank in (1, 4, 1000):
        extraction = extract_lora(loaded.model, base, rank)
        squares = rest = 0.0
        for network, layers in extraction.lora.items():
            for layer, change in layers.items():
                trained = loaded.model.trainable[network].get_submodule(layer).weight
                delta = (trained - base.trainable[network].get_submodule(layer).weight).detach().flatten(1)
                product = change.up.flatten(1) @ change.down.flatten(1)
                assert torch.linalg.matrix_rank(product) <= rank
                dropped = torch.linalg.svdvals(delta)[rank:].square().sum()
                assert (delta - product).square().sum() == pytest.approx(float(dropped), rel=1e-3, abs=1e-9)
                squares, rest = squares + delta.square().sum(), rest + dropped
        assert extraction.error == pytest.approx(float((rest / squares) ** 0.5), rel=1e-3, abs=1e-5)
        errors.append(extraction.error)
    assert 1 > errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-5
    assert 0 < extraction.outside < 1
    exported(runs["full"], tmp_path / "lora", "--form", "lora", "--rank", "4")
    told = capsys.readouterr().out.splitlines()[-1]
    assert f"rank 4 omits {errors[1]:.1%} of the change of its layers" in told
    model = loaded.read_base()
    add_lora(model, read_lora(tmp_path / "lora", model.trainable))
    assert extract_lora(model, base, 4).error < 1e-5  # what was written has this rank
    distance = sum(
        float((trained - ours).detach().square().sum())
        for network, layers in extraction.lora.items()
        for trained, ours in (
            (m.trainable[network].get_submodule(layer).weight for m in (loaded.model, model))
            for layer in layers
        )
    )
    assert distance == pytest.approx(errors[1] ** 2 * float(squares), rel=1e-3)


def test_lora_of_a_run_is_what_its_file_holds(runs):
    loaded = load_for_sampling(runs["lora"])
    ours, theirs = lora_of(loaded.model), read_lora(runs["lora"] / "model", loaded.read_base().trainable)
    assert ours.keys() == theirs.keys() == {"unet", "text_encoder"}
    for name, layers in ours.items():
        for layer, change in layers.items():
            assert torch.equal(change.down, theirs[name][layer].down)
            assert torch.equal(change.up, theirs[name][layer].up)


def test_files_that_are_no_lora_for_the_model_are_refused(runs, tiny, tmp_path):
    networks = LatentDiffusion.from_base(tiny).trainable
    whole = load_file(runs["lora"] / "model" / LORA_FILE)
    key = next(key for key in whole if key.endswith("conv1.lora_A.weight"))
    wrong = {
        "another layer": (
            {**whole, "unet.nowhere.lora_A.weight": torch.zeros(1)},
            "1 of its .* tensors are not part",
        ),
        "half": ({name: value for name, value in whole.items() if name != key}, "has no down matrix"),
        "shape": ({**whole, key: torch.zeros(8, 3, 3, 3)}, "it is another model's"),
        "numbers": ({**whole, key: whole[key] * float("nan")}, "not finite"),
        "no rank": ({**whole, key: torch.zeros(0, 8, 3, 3)}, "it is another model's"),
        "flat": ({**whole, key: torch.zeros(8)}, "it is another model's"),
        "alpha": (
            {**whole, key.replace("lora_A.weight", "alpha"): torch.ones(2)},
            "whose alpha is not one number",
        ),
        "empty": ({"x": torch.zeros(1)}, "is not a LoRA for this model"),
    }
    for name, (tensors, told) in wrong.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=told):
            read_lora(tmp_path / f"{name}.safetensors", networks)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lora", "nowhere.safetensors"], "there is no nowhere.safetensors"),
        (["--lora", "{lora}:much"], "'much' is not a number"),
        (["--lora", "{lora}:nan"], "'nan' is not a number"),
        (["--lora", "{tiny}"], "there is no .*pytorch_lora_weights.safetensors"),
    ],
)
def test_a_wrong_lora_is_told_in_one_line(runs, tiny, tmp_path, capsys, words, told):
    words = [word.format(lora=runs["lora"] / "model", tiny=tiny) for word in words]
    assert txt2img.main(["--ckpt", str(tiny), "--outdir", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert re.search(told, error)


def test_export_says_what_it_cannot_do(runs, tiny, tmp_path, capsys):
    for run, words, told in (
        (runs["lora"], ["--form", "lora", "--rank", "4"], "which keeps its rank"),
        (runs["lora"], ["--form", "kohya"], "must be a .safetensors file"),
        (runs["lora"], ["--rank", "4"], "add --form lora"),
        (tiny, ["--form", "lora"], "only be extracted from a run"),
        (runs["lora"] / "model", [], "is a part of a model: name its base, and add --lora"),
    ):
        assert export.main(["--ckpt", str(run), "--out", str(tmp_path / "out"), *words]) == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
