"""Optimizers from other packages: schedule-free ones, which train and evaluate different weights, and Prodigy."""

import re
import signal
import sys
from functools import partial

import bitsandbytes
import prodigyopt
import pytest
import schedulefree
import torch

from ldm.methods.dreambooth import DreamBooth
from ldm.methods.load import load_for_sampling
from ldm.training.estimate import state_bytes
from ldm.training.rows import read_rows
from ldm.training.validation import Validation
from main import main
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state

SCHEDULE_FREE = str(PROJECT / "configs" / "schedule-free.yaml")
PRODIGY = str(PROJECT / "configs" / "prodigy.yaml")


@pytest.fixture
def run_with(tiny_config, tmp_path):
    """`run_with(overlay, "key.sub=value", ..., name="a")` trains the tiny recipe under an overlay."""

    def run(overlay, *words, name="run", expect=0):
        logs = tmp_path / name
        assert main(["-b", RECIPE, str(tiny_config), overlay, "-l", str(logs), *QUICK, *words]) == expect
        return next(logs.iterdir())

    return run


@pytest.mark.parametrize("overlay", [SCHEDULE_FREE, PRODIGY])
def test_a_run_that_is_cut_off_goes_on_bit_for_bit(run_with, monkeypatch, overlay):
    whole = run_with(overlay, name="whole")
    at_call(monkeypatch, DreamBooth, "training_step", {7}, send(signal.SIGTERM))
    cut = run_with(overlay, name="cut", expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)
    losses = [row["loss"] for row in read_rows(whole / "metrics.jsonl")]
    assert len(set(losses)) == len(losses)
    # An accepted change of a setting does not reset the optimizer's state.
    group = state(whole)["optimizer_states"][0]["param_groups"][0]
    assert group["d"] > group["d0"] if overlay == PRODIGY else group["weight_sum"] > 0
    words = ["lightning.trainer.max_steps=11", "model.params.optimizer.params.weight_decay=0.1"]
    assert main(["--resume", str(cut), *words, "--accept-changes"]) == 0
    changed = state(cut)["optimizer_states"][0]["param_groups"][0]
    assert changed["weight_decay"] == 0.1
    key = "d" if overlay == PRODIGY else "weight_sum"
    assert changed[key] >= group[key]


def test_schedule_free_weights_are_averages_wherever_they_are_looked_at(run_with, monkeypatch):
    """x_t is the running mean of z_1 to z_t (Defazio et al., arXiv 2405.15682, eq. 3 to 5), at a constant rate."""
    seen, iterates, key = {}, [], "unet.conv_in.weight"
    monkeypatch.setattr(
        Validation,
        "validate",
        _looking(Validation.validate, lambda module: seen.update({module.global_step: _weight(module, key)})),
    )

    def remember(self, *_):
        optimizer = self.trainer.optimizers[0]
        parameter = self.model.get_parameter(key)
        iterates.append((optimizer.state[parameter]["z"].clone(), parameter.detach().clone()))
        assert all(group["train_mode"] for group in optimizer.param_groups)

    monkeypatch.setattr(DreamBooth, "on_train_batch_end", remember, raising=False)
    words = ["lightning.callbacks.checkpoint.params.milestone_every_steps=5"]
    run = run_with(SCHEDULE_FREE, *words, "model.params.learning_rate=1e-3")

    def mean(steps):
        return torch.stack([z for z, _ in iterates[:steps]]).mean(dim=0)

    assert len(iterates) == 10
    full, weights_only = state(run), state(run, "weights-000005.ckpt")
    for found in (full["state_dict"][f"model.{key}"], load_for_sampling(run).model.state_dict()[key]):
        assert torch.allclose(found, mean(10), atol=1e-6)
    exported = load_for_sampling(run / "model").model.state_dict()[key]
    assert torch.equal(exported, full["state_dict"][f"model.{key}"])
    assert torch.allclose(weights_only["state_dict"][f"model.{key}"], mean(5), atol=1e-6)
    assert torch.allclose(seen[5], mean(5), atol=1e-6)
    trained = full["training_state_dict"][f"model.{key}"]
    assert torch.equal(trained, iterates[-1][1])
    assert not torch.allclose(trained, mean(10), atol=1e-6)
    assert "training_state_dict" not in weights_only


@pytest.mark.parametrize(
    ("optimizer", "count"),
    [
        (torch.optim.AdamW, 8),
        (schedulefree.AdamWScheduleFree, 8),
        (prodigyopt.Prodigy, 16),
        (bitsandbytes.optim.AdamW8bit, 2),
        (torch.optim.Adafactor, 2 * 4 / 256),  # a row and a column of a weight
    ],
)
def test_an_optimizers_state_is_counted_before_a_run(optimizer, count):
    """Two moments; with Prodigy the starting weights and a sum beside them; in 8 bits a scale for each block."""
    assert state_bytes(partial(optimizer, weight_decay=0.01), torch.float32) == pytest.approx(count, rel=0.1)


@pytest.mark.parametrize("overlay", [SCHEDULE_FREE, PRODIGY])
def test_the_size_of_a_full_checkpoint_is_told_before(run_with, tiny_config, capsys, overlay):
    words = [
        "lightning.trainer.max_steps=1",
        "model.params.ema=" + ("null" if overlay == SCHEDULE_FREE else "0.9"),
    ]
    assert main(["-b", RECIPE, str(tiny_config), overlay, *words, "-t", "false"]) == 0
    told = re.search(r"disk: ([\d.]+) MB a full checkpoint", capsys.readouterr().out)
    size = (run_with(overlay, *words) / "checkpoints" / "last.ckpt").stat().st_size
    assert -0.5 <= size / 1e6 - float(told.group(1)) < 1  # names and padding of small tensors


def _weight(module, key):
    return module.model.get_parameter(key).detach().clone()


def _looking(validate, look):
    """`validate` that looks at the weights in the middle, where the loss is computed."""

    def looked(self, trainer, module):
        compute = module.denoising_error
        module.denoising_error = lambda batch: look(module) or compute(batch)
        try:
            return validate(self, trainer, module)
        finally:
            del module.denoising_error

    return looked


def test_looking_leaves_no_trace_in_the_loss_curve(run_with):
    often = ["lightning.callbacks.checkpoint.params.every_steps=1"]
    often += ["lightning.callbacks.validation.params.every_steps=1"]
    watched = run_with(SCHEDULE_FREE, *often, name="watched")
    alone = run_with(SCHEDULE_FREE, "lightning.callbacks.validation=null", name="alone")
    assert (watched / "metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("overlay", "package"), [(SCHEDULE_FREE, "schedulefree"), (PRODIGY, "prodigyopt")])
def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch, capsys, overlay, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["-b", RECIPE, overlay, "-t", "false"]) == 2
    assert f"pip install {package}" in capsys.readouterr().err
