"""Loss weightings against their papers' formulas, for noise and for velocity; chosen by the config."""

import pytest
import torch

from ldm.diffusion.loss import denoising_error
from ldm.diffusion.schedule import VariancePreserving
from ldm.diffusion.weighting import P2, Debiased, MinSnr
from ldm.errors import UserError
from main import main
from tests.conftest import RECIPE

ALPHAS_CUMPROD = torch.linspace(0.999, 0.01, 6)
SNR = ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)


@pytest.mark.parametrize(
    ("weighting", "of_noise"),
    [
        (MinSnr(5.0), SNR.clamp(max=5) / SNR),
        (Debiased(), 1 / SNR.sqrt()),
        (P2(gamma=0.5, k=2.0), 1 / (2 + SNR).sqrt()),
    ],
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_noises_squared_error_is_weighed_whatever_is_predicted(weighting, of_noise, prediction_type):
    generator = torch.Generator().manual_seed(0)
    x, eps, prediction = torch.randn(3, 6, 4, 5, 5, generator=generator).unbind()
    alpha, sigma = ALPHAS_CUMPROD.sqrt().view(-1, 1, 1, 1), (1 - ALPHAS_CUMPROD).sqrt().view(-1, 1, 1, 1)
    noisy = alpha * x + sigma * eps
    noise = prediction if prediction_type == "epsilon" else sigma * noisy + alpha * prediction
    expected = of_noise * (noise - eps).square().mean(dim=(1, 2, 3))
    schedule = VariancePreserving(ALPHAS_CUMPROD, prediction_type)
    error = denoising_error(lambda n, t: prediction, x, eps, torch.arange(6), schedule, weighting)
    assert torch.allclose(error, expected, rtol=1e-3)


def test_a_config_names_a_weighting_and_its_settings(train):
    named = "model.params.weighting={target: ldm.diffusion.weighting.MinSnr, params: {gamma: 0.5}}"
    words = ["lightning.trainer.max_steps=2", "lightning.callbacks.samples=null"]
    by_name = train(named, *words, name="named")
    by_gamma = train("model.params.min_snr_gamma=0.5", *words, name="gamma")
    plain = train(*words, name="plain")
    assert (by_name / "metrics.jsonl").read_bytes() == (by_gamma / "metrics.jsonl").read_bytes()
    assert (by_name / "metrics.jsonl").read_bytes() != (plain / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("{target: ldm.diffusion.weighting.MinSnr, params: {gamma: -1}}", "weighting.params.gamma is -1"),
        ("{target: ldm.diffusion.weighting.MinSnr, params: {gama: 1}}", "did you mean 'gamma'"),
        ("{target: ldm.errors.UserError, params: {}}", "is not a kind of Weighting"),
    ],
)
def test_a_wrong_weighting_is_refused_before_anything_is_built(capsys, word, told):
    assert main(["-b", RECIPE, "-t", "false", f"model.params.weighting={word}"]) == 2
    assert told in capsys.readouterr().err


def test_two_weightings_are_refused():
    from ldm.diffusion.weighting import weighting_of

    with pytest.raises(UserError, match="both set"):
        weighting_of(MinSnr, 5.0)
