"""Helpers for tests of interrupted runs: interrupt a run, resume it, compare it with an uninterrupted one."""

import os
import signal
from pathlib import Path

import torch

from main import main

QUICK = ("lightning.logger=null", "lightning.callbacks.samples=null")
"""Leaves out what takes time and is not under test."""


def resume(run: Path, *words: str) -> int:
    """`main.py --resume run` in this process; returns its exit code."""
    return main(["--resume", str(run), *words])


def state(run: Path, name: str = "last.ckpt") -> dict:
    """A checkpoint's content."""
    return torch.load(run / "checkpoints" / name, weights_only=True)


def assert_same_run(run: Path, whole: Path) -> None:
    """The loss record byte for byte, the weights and the optimizer's state bit for bit."""
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ours, others = state(run), state(whole)
    assert ours["global_step"] == others["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        assert_equal(ours[part], others[part], part)


def assert_equal(ours, others, where: str) -> None:
    if isinstance(ours, torch.Tensor):
        assert torch.equal(ours, others), where
    elif isinstance(ours, dict):
        assert ours.keys() == others.keys(), where
        for key in ours:
            assert_equal(ours[key], others[key], f"{where}.{key}")
    elif isinstance(ours, (list, tuple)):
        assert len(ours) == len(others), where
        for number, pair in enumerate(zip(ours, others, strict=True)):
            assert_equal(*pair, f"{where}.{number}")
    else:
        assert ours == others, where


def at_call(monkeypatch, owner, name: str, numbers, action) -> None:
    """Do `action()` just before the given calls (from 1) of `owner.name`, counted over all runs of the test."""
    original, count = getattr(owner, name), iter(range(1, 10**9))

    def wrapped(*args, **kwargs):
        if next(count) in numbers:
            action()
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapped)


def spoil_loss(monkeypatch, owner, step: int) -> None:
    """Make the loss of one step (from 1) of the module class `owner` NaN."""
    original = owner.training_step

    def training_step(self, batch, batch_idx):
        out = original(self, batch, batch_idx)
        factor = float("nan") if self.global_step + 1 == step else 1.0
        return {**out, "loss": out["loss"] * factor} if isinstance(out, dict) else out * factor

    monkeypatch.setattr(owner, "training_step", training_step)


def send(number: signal.Signals):
    """An action that signals this process."""
    return lambda: os.kill(os.getpid(), number)


def corrupt(path: Path) -> None:
    """Flip one byte in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
