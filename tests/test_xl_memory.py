"""Memory of SDXL's recipes at full size and 1024 px, counted on tensors without data, for docs/performance.md."""

import pytest

from ldm.config import load_config
from ldm.training.speed.on_paper import memory_on_paper
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
