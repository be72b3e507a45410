"""scripts/benchmark_speed.py runs and counts correctly. Speeds are not tested, since machines differ."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.config import load_config
from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.training.speed import rounds
from ldm.training.speed.jobs import CONFIGS, GROUPS, Plan, jobs_of
from ldm.training.speed.measures import MEASURES
from ldm.training.speed.summary import summarize
from scripts import benchmark_speed
from tests.conftest import PROJECT


def benchmark(out: Path, *groups: str) -> dict:
    """Rows by group and variant of the quick benchmark of `groups`."""
    arguments = ["--quick", "--size", "32", "--only", *groups, "--out", str(out)]
    command = [sys.executable, "scripts/benchmark_speed.py", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {(row["group"], row["variant"]): row for row in json.loads(out.read_text())["rows"]}
    for group, variant in rows:
        assert f"| {group} | {variant} |" in done.stdout
    return rows


def test_sampling_is_measured_against_a_pipeline_that_draws_the_same(tmp_path):
    rows = benchmark(tmp_path / "benchmark.json", "txt2img")
    assert rows["txt2img", "this project"]["largest_difference"] <= 1


@pytest.mark.slow
def test_shortcuts_save_arithmetic_and_stay_near(tmp_path):
    rows = benchmark(tmp_path / "benchmark.json", "shortcuts")
    twice, far = (rows["shortcuts", name] for name in ("deep features in one pass of 2", "other seeds"))
    assert 0 < twice["mean_difference"] < far["mean_difference"]
    assert twice["flops"] < rows["shortcuts", "every pass whole"]["flops"] == far["flops"]


@pytest.mark.slow
def test_every_group_is_measured(tmp_path):
    rows = benchmark(tmp_path / "benchmark.json", "machine", "step", "whole", "memory", "prior", "checkpoint")
    script, plain, ours = (
        rows["step", name] for name in ("as diffusers' script", "plain loop", "this project")
    )
    assert 0.8 * plain["flops"] < ours["flops"] < plain["flops"]  # what it saves is the encoding
    assert ours["times_as_fast"] == pytest.approx(script["seconds"] / ours["seconds"])
    assert rows["whole", "this project"]["times_as_fast"] > 0.1
    base = load_base(PROJECT / "assets" / "base")
    parameters = sum(
        p.numel() for network in (base.unet, *base.text_encoders.values()) for p in network.parameters()
    )
    kept = 12 * parameters  # bytes: fp32 weights and AdamW's moments; gradients, activations come on top
    assert 1.2 * kept < rows["memory", "the recipe"]["peak_bytes"] < 2.5 * kept
    save, copy = rows["checkpoint", "save"], rows["machine", "copy (read + write)"]
    assert save["share_of_copy"] == pytest.approx(save["bytes_per_second"] / copy["bytes_per_second"])
    assert 0 < save["share_of_copy"] < 1


@pytest.mark.parametrize("model", CONFIGS)
def test_every_group_has_jobs_that_name_a_measure_and_a_change_to_the_recipe(model):
    own = "lightning.trainer.max_steps=7"
    plan = Plan(model, "assets/base", None, repeats=2, gpu=True, quick=False, overrides=[own])
    for group in ["memory"] if model == "sd-xl" else GROUPS:  # of SDXL, only memory is measured
        jobs = list(jobs_of(group, plan))
        assert {job.group for job in jobs} == {group}
        assert len({job.variant for job in jobs}) == len(jobs)
        for job in jobs:
            assert job.measure in MEASURES
            config = load_config([str(PROJECT / path) for path in job.configs], job.overrides)
            assert config["lightning"]["trainer"]["max_steps"] == 7


def test_a_ratio_is_taken_within_rounds():
    """A machine that slows down between rounds slows both variants in a round."""

    def row(seconds, images=4):
        return {"seconds": seconds, "images": images, "flops": 8, "peak_bytes": int(seconds)}

    rows = {
        ("step", "plain loop"): [row(2.0), row(20.0), row(200.0)],
        ("step", "this"): [row(1.0), row(5.0), row(100.0)],
    }
    plain, ours = summarize(rows)
    assert plain["times_as_fast"] == 1
    assert ours["times_as_fast"] == 2  # of 2, 4 and 2
    assert (ours["seconds"], ours["least"], ours["most"], ours["peak_bytes"]) == (5.0, 1.0, 100.0, 100)
    assert ours["images_per_second"] == pytest.approx(0.8)


def test_what_is_measured_is_written_before_another_variant_fails(tmp_path, monkeypatch):
    def measured(jobs):
        if jobs[0].measure == "whole_run":
            raise UserError("it failed")
        return [{"group": jobs[0].group, "variant": jobs[0].variant, "seconds": 2.0}]

    monkeypatch.setattr(rounds, "measured", measured)
    out = tmp_path / "benchmark.json"
    assert benchmark_speed.main(["--only", "whole", "--rounds", "1", "--out", str(out)]) == 2
    assert [row["variant"] for row in json.loads(out.read_text())["rows"]] == ["as diffusers' script"]


def test_a_measurement_that_fails_is_one_line(tmp_path):
    arguments = ["scripts/benchmark_speed.py", "--quick", "--only", "step", "--size", "50"]
    done = subprocess.run([sys.executable, *arguments], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.rstrip()
        .splitlines()[-1]
        .startswith("error: measuring step as diffusers' script, step plain loop")
    )
