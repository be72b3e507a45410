"""Losses and gradients that are not finite: the update is skipped, and everything else continues."""

import os
import subprocess
import sys

import pytest
import torch

from ldm.methods.dreambooth import DreamBooth
from ldm.training.checkpoint import Checkpointing
from ldm.training.nonfinite import SkipNonFinite
from ldm.training.rows import read_rows
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_equal, resume, state

NAN, INF = float("nan"), float("inf")
NOT_FUSED = "model.params.optimizer.params.fused=false"
SCHEDULE_FREE = "model.params.optimizer.target=schedulefree.AdamWScheduleFree"


def spoil(monkeypatch, steps, factor=NAN, where="loss") -> None:
    """Make the loss, or one gradient, of the given steps (from 1) not finite."""
    original = DreamBooth.training_step

    def step(self, batch, batch_idx):
        out = original(self, batch, batch_idx)
        if self.global_step + 1 not in steps:
            return out
        if where == "loss":
            return {**out, "loss": out["loss"] * factor}
        if where == "added":
            return {**out, "loss": out["loss"] + factor}  # its gradients are finite
        parameter = next(p for p in self.parameters() if p.requires_grad)
        parameter.register_post_accumulate_grad_hook(lambda p: one_bad(self, p))
        return out

    def one_bad(module, parameter):
        if module.global_step + 1 in steps:
            parameter.grad.view(-1)[0] = factor

    monkeypatch.setattr(DreamBooth, "training_step", step)


def weights_by_step(monkeypatch) -> dict[int, dict]:
    """Filled while training: the weights and optimizer state after every step."""
    seen = {}
    original = Checkpointing.on_step

    def on_step(self, trainer, module):
        optimizer = trainer.optimizers[0].state_dict()["state"]
        copy = {n: {k: v.clone() for k, v in s.items()} for n, s in optimizer.items()}
        weights = {key: value.clone() for key, value in module.state_dict().items()}
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in trainer.optimizers[0].param_groups
        ]
        seen[trainer.global_step] = {"weights": weights, "state": copy, "groups": groups}
        original(self, trainer, module)

    monkeypatch.setattr(Checkpointing, "on_step", on_step)
    return seen


@pytest.mark.parametrize(
    ("words", "factor", "where"),
    [
        ((), NAN, "loss"),
        ((), INF, "gradient"),
        ((), NAN, "added"),
        ((NOT_FUSED,), NAN, "loss"),
        ((NOT_FUSED,), -INF, "gradient"),
        ((SCHEDULE_FREE, "model.params.optimizer.params={}"), NAN, "loss"),
        (("lightning.trainer.gradient_clip_val=null",), -INF, "gradient"),
        (("lightning.trainer.precision=bf16-mixed",), NAN, "loss"),
        (("lightning.trainer.precision=16-mixed",), INF, "loss"),
        (("lightning.trainer.precision=16-mixed",), NAN, "added"),
        (("lightning.trainer.accumulate_grad_batches=2", "data.params.batch_size=1"), NAN, "loss"),
    ],
)
def test_the_update_is_skipped_and_nothing_else(train, monkeypatch, capsys, words, factor, where):
    spoil(monkeypatch, {4, 7}, factor, where)
    seen = weights_by_step(monkeypatch)
    run = train(*QUICK, "lightning.callbacks.validation=null", "model.params.lr_schedule=linear", *words)
    for step in (4, 7):
        assert_equal(seen[step], seen[step - 1], f"step {step}")
    for step in (2, 3, 5, 6, 8, 9, 10):
        assert not torch.equal(*(weights_of(seen[s]) for s in (step, step - 1)))
    last = state(run)
    assert last["callbacks"]["SkipNonFinite"]["counts"].tolist() == [2, 0]
    assert last["global_step"] == last["lr_schedulers"][0]["last_epoch"] == 10
    assert [row["step"] for row in read_rows(run / "metrics.jsonl")] == list(range(1, 11))
    assert "updates skipped: " in capsys.readouterr().err


def weights_of(seen) -> torch.Tensor:
    return torch.cat([value.flatten() for value in seen["weights"].values()])


def test_after_so_many_in_a_row_the_run_stops(train, monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, range(6, 99))
    train(*QUICK, "lightning.callbacks.non_finite.params.stop_after=3", expect=2)
    told = capsys.readouterr().err
    assert "error: step 8: loss or gradient not finite for 3 steps in a row, so the run stops" in told
    run = next((tmp_path / "logs" / "run").iterdir())
    assert state(run)["global_step"] == 5
    assert resume(run) == 2  # at the same step again
    assert "step 8" in capsys.readouterr().err


def test_the_count_in_a_row_outlives_a_resume(train, monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, range(4, 99))
    train(*QUICK, "lightning.callbacks.non_finite.params.stop_after=6", expect=2)
    assert "error: step 9" in capsys.readouterr().err
    run = next((tmp_path / "logs" / "run").iterdir())
    assert state(run)["global_step"] == 5  # two of the six lie before it
    assert resume(run) == 2
    assert "error: step 9" in capsys.readouterr().err


def test_a_resumed_run_skips_the_same(train, monkeypatch):
    spoil(monkeypatch, {3, 8})
    whole = train(*QUICK, name="whole")
    stop_at_6 = "lightning.trainer.max_steps=6"
    run = train(*QUICK, "lightning.callbacks.validation.params.at_end=false", stop_at_6)
    assert (
        resume(run, "lightning.trainer.max_steps=10", "lightning.callbacks.validation.params.at_end=true")
        == 0
    )
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert_equal(state(run)["state_dict"], state(whole)["state_dict"], "weights")


def test_the_guard_leaves_a_sound_run_as_it_is(train):
    with_guard = train(*QUICK, name="with")
    without = train(*QUICK, "lightning.callbacks.non_finite=null", name="without")
    assert (with_guard / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()
    assert_equal(state(with_guard)["state_dict"], state(without)["state_dict"], "weights")


def test_weights_that_are_not_finite_are_never_saved(train, monkeypatch, tmp_path, capsys):
    """Whatever the cause; here, one that the guard cannot see."""
    original = SkipNonFinite.on_step

    def on_step(self, trainer, module):
        original(self, trainer, module)
        if trainer.global_step == 8:
            with torch.no_grad():
                next(p for p in module.parameters() if p.requires_grad).view(-1)[0] = NAN

    monkeypatch.setattr(SkipNonFinite, "on_step", on_step)
    train(*QUICK, expect=2)
    assert "weights or optimizer state are not finite, so it is not saved" in capsys.readouterr().err
    run = next((tmp_path / "logs" / "run").iterdir())
    assert state(run)["global_step"] == state(run, "best.ckpt")["global_step"] == 5
    assert not (run / "model").exists()


def test_two_processes_skip_together(tiny_config, tmp_path):
    """A bad value on one process skips the step on both: DDP checks nothing, so weights could diverge."""
    command = [
        sys.executable,
        "tests/bad_share.py",
        "-b",
        RECIPE,
        str(tiny_config),
        "-l",
        str(tmp_path),
        *QUICK,
    ]
    command += ["lightning.trainer.devices=2", "data.params.batch_size=1", "lightning.trainer.max_steps=5"]
    env = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("updates skipped: 1 new, 1 in all") == 1
    run = next(tmp_path.iterdir())
    assert state(run)["callbacks"]["SkipNonFinite"]["counts"].tolist() == [1, 0]
    losses = {row["step"]: row["loss"] for row in read_rows(run / "metrics.jsonl")}
    assert [step for step, loss in losses.items() if loss != loss] == [3]


def test_a_run_that_skipped_every_update_learned_nothing_and_says_so(train, monkeypatch, capsys):
    spoil(monkeypatch, range(1, 11))
    run = train(*QUICK, "lightning.callbacks.validation=null", expect=2)
    assert "all 10 updates were skipped" in capsys.readouterr().err
    assert not (run / "model").exists()


def test_fp16_without_a_gpu_is_fp16_and_a_run_that_was_bf16_is_not_gone_on_with_as_fp16(train, capsys):
    """Lightning would train in bf16 without a scaler, and the checkpoint would say fp16."""
    words = ("lightning.trainer.precision=16-mixed", "lightning.trainer.accelerator=auto")
    run = train(*QUICK, *words, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=2")
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert content["MixedPrecision"]["scale"] > 0
    del content["MixedPrecision"]  # what an earlier version left behind
    torch.save(content, path)
    assert resume(run, "lightning.trainer.max_steps=4") == 2
    assert "precision" in capsys.readouterr().err
