"""`model.params.ema`: an average of the trained weights that is evaluated instead of them, with any tuning."""

import shutil
import signal

import pytest
import torch

from ldm.methods.dreambooth import DreamBooth
from ldm.methods.load import load_for_sampling
from ldm.training.validation import Validation
from main import main
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_equal, assert_same_run, at_call, resume, send, state

LORA = str(PROJECT / "configs" / "lora.yaml")
EMA = "model.params.ema=0.6"


@pytest.fixture
def run_with(tiny_config, tmp_path):
    """`run_with("key.sub=value", ..., name="a", overlays=[...])` trains the tiny recipe for 10 steps."""

    def run(*words, name="run", expect=0, overlays=()):
        logs = tmp_path / name
        base = ["-b", RECIPE, str(tiny_config), *overlays]
        assert main([*base, "-l", str(logs), *QUICK, "model.params.learning_rate=1e-3", *words]) == expect
        return next(logs.iterdir())

    return run


def by_hand(iterates: list[dict], decay: float) -> dict:
    """Kept share: the decay, or (1 + t) / (10 + t) where that is less; nothing of the start."""
    average = iterates[0]
    for t, weights in enumerate(iterates[1:], start=1):
        keep = min(decay, (1 + t) / (10 + t))
        average = {key: keep * average[key] + (1 - keep) * value for key, value in weights.items()}
    return average


def weights_of(module: DreamBooth) -> dict:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("overlays", [(), (LORA,)], ids=["all weights", "LoRA"])
def test_the_average_is_what_is_validated_saved_sampled_and_exported(run_with, monkeypatch, overlays):
    iterates, seen = [], {}
    monkeypatch.setattr(
        DreamBooth, "on_train_batch_end", lambda self, *_: iterates.append(weights_of(self)), raising=False
    )
    measured = Validation.validate

    def validate(self, trainer, module):
        compute = module.denoising_error
        module.denoising_error = lambda batch: (
            seen.update({module.global_step: weights_of(module)}) or compute(batch)
        )
        try:
            return measured(self, trainer, module)
        finally:
            del module.denoising_error

    monkeypatch.setattr(Validation, "validate", validate)
    run = run_with(EMA, "lightning.callbacks.checkpoint.params.milestone_every_steps=5", overlays=overlays)
    assert len(iterates) == 10
    found = state(run)
    for steps, content in (
        (10, found["state_dict"]),
        (5, state(run, "weights-000005.ckpt")["state_dict"]),
        (5, seen[5]),
    ):
        expected = by_hand(iterates[:steps], 0.6)
        assert content.keys() == expected.keys()
        assert all(torch.allclose(content[key], expected[key], atol=1e-6) for key in expected)
        assert any(not torch.allclose(content[key], iterates[steps - 1][key], atol=1e-6) for key in expected)
    assert_equal(found["training_state_dict"], iterates[-1], "trained")
    checkpoint = load_for_sampling(run).model.state_dict()
    sampled = {f"model.{key}": value for key, value in checkpoint.items()}
    for key in found["state_dict"].keys() & sampled.keys():
        assert torch.equal(sampled[key], found["state_dict"][key])
    if not overlays:  # a LoRA's export is no whole model
        exported = load_for_sampling(run / "model").model.state_dict()
        assert all(torch.equal(exported[key], checkpoint[key]) for key in exported)


def test_training_does_not_notice_its_average(run_with):
    with_average, without = run_with(EMA, name="with"), run_with(name="without")
    assert (with_average / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()
    assert_equal(state(with_average)["training_state_dict"], state(without)["state_dict"], "trained")
    assert "weight_average" not in state(without)


@pytest.mark.parametrize("words", [(), ("model.params.weights_precision=bf16",)], ids=["fp32", "bf16"])
def test_a_resume_is_exact(run_with, monkeypatch, words):
    whole = run_with(EMA, *words, name="whole")
    at_call(monkeypatch, DreamBooth, "training_step", {7}, send(signal.SIGTERM))
    cut = run_with(EMA, *words, name="cut", expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)
    assert_equal(state(cut)["weight_average"], state(whole)["weight_average"], "average")
    assert all(value.dtype == torch.float32 for value in state(cut)["weight_average"]["shadow_params"])


def test_its_memory_is_told(capsys, monkeypatch):
    monkeypatch.chdir(PROJECT)
    told = []
    for words in (["model.params.ema=null"], []):
        assert main(["-b", RECIPE, "-t", "false", *words]) == 0
        told.append(next(line for line in capsys.readouterr().out.splitlines() if "memory" in line))
    assert told[0] != told[1]


def test_one_average_is_enough(capsys):
    schedule_free = str(PROJECT / "configs" / "schedule-free.yaml")
    assert main(["-b", RECIPE, schedule_free, "-t", "false", EMA]) == 2
    assert "so does the optimizer" in capsys.readouterr().err


def test_a_finished_run_whose_export_was_lost_exports_the_average_again(run_with):
    run = run_with(EMA)
    weights = load_for_sampling(run / "model").model.unet.state_dict()
    shutil.rmtree(run / "model")
    assert resume(run) == 0
    assert_equal(load_for_sampling(run / "model").model.unet.state_dict(), weights, "export")
    assert "weight_average" in state(run)
    assert "weight_average" not in state(run, "best.ckpt")  # whose weights are the average
