"""What only a GPU can show: `python -m pytest -m gpu` where there is one. Every other test computes on the CPU."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import load_config
from ldm.methods.dreambooth import DreamBooth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.training.rows import read_rows
from scripts.txt2img import main as draw
from tests.conftest import RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

ON_GPU = (*QUICK, "lightning.trainer.accelerator=gpu")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def losses(run) -> np.ndarray:
    """Loss of every step of `run`, [steps]."""
    return np.array([row["loss"] for row in read_rows(run / "metrics.jsonl")])


def test_fp32_has_the_loss_curve_of_the_cpu(train):
    gpu, cpu = losses(train(*ON_GPU, name="gpu")), losses(train(*QUICK, name="cpu"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-3)


@pytest.mark.parametrize("precision", PRECISIONS[1:])
def test_mixed_precision_learns_as_fp32_does(train, precision):
    words = (*ON_GPU, "lightning.trainer.max_steps=40")
    exact = losses(train(*words, name="exact"))
    run = train(*words, f"lightning.trainer.precision={precision}", name="mixed")
    # A few steps are skipped until the scaler has found its scale.
    assert losses(run)[-10:].mean() == pytest.approx(exact[-10:].mean(), rel=0.05)
    if precision == "16-mixed":
        scaler = state(run)["MixedPrecision"]
        assert 0 < scaler["scale"] <= 2.0**16


@pytest.mark.parametrize("precision", PRECISIONS)
def test_deterministic_runs_repeat_and_resume_bit_for_bit(train, monkeypatch, precision):
    words = (*ON_GPU, f"lightning.trainer.precision={precision}", "lightning.trainer.deterministic=true")
    whole = train(*words, name="whole")
    assert_same_run(train(*words, name="again"), whole)
    at_call(monkeypatch, DreamBooth, "training_step", {5}, send(signal.SIGTERM))
    cut = train(*words, name="cut", expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)
    if precision == "16-mixed":
        assert state(cut)["MixedPrecision"] == state(whole)["MixedPrecision"]


def test_compiled_blocks_have_the_gradients_of_plain_ones():
    gradients = {}
    draws = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=draws).cuda()
    for compiled in (False, True):
        model = LatentDiffusion.from_base("assets/base")
        model.move_trainable_to(torch.device("cuda"))
        model.unet.requires_grad_(True)
        if compiled:
            model.compile_blocks()
        states = model.embed(["a photo of a dog", "a photo of a sks dog"])
        model.predict(latents, torch.tensor([10, 700]).cuda(), states).square().mean().backward()
        gradients[compiled] = torch.cat([p.grad.flatten() for p in model.unet.parameters()])
    error = (gradients[True] - gradients[False]).norm() / gradients[False].norm()
    assert error < 1e-3


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_run_has_the_loss_curve_of_a_plain_one(train, key, precision):
    words = (*ON_GPU, f"lightning.trainer.precision={precision}")
    plain, other = train(*words, name="plain"), train(*words, f"model.params.{key}=true", name="other")
    np.testing.assert_allclose(losses(other), losses(plain), rtol=1e-3 if precision == "32-true" else 5e-3)


@pytest.mark.parametrize(
    "change", ["all weights", "lora", "textual inversion", "frozen text encoder", "templates", "two shapes"]
)
def test_recorded_passes_train_what_the_run_trains(train, tmp_path, change):
    """Deterministic kernels are the same ones in a recording."""
    words = [*ON_GPU, "lightning.trainer.deterministic=true"]
    if change in ("lora", "textual inversion"):
        overlay = f"configs/{change.replace(' ', '-')}.yaml"
        params = load_config([RECIPE, overlay])["model"]["params"]
        words += [f"model.params.{key}={json.dumps(params[key])}" for key in ("tuning", "identifier")]
    elif change == "templates":  # a step has as many different prompts as it draws
        templates = load_config([RECIPE, "configs/templates.yaml"])["data"]["params"]["templates"]
        words.append(f"data.params.templates={json.dumps(templates)}")
    elif change == "frozen text encoder":
        words.append("model.params.text_encoder_learning_rate=0")
    else:
        for name, size in (("wide", (48, 24)), ("tall", (24, 48))):
            Image.effect_noise(size, 60).convert("RGB").save(tmp_path / f"{name}.png")
        words += ["data.params.bucket_step=8", f"data.params.data_root={tmp_path}"]
    plain = train(*words, name="plain")
    assert_same_run(train(*words, "model.params.cuda_graphs=true", name="recorded"), plain)


def test_pictures_in_fp32_are_those_of_the_cpu(tmp_path):
    words = ["--ckpt", "assets/base", "--prompt", "a photo of a dog", "--n_samples", "2", "--n_iter", "1"]
    words += ["--precision", "full", "--steps", "10", "--sampler", "ddim"]
    drawn = {}
    for device in ("cpu", "cuda"):
        assert draw([*words, "--device", device, "--outdir", str(tmp_path / device)]) == 0
        files = sorted((tmp_path / device / "samples").glob("*.png"))
        drawn[device] = np.stack([np.asarray(Image.open(file), dtype=int) for file in files])
    assert abs(drawn["cuda"] - drawn["cpu"]).max() <= 2
