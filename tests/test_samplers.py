"""The start and end of samplers for every number of steps; pictures that are not finite."""

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler

from ldm.diffusion.sampling import Sampling, make_scheduler, sample, scheduler_for
from ldm.errors import UserError
from ldm.models.codec import NotFiniteError
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import image_generator
from ldm.samplers import SAMPLERS, SPACINGS
from tests.conftest import RECIPE

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
}
"""Stable Diffusion's."""


def drawn_from_a_gaussian(sampling: Sampling, std: float = 0.5) -> float:
    """Standard deviation of samples of N(0, std^2), whose best denoiser is known."""
    alphas = make_scheduler("ddpm", SCHEDULE).alphas_cumprod

    def denoise(x, timesteps):
        alpha = alphas[timesteps.long()].view(-1, 1, 1, 1)
        return x * (1 - alpha).sqrt() / (alpha * std**2 + 1 - alpha)

    noise = torch.randn(1, 4, 32, 32, generator=image_generator(0))
    return float(sample(denoise, sampling, SCHEDULE, noise, [image_generator(1)]).std())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("steps", [10, 20, 30, 61, 103, 300, 400, 600, 999])
def test_every_number_of_steps_starts_where_the_noise_is(sampler, steps):
    scheduler, timesteps = scheduler_for(Sampling(sampler, steps, 1.0), SCHEDULE)
    assert timesteps[0] == 999
    assert timesteps[-1] < 1000 / steps + 1
    assert len(timesteps) == {"plms": steps + 1, "heun": 2 * steps - 1}.get(sampler, steps)
    assert len(timesteps) == len(scheduler.timesteps)


@pytest.mark.parametrize("sampler", ["ddim", "plms", "ddpm"])
def test_no_noise_remains_where_steps_do_not_divide_the_schedule(sampler):
    """A stride of 1000 // 600 = 1 would leave the standard deviation 7 % too large."""
    even, uneven = (drawn_from_a_gaussian(Sampling(sampler, steps, 1.0)) for steps in (500, 600))
    assert uneven == pytest.approx(even, rel=0.01)


@pytest.mark.parametrize("sampler", ["ddim", "plms", "ddpm"])
def test_the_full_schedule_is_sampled(sampler):
    """Every timestep once, as in the paper's ancestral sampler; leading would start past the end."""
    _, timesteps = scheduler_for(Sampling(sampler, 1000, 1.0), SCHEDULE)
    assert set(timesteps.tolist()) == set(range(1000))
    with pytest.raises(UserError, match="1000 steps of .* leading spacing do not fit"):
        scheduler_for(Sampling(sampler, 1000, 1.0, spacing="leading"), SCHEDULE)


@pytest.mark.parametrize("spacing", SPACINGS[1:])
@pytest.mark.parametrize("steps", [7, 30, 48, 300, 600])
def test_spacings_are_diffusers_own(spacing, steps):
    theirs = DDIMScheduler.from_config(SCHEDULE, timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    _, timesteps = scheduler_for(Sampling("ddim", steps, 1.0, spacing=spacing), SCHEDULE)
    assert timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize(("sampler", "own"), [("ddim", 999), ("dpmpp_2m", 961)])
def test_what_the_base_says_is_a_spacing_too(sampler, own):
    """As in diffusers' pipeline; the multistep solvers do so by default."""
    said = {**SCHEDULE, "timestep_spacing": "leading"}
    theirs = getattr(diffusers, SAMPLERS[sampler].scheduler).from_config(said)
    theirs.set_timesteps(30)
    _, timesteps = scheduler_for(Sampling(sampler, 30, 1.0, spacing="base"), said)
    assert timesteps.tolist() == theirs.timesteps.tolist()
    assert scheduler_for(Sampling(sampler, 30, 1.0), said)[1][0] == own


@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        (("dpmpp_2m", 1000), "take fewer"),  # two equal timesteps: not a number
        (("ddim", 1001), "take fewer"),
        (("euler", 1), "do not fit"),  # would start at timestep 0
        (("euler", 61, "trailing"), "take another number"),  # diffusers adds a timestep of -1
    ],
)
def test_what_the_schedule_cannot_give_is_refused(sampling, says):
    sampler, steps, *spacing = sampling
    with pytest.raises(UserError, match=says):
        scheduler_for(Sampling(sampler, steps, 1.0, spacing="".join(spacing)), SCHEDULE)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampler": "dim"}, "unknown sampler 'dim'"),
        ({"spacing": "middle"}, "unknown spacing 'middle'"),
        ({"steps": 0}, "at least 1"),
        ({"sampler": "plms", "eta": 0.5}, "for the sampler ddim"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        Sampling(**{"sampler": "ddim", "steps": 5, "guidance_scale": 1.0, **settings})


@pytest.mark.parametrize(
    "words",
    [
        ["data.params.prior.sampler=dpmpp_2m", "data.params.prior.steps=1000"],
        ["lightning.callbacks.samples.params.sampler=unipc", "lightning.callbacks.samples.params.steps=1000"],
        ["lightning.callbacks.samples.params.sampler=dim"],
    ],
)
def test_a_check_alone_refuses_what_would_end_the_run(tiny_config, capsys, words):
    from main import main

    assert main(["--base", RECIPE, str(tiny_config), "-t", "false", *words]) == 2
    assert "sampler" in (said := capsys.readouterr().err) or "steps of" in said


@pytest.fixture
def model(tiny):
    return LatentDiffusion.from_base(tiny).eval()


@pytest.mark.parametrize(("dtype", "vae"), [("float16", "float32"), ("bfloat16", "bfloat16")])
def test_the_vae_never_runs_in_fp16(model, dtype, vae):
    model.for_sampling("cpu", getattr(torch, dtype))
    assert (model.unet.dtype, model.text_encoder.dtype) == (getattr(torch, dtype),) * 2
    assert model.vae.dtype == getattr(torch, vae)


def test_pictures_that_are_not_finite_are_an_error(model):
    model.for_sampling("cpu", torch.float16)
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0, 0, 0] = torch.inf
    with pytest.raises(NotFiniteError, match="--precision bf16 or full"):
        model.decode(latents)
    next(model.unet.parameters()).data.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="weights are not finite either"):
        model.decode(latents)


def test_training_goes_on_without_pictures_that_are_not_finite(train, monkeypatch, capsys):
    """The last step's samples overflow; the run warns, exports and ends well."""
    monkeypatch.setattr(
        LatentDiffusion,
        "images",
        lambda model, prompts, *_, **__: model.decode(torch.full((len(prompts), 4, 8, 8), torch.inf)),
    )
    run = train("lightning.trainer.max_steps=1", "model.params.prior_loss_weight=0")
    assert (run / "model" / "dreambooth.json").is_file()
    assert not list((run / "images").glob("step-*.png"))
    said = capsys.readouterr().err
    assert "no sample images at step 1: pictures with values that are not finite" in said
