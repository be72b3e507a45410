"""Memory of recipes at full size, counted on tensors without data, for docs/performance.md."""

import json

import pytest

from ldm.config import load_config
from ldm.training.speed.on_paper import memory_on_paper
from scripts import benchmark_speed
from tests.conftest import PROJECT, RECIPE
from tests.small_sd import CONFIGS

RECIPES = {
    "xl.yaml": [],
    "xl.yaml, bf16-weights.yaml": [PROJECT / "configs" / "bf16-weights.yaml"],
    "xl-lora.yaml": [CONFIGS / "xl-lora.yaml"],
}
NUMBERS = 2_567_463_684 + 123_060_480 + 694_659_840
"""In the UNet and both text encoders."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_memory_at_1024_px(name, record_property):
    config = load_config([RECIPE, CONFIGS / "xl.yaml", *RECIPES[name]])
    peaks = memory_on_paper(config, CONFIGS / "xl")
    print(name, {key: f"{value / 1e9:.1f} GB" for key, value in peaks.items()})
    itemsize = 4 if name == "xl.yaml" else 2
    trained = 5_806_080 if "lora" in name else 2_567_463_684
    assert peaks["weights"] == pytest.approx(itemsize * NUMBERS + 4 * 83_653_863, rel=0.01)
    assert peaks["the optimizer's state"] == trained * (8 if "lora" in name else 2)
    gradients = 4 * trained if "lora" in name else itemsize * trained
    assert peaks["a training step"] > peaks["weights"] + gradients + peaks["the optimizer's state"]
    assert (peaks["a training step"] < 24e9) == (name != "xl.yaml")


@pytest.mark.parametrize(("overlays", "most"), [((), 8e9), (("lora-low-memory",), 6e9)])
def test_memory_of_a_lora_of_stable_diffusion_1(overlays, most):
    own = [CONFIGS / f"{name}.yaml" for name in ("lora", *overlays)]
    config = load_config([RECIPE, CONFIGS / "v1.yaml", PROJECT / "configs" / "lora.yaml", *own])
    peaks = memory_on_paper(config, CONFIGS / "v1")
    print(overlays, {key: f"{value / 1e9:.2f} GB" for key, value in peaks.items()})
    assert peaks["weights"] < min(peaks["a photograph through the VAE"], peaks["a training step"])
    assert max(peaks["a photograph through the VAE"], peaks["a training step"]) < most


def test_the_speed_benchmark_counts_the_memory_of_xl(tmp_path, capsys):
    out = tmp_path / "rows.json"
    words = ["--model", "sd-xl", "--quick", "--out", str(out)]
    assert benchmark_speed.main(words) == 2
    assert "add --only memory" in capsys.readouterr().err
    assert benchmark_speed.main([*words, "--only", "memory"]) == 0
    (row,) = json.loads(out.read_text())["rows"]  # the first of its group is enough to see that it runs
    assert row["variant"] == "xl.yaml"
    assert row["peak_bytes"] > 24e9
