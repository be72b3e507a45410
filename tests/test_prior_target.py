"""The prior's target: the samples' noise (eq. 2), or the untrained model's predictions."""

import signal
import subprocess
import sys

import pytest
import torch

from ldm.config import load_config
from ldm.data.batch import collate
from ldm.data.datamodule import TrainingSamples
from ldm.methods.dreambooth import DreamBooth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.training.build import build
from ldm.training.rows import read_rows
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send

WORDS = (*QUICK, "model.params.prior_target=untrained", "model.params.learning_rate=2e-3")


def losses(run):
    return read_rows(run / "metrics.jsonl")


def test_the_prior_loss_begins_at_exactly_nothing_and_resumes_bit_for_bit(train, monkeypatch):
    whole = train(*WORDS, name="whole")
    assert losses(whole)[0]["prior_loss"] == 0
    assert all(row["prior_loss"] > 0 for row in losses(whole)[1:])
    noise = train(*WORDS, "model.params.prior_target=noise", "lightning.trainer.max_steps=1", name="noise")
    assert losses(noise)[0]["prior_loss"] > 0
    assert losses(noise)[0]["subject_loss"] == losses(whole)[0]["subject_loss"]
    at_call(monkeypatch, DreamBooth, "training_step", {6}, send(signal.SIGTERM))
    cut = train(*WORDS, expect=75, name="cut")
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


def test_the_prior_loss_is_the_squared_distance_to_the_untrained_prediction(tiny, tiny_config, tmp_path):
    data, module, trainer = build(load_config([RECIPE, tiny_config], WORDS), tmp_path)
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    module.setup("fit")
    data.prepare_latents()
    batch = data.on_after_batch_transfer(collate([TrainingSamples(data)[n] for n in (0, 1)]), 0)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.model.unet.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draws)

    losses = module.training_step(batch, 0)

    prior = slice(2, 4)
    kept = module.model.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = (kept.sqrt() * batch.latents + (1 - kept).sqrt() * batch.noise)[prior]
    predictions = []
    for model in (module.model, LatentDiffusion.from_base(tiny)):
        ids = model.tokenizer(
            ["a photo of a dog"] * 2, padding="max_length", max_length=model.text_window, return_tensors="pt"
        )
        states = model.text_encoder(ids.input_ids).last_hidden_state
        predictions.append(model.unet(noisy, batch.timesteps[prior], encoder_hidden_states=states).sample)
    expected = (predictions[0] - predictions[1]).square().mean()
    assert losses["prior_loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert losses["loss"].item() == pytest.approx((losses["subject_loss"] + losses["prior_loss"]).item())
    losses["loss"].backward()
    assert module.model.unet.conv_in.weight.grad is not None


def assert_same_curve(run, other):
    assert len(losses(run)) == 6
    for row, another in zip(losses(run), losses(other), strict=True):
        assert row == pytest.approx(another, abs=1e-5)


SHORT = (*WORDS, "lightning.trainer.max_steps=6", "lightning.callbacks.validation=null")
ONE_BY_ONE = (*SHORT, "data.params.batch_size=1")


def test_accumulation_walks_the_same_curve(train):
    accumulated = train(*ONE_BY_ONE, "lightning.trainer.accumulate_grad_batches=2", name="accumulated")
    assert_same_curve(train(*SHORT, name="whole"), accumulated)


@pytest.mark.slow
def test_two_processes_walk_the_same_curve(train, tiny_config, tmp_path):
    logs = tmp_path / "two"
    command = [sys.executable, "main.py", "--base", RECIPE, str(tiny_config), "-l", str(logs)]
    command += [*ONE_BY_ONE, "lightning.trainer.devices=2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_curve(train(*SHORT, name="whole"), next(logs.iterdir()))
