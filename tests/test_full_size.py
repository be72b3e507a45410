"""Stable Diffusion 1.x at full size through the whole path: train, save, resume, export, sample.

Random weights at 64 px on the CPU: 19 GB of memory, 35 GB of disk and about ten minutes. Pictures mean nothing.
"""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from ldm.formats.random_base import write_random_base
from ldm.training.rows import read_rows
from tests.conftest import PROJECT, RECIPE

pytestmark = pytest.mark.slow

V1 = PROJECT / "configs" / "stable-diffusion" / "v1"
MEASURE = """
import resource, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, file=sys.stderr)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A base with the networks' own initial weights, fp16 on disk."""
    return write_random_base(V1, tmp_path_factory.mktemp("full") / "base")


def run(*words):
    """A script in its own process; its peak memory, GB."""
    command = [sys.executable, "-c", MEASURE, *map(str, words)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    peak = float(done.stderr.rsplit("peak", 1)[1])
    print(f"{words[0]}: peak {peak:.1f} GB")
    return peak


def test_a_full_size_model_goes_all_the_way(base, tmp_path):
    words = [
        f"model.params.base={base}", "data.params.size=64", "data.params.prior.count=2",
        "data.params.prior.chunk_size=2", "data.params.prior.steps=2", "data.params.prior.precision=bf16",
        "lightning.trainer.accelerator=cpu", "lightning.trainer.max_steps=1", "lightning.callbacks.samples=null",
        "lightning.callbacks.validation.params.drift_samples=2", "lightning.callbacks.validation.params.monitor=null",
        "lightning.callbacks.loss_record.params.flush_every_steps=1",
    ]  # fmt: skip
    v1 = PROJECT / "configs" / "stable-diffusion" / "v1.yaml"
    peak = run("main.py", "--base", RECIPE, v1, "-l", tmp_path / "logs", *words)
    assert peak < 21  # fp32 weights, gradients and AdamW's state: 16.1 GB; the frozen copy in bf16: 2 GB
    (folder,) = (tmp_path / "logs").iterdir()
    assert (folder / "checkpoints" / "last.ckpt").stat().st_size > 11.5e9

    run("main.py", "--resume", folder, "lightning.trainer.max_steps=2")
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    with safe_open(folder / "model" / "unet" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert file.get_tensor("conv_in.weight").dtype == torch.float16

    run("scripts/export.py", "--ckpt", folder, "--out", tmp_path / "model.safetensors", "--dtype", "fp16")
    assert 2.0e9 < (tmp_path / "model.safetensors").stat().st_size < 2.3e9
    sampled = [
        "--prompt",
        "a [V] dog",
        "--steps",
        2,
        "--H",
        64,
        "--W",
        64,
        "--n_samples",
        1,
        "--outdir",
        tmp_path,
    ]
    run("scripts/txt2img.py", "--ckpt", folder, *sampled)
    assert (tmp_path / "samples" / "00000.png").is_file()
