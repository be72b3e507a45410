"""Every tuning on Stable Diffusion XL: it trains, and diffusers draws the same pictures from what it exports."""

import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from ldm.formats.lora import LORA_FILE
from ldm.methods.dreambooth import DreamBooth
from ldm.methods.textual_inversion import EMBEDDINGS_FILE
from main import main
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state
from tests.test_adapters import assert_same_curve
from tests.test_kill import Harness
from tests.test_textual_inversion import LORA

PROMPT = "a photo of [V] on the moon"
CONFIGS = PROJECT / "configs"
TUNINGS = {
    "lora": ["lora.yaml"],
    "dora": ["dora.yaml"],
    "oft": ["oft.yaml"],
    "custom-diffusion": ["custom-diffusion.yaml"],
    "textual-inversion": ["textual-inversion.yaml"],
    "pivotal": ["textual-inversion.yaml"],
}
"""Overlays of each tuning; all weights are in tests/test_xl.py."""
PIVOTAL = [LORA, "model.params.prior_loss_weight=1"]
TUNED = {
    "all weights": [],
    "lora": [str(CONFIGS / "lora.yaml")],
    "pivotal": [str(CONFIGS / "textual-inversion.yaml"), *PIVOTAL],
}
"""Overlays and words of the tunings that are killed, and that two processes train."""
PARTS = {"custom-diffusion": "--delta", "textual-inversion": "--embeds"}
"""Options of txt2img.py that add what a run has exported to its base."""


def drawn(out, *words):
    """A picture of txt2img, as an array."""
    common = ["--steps", "4", "--n_samples", "1", "--skip_grid", "--spacing", "base", "--scale", "5"]
    assert txt2img.main([str(word) for word in ("--prompt", PROMPT, *common, "--outdir", out, *words)]) == 0
    return np.asarray(Image.open(next((out / "samples").iterdir()))).astype(int)


def drawn_by(pipe, subject):
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    source = torch.Generator().manual_seed(42)
    prompt = PROMPT.replace("[V]", subject)
    image = pipe(prompt, num_inference_steps=4, guidance_scale=5.0, generator=source).images[0]
    return np.asarray(image).astype(int)


@pytest.fixture(scope="module")
def run(xl, tiny_config, tmp_path_factory):
    """`run("name", "key=value", ...)` trains a tuning for 2 steps; the run folder."""
    base = f"model.params.base={xl}"

    def train(name, *words, expect=0, out=None):
        logs = out or tmp_path_factory.mktemp(name)
        overlays = [str(tiny_config), *(str(CONFIGS / overlay) for overlay in TUNINGS[name])]
        words = [*(PIVOTAL if name == "pivotal" else []), *words]
        words = [base, *QUICK, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=2", *words]
        assert main(["-b", RECIPE, *overlays, "-l", str(logs), *words]) == expect
        return next(logs.iterdir())

    return train


@pytest.fixture(scope="module")
def plain(xl, tmp_path_factory):
    """The base's picture."""
    words = ["--ckpt", xl, "--prompt", PROMPT.replace("[V]", "dog")]
    return drawn(tmp_path_factory.mktemp("plain"), *words)


@pytest.mark.parametrize("name", TUNINGS)
def test_a_tuning_trains_and_diffusers_draws_its_pictures(run, plain, xl, name, tmp_path):
    made = run(name, "model.params.learning_rate=5e-2")
    held = {key.split(".")[1] for key in state(made)["state_dict"]}
    both = {"text_encoder", "text_encoder_2"}
    assert held == {"custom-diffusion": {"unet"}, "textual-inversion": both}.get(name, {"unet"} | both)
    with_token = "textual-inversion" in TUNINGS[name][0]
    ours = drawn(tmp_path / "run", "--ckpt", made)
    subject = "<my-subject>" if with_token else "sks"
    assert np.abs(ours - plain).max() > 5
    if option := PARTS.get(name):  # its small folder on the base is the same model
        assert not (ours - drawn(tmp_path / "part", "--ckpt", xl, option, made / "model")).any()
    whole = tmp_path / "whole"
    assert export.main(["--ckpt", str(made), "--out", str(whole), "--dtype", "fp32"]) == 0
    assert np.abs(ours - drawn_by(StableDiffusionXLPipeline.from_pretrained(whole), subject)).max() <= 1
    if with_token:
        assert np.abs(ours - drawn_by(with_files(xl, made / "model"), subject)).max() <= 1


def with_files(xl, folder):
    """diffusers' pipeline of the base with the tokens and the LoRA that a run has exported."""
    pipe = StableDiffusionXLPipeline.from_pretrained(xl)
    tokens = load_file(folder / EMBEDDINGS_FILE)
    for key, text_encoder, tokenizer in (
        ("clip_l", pipe.text_encoder, pipe.tokenizer),
        ("clip_g", pipe.text_encoder_2, pipe.tokenizer_2),
    ):
        pipe.load_textual_inversion(
            tokens[key], token="<my-subject>", text_encoder=text_encoder, tokenizer=tokenizer
        )
    if (folder / LORA_FILE).is_file():
        pipe.load_lora_weights(str(folder), weight_name=LORA_FILE)
    return pipe


@pytest.mark.parametrize("name", [pytest.param("lora", marks=pytest.mark.slow), "pivotal"])
def test_a_run_that_is_stopped_goes_on_to_the_same_end(run, name, tmp_path, monkeypatch):
    whole = run(name, "lightning.logger=null", "lightning.trainer.max_steps=4")
    at_call(monkeypatch, DreamBooth, "training_step", {3}, send(signal.SIGTERM))
    cut = run(name, "lightning.logger=null", "lightning.trainer.max_steps=4", expect=75, out=tmp_path / "cut")
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_two_processes_walk_the_same_curve(xl, tiny_config, name, tmp_path):
    words = [
        "-b",
        RECIPE,
        str(tiny_config),
        *TUNED[name],
        f"model.params.base={xl}",
        *QUICK,
        "lightning.trainer.max_steps=4",
    ]
    assert main([*words, "-l", str(tmp_path / "one")]) == 0
    command = [sys.executable, "main.py", *words, "-l", str(tmp_path / "two"), "data.params.batch_size=1"]
    command.append("lightning.trainer.devices=2")
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one,), (two,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    assert_same_curve(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("name", TUNED)
def test_three_kills(xl, tiny_config, name, tmp_path):
    words = (
        str(tiny_config),
        *TUNED[name],
        f"model.params.base={xl}",
        "lightning.logger=null",
        "lightning.callbacks.loss_record.params.flush_every_steps=1",
        "lightning.callbacks.checkpoint.params={every_steps: 3, keep: 2}",
    )
    whole = Harness(tmp_path / "whole", words).finish()
    harness = Harness(tmp_path / "killed", words)
    phases = ("prior", "training", "export")
    assert [harness.strike(random.Random(0), phase, signal.SIGKILL) for phase in phases] == [-9, -9, -9]
    assert_same_run(harness.finish(), whole)
