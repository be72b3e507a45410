"""Pictures of txt2img.py, as arrays to compare."""

from pathlib import Path

import numpy as np
from PIL import Image

from scripts import txt2img


def drawn(out: Path, model: Path | str, *words: object, prompt: str = "a photo of sks dog") -> np.ndarray:
    """The picture [H, W, 3] that txt2img.py draws of `model` in 4 steps at diffusers' timesteps."""
    common = ["--prompt", prompt, "--steps", 4, "--n_samples", 1, "--skip_grid", "--spacing", "base"]
    assert txt2img.main([str(word) for word in (*common, "--outdir", out, "--ckpt", model, *words)]) == 0
    return np.asarray(Image.open(next((out / "samples").iterdir()))).astype(int)
