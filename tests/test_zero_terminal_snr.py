"""A noise schedule that ends in noise alone: in training, in every sampler that can, and in exports."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from ldm.diffusion.sampling import Sampling
from ldm.diffusion.weighting import P2, Debiased, MinSnr
from ldm.errors import UserError
from ldm.methods.load import load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers import SAMPLERS
from main import main
from scripts import txt2img
from tests.conftest import RECIPE
from tests.runs import QUICK

V = {"prediction_type": "v_prediction"}
WORDS = ["model.params.prediction_type=v_prediction", "model.params.zero_terminal_snr=true"]


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    logs = tmp_path_factory.mktemp("zero")
    words = [*WORDS, *QUICK, "lightning.trainer.max_steps=3", "model.params.learning_rate=1e-2"]
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *words]) == 0
    return next(logs.iterdir())


def test_the_schedule_is_the_papers_algorithm_1(tiny):
    """sqrt(alphas_cumprod) is shifted to end in 0 and scaled so that its first value stays."""
    before = LatentDiffusion.from_base(tiny, **V)
    after = LatentDiffusion.from_base(tiny, **V, zero_terminal_snr=True)
    root = before.alphas_cumprod.double().sqrt()
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])).square()
    torch.testing.assert_close(after.alphas_cumprod.double(), expected, rtol=1e-4, atol=1e-7)
    last = torch.tensor([999])
    assert after.schedule.snr(last) == 0
    assert before.schedule.snr(last) > 0
    assert after.fingerprint != before.fingerprint  # its prior samples are others
    x, eps = torch.randn(2, 1, 4, 2, 2).unbind()
    assert torch.equal(after.schedule.add_noise(x, eps, last), eps)
    assert torch.equal(after.schedule.target(x, eps, last), -x)
    for weighting in (MinSnr(), Debiased(), P2()):
        assert weighting(after.schedule, torch.arange(1000)).isfinite().all()


def test_a_base_that_predicts_noise_is_refused(tiny):
    with pytest.raises(UserError, match="zero_terminal_snr needs a base that predicts the velocity"):
        LatentDiffusion.from_base(tiny, zero_terminal_snr=True)


def test_samplers_that_would_ignore_it_are_refused(tiny):
    model = LatentDiffusion.from_base(tiny, **V, zero_terminal_snr=True)
    for sampler in SAMPLERS.keys() - {"plms", "heun"}:
        assert model.images(["a dog"], [0], Sampling(sampler, 3, 2.0), 32, 32).isfinite().all()
    for sampler in ("plms", "heun"):
        with pytest.raises(UserError, match="take one of ddim"):
            model.images(["a dog"], [0], Sampling(sampler, 3, 2.0), 32, 32)


def test_a_run_draws_from_its_checkpoint_and_in_diffusers_what_it_was_trained_for(run, tiny, tmp_path):
    config = json.loads((run / "model" / "scheduler" / "scheduler_config.json").read_text())
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert config["prediction_type"] == "v_prediction"
    assert load_for_sampling(run).model.schedule.snr(torch.tensor([999])) == 0
    assert load_for_sampling(run / "model").model.schedule.snr(torch.tensor([999])) == 0
    words = ["--prompt", "a sks dog", "--steps", "4", "--n_samples", "1", "--skip_grid", "--sampler", "ddim"]
    assert txt2img.main([*words, "--spacing", "base", "--outdir", str(tmp_path), "--ckpt", str(run)]) == 0
    ours = np.asarray(Image.open(next((tmp_path / "samples").iterdir()))).astype(int)
    pipeline = StableDiffusionPipeline.from_pretrained(run / "model")
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(42)
    theirs = pipeline("a sks dog", 32, 32, 4, guidance_scale=7.5, generator=generator).images[0]
    assert abs(ours - np.asarray(theirs).astype(int)).max() <= 1
