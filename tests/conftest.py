"""Fixtures that most tests share: a tiny base, and an overlay that makes the recipe tiny."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes started by tests
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="cache-of-tests-")  # not the user's cache

import pytest
import torch
import yaml

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from tests.tiny import SIDE, tiny_base  # noqa: E402

torch.set_num_threads(1)  # tiny networks lose time to more

RECIPE = str(PROJECT / "configs" / "dreambooth.yaml")


def pytest_configure(config):
    """Hide GPUs from all tests but those that `-m gpu` asks for: exact comparisons are between CPU results."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure(config):
    shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A base model of a few thousand random weights, in diffusers' layout."""
    return tiny_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def xl(tmp_path_factory) -> Path:
    """A base of SDXL's parts, as small as `tiny`."""
    from tests.tiny_xl import tiny_xl

    return tiny_xl(tmp_path_factory.mktemp("base") / "xl")


@pytest.fixture(scope="session")
def tiny_config(tiny, tmp_path_factory) -> Path:
    """An overlay on the recipe: the tiny base, 8 prior samples, 10 steps on the CPU."""
    overlay = {
        "model": {"params": {"base": str(tiny), "ema": None}},
        "data": {
            "params": {
                "size": SIDE,
                "batch_size": 2,
                "prior": {"count": 8, "chunk_size": 4, "steps": 3, "cache": None},
            }
        },
        "lightning": {
            "trainer": {"max_steps": 10, "accelerator": "cpu"},
            "callbacks": {
                "validation": {"params": {"every_steps": 5, "drift_samples": 4}},
                "samples": {"params": {"every_steps": 5, "steps": 3, "per_prompt": 2}},
                "checkpoint": {"params": {"every_steps": 5}},
            },
        },
    }
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


@pytest.fixture
def train(tiny_config, tmp_path, monkeypatch):
    """`train("key.sub=value", ..., name="a")` runs main in this process; returns the run folder."""
    from main import main

    monkeypatch.chdir(PROJECT)

    def run(*words: str, name: str = "run", expect: int = 0) -> Path:
        logs = tmp_path / "logs" / name
        code = main(["--base", RECIPE, str(tiny_config), "-l", str(logs), "-n", name, *words])
        assert code == expect
        return next(logs.iterdir())

    return run


@pytest.fixture(autouse=True)
def no_bar_left():
    """A run closes its bar however it ends: bars of later runs in this process would stay hidden."""
    yield
    console = sys.modules.get("ldm.console")
    assert console is None or console._Run.bar is None
