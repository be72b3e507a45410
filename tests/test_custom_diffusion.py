"""Custom Diffusion: what trains, what is saved, and what diffusers makes of it."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.formats.custom_diffusion import DELTAS_FILE, projections, read_deltas
from ldm.formats.described import read_json
from ldm.formats.modules import empty_module
from ldm.methods.custom_diffusion import CustomDiffusion
from ldm.methods.load import load_for_sampling
from ldm.methods.parts import Parts, add_parts
from ldm.models.latent_diffusion import LatentDiffusion
from main import main
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.pictures import drawn
from tests.runs import QUICK, state

OVERLAY = str(PROJECT / "configs" / "custom-diffusion.yaml")


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    logs = tmp_path_factory.mktemp("custom")
    words = ["model.params.learning_rate=5e-2", "lightning.trainer.max_steps=6"]
    assert main(["-b", RECIPE, str(tiny_config), OVERLAY, "-l", str(logs), *QUICK, *words]) == 0
    return next(logs.iterdir())


def test_what_trains_is_what_the_originals_code_chooses():
    """crossattn_kv there: parameters of the UNet with attn2.to_k or attn2.to_v in their names, 19.2 M in SD 1.x."""
    unet = empty_module("unet", read_json(PROJECT / "configs/stable-diffusion/v1/unet/config.json"))

    class Model:
        trainable = {"unet": unet}

    Model.unet = unet
    CustomDiffusion(learning_rate=1e-5).attach(Model())
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert set(trained) == {
        name for name, _ in unet.named_parameters() if "attn2.to_k" in name or "attn2.to_v" in name
    }
    # 16 blocks: 5 each of widths 320, 640 and 1280, and one of 1280 in the middle; no biases.
    assert len(trained) == 32
    assert sum(p.numel() for p in trained.values()) == 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280)


def test_the_checkpoint_holds_the_deltas_and_nothing_else_moves(run, tiny):
    held = state(run)["state_dict"]
    base = LatentDiffusion.from_base(tiny)
    names = {f"unet.{name}.weight" for name, _ in projections(base.unet)}
    assert {key.removeprefix("model.") for key in held} == names
    before = base.state_dict()
    assert all(not torch.equal(before[name], held[f"model.{name}"]) for name in names)
    assert {path.name for path in (run / "model").iterdir()} == {DELTAS_FILE, "README.md", "dreambooth.json"}


def test_diffusers_draws_the_same_picture_from_the_deltas_and_from_the_whole_model(run, tiny, tmp_path):
    ours = drawn(tmp_path / "run", run)
    assert abs(ours - drawn(tmp_path / "base", tiny)).max() > 5
    assert export.main(["--ckpt", str(run), "--out", str(tmp_path / "whole"), "--dtype", "fp32"]) == 0
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    deltas = StableDiffusionPipeline.from_pretrained(tiny)
    # diffusers 0.42 sets the processors only where it is given the pipeline.
    deltas.unet.load_attn_procs(run / "model", weight_name=DELTAS_FILE, _pipeline=deltas)
    for name, pipeline in {"whole": whole, "deltas": deltas}.items():
        assert abs(ours - drawn_by(pipeline)).max() <= 1, name


def test_the_deltas_on_a_base_are_the_runs_own_model(run, tiny, tmp_path):
    """As written, and in the file of diffusers' script; drawn again from the picture; merged by export."""
    own = load_for_sampling(run).model
    theirs = {
        key: value if value.numel() else {} for key, value in load_file(run / "model" / DELTAS_FILE).items()
    }
    torch.save(theirs, tmp_path / "pytorch_custom_diffusion_weights.bin")
    for name in (run / "model", tmp_path / "pytorch_custom_diffusion_weights.bin"):
        loaded = load_for_sampling(tiny)
        before = loaded.weights
        add_parts(loaded, Parts(delta=[str(name)]))
        assert loaded.weights != before
        assert own.state_dict().keys() == loaded.model.state_dict().keys()
        assert all(torch.equal(own.state_dict()[key], v) for key, v in loaded.model.state_dict().items())
    ours = drawn(tmp_path / "run", run)
    assert not (ours - drawn(tmp_path / "base", tiny, "--delta", run / "model")).any()
    picture = next((tmp_path / "base" / "samples").iterdir())
    assert txt2img.main(["--from-image", str(picture), "--outdir", str(tmp_path / "again")]) == 0
    assert not (ours - np.asarray(Image.open(tmp_path / "again" / "samples" / "00000.png"))).any()
    words = ["--ckpt", str(tiny), "--delta", str(run / "model"), "--out", str(tmp_path / "baked")]
    assert export.main([*words, "--dtype", "fp32"]) == 0
    assert not (ours - drawn(tmp_path / "merged", tmp_path / "baked")).any()


def test_queries_and_outputs_are_read_too(tiny, tmp_path):
    """Of diffusers' script with --freeze_model crossattn."""
    unet = LatentDiffusion.from_base(tiny).unet
    attention = next(name for name, _ in unet.named_modules() if name.endswith("attn2"))
    layers = {"to_q": "to_q_custom_diffusion", "to_out.0": "to_out_custom_diffusion.0"}
    file = {
        f"{attention}.processor.{theirs}.weight": unet.get_submodule(f"{attention}.{own}").weight + 1
        for own, theirs in layers.items()
    }
    save_file(file, tmp_path / "x.safetensors")
    found = read_deltas(tmp_path / "x.safetensors", unet)
    assert set(found) == {f"{attention}.{own}.weight" for own in layers}
    for key, value in file.items():
        save_file({key: value[:1]}, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match="it is another model's"):
            read_deltas(tmp_path / "x.safetensors", unet)
    for content in ({"unet.conv.weight": torch.ones(1)}, {f"{attention}.processor": torch.zeros(0)}):
        save_file(content, tmp_path / "x.safetensors")
        with pytest.raises(UserError, match="is no Custom Diffusion for this model"):
            read_deltas(tmp_path / "x.safetensors", unet)
    save_file({key: value * float("nan") for key, value in file.items()}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not finite"):
        read_deltas(tmp_path / "x.safetensors", unet)


def test_what_is_a_part_of_a_model_is_told(run, tmp_path, capsys):
    words = ["--outdir", str(tmp_path), "--skip_grid", "--ckpt", str(run / "model")]
    assert txt2img.main(words) == 2
    assert f"add --delta {run / 'model'}" in capsys.readouterr().err
    assert txt2img.main([*words[:-1], "assets/base", "--delta", str(tmp_path)]) == 2
    assert f"a folder with {DELTAS_FILE}" in capsys.readouterr().err


def drawn_by(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(42)
    image = pipeline("a photo of sks dog", 32, 32, 4, guidance_scale=7.5, generator=generator).images[0]
    return np.asarray(image).astype(int)


def test_the_start_token_gives_no_gradient(tiny):
    """As in the original: all prompts share it, so what trains would move every picture."""
    model = LatentDiffusion.from_base(tiny)
    CustomDiffusion(learning_rate=1e-5).attach(model)
    _, key = next(iter(projections(model.unet)))
    states = torch.randn(1, 3, 32, requires_grad=True)
    key(states).square().sum().backward()
    expected = 2 * (key.weight @ states[0, 1:].T) @ states[0, 1:]
    torch.testing.assert_close(key.weight.grad, expected)
    assert states.grad[0, 0].abs().max() == 0


def test_a_rate_of_0_is_refused(tiny, capsys):
    words = ["-b", RECIPE, OVERLAY, "-t", "false", "--actual_resume", str(tiny)]
    words += ["model.params.learning_rate=0", "model.params.text_encoder_learning_rate=1e-4"]
    assert main(words) == 2
    assert "trains only the UNet" in capsys.readouterr().err
