"""Guidance and samplers against two passes and diffusers' own pipeline; txt2img through its entry point."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from ldm.data.images import to_image
from ldm.diffusion.guidance import guided
from ldm.diffusion.sampling import Sampling
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import image_generator
from ldm.samplers import SAMPLERS
from scripts import txt2img

PROMPTS = ["a photo of a dog on the moon", "a photo of a cat", "a red teapot"]


@pytest.fixture(scope="module")
def model(tiny):
    return LatentDiffusion.from_base(tiny).eval()


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    from main import main
    from tests.conftest import RECIPE

    logs = tmp_path_factory.mktemp("sampling")
    words = ["model.params.learning_rate=2e-3", "lightning.callbacks.samples=null"]
    assert main(["--base", RECIPE, str(tiny_config), "-l", str(logs), *words]) == 0
    return next(logs.iterdir())


def latents_of(model, prompts, seeds, sampler="ddim", steps=5, scale=4.0, **options):
    sampling = Sampling(sampler, steps, scale, **options)
    return model.sample(prompts, [image_generator(s) for s in seeds], (4, 8, 8), sampling)


@torch.no_grad()
def test_guidance_is_two_passes_in_one(model):
    x = torch.randn(3, 4, 8, 8, generator=image_generator(0))
    timesteps = torch.tensor([7, 500, 999])
    states, unconditional = model.embed(PROMPTS), model.embed([""] * 3)
    with_text, without = (model.predict(x, timesteps, s) for s in (states, unconditional))
    calls = []

    def counted(*inputs):
        calls.append(len(inputs[0]))
        return model.predict(*inputs)

    both = guided(counted, states, unconditional, 4.0)(x, timesteps)
    assert torch.allclose(both, without + 4.0 * (with_text - without), atol=1e-5)
    assert calls == [6]  # one pass of both halves


@torch.no_grad()
def test_the_vae_takes_large_images_one_by_one(model, monkeypatch):
    """Activations of several at once would add up: 3.4 GB for five images of 512 px."""
    pixels = torch.randn(5, 3, 16, 16, generator=image_generator(0)).clamp(-1, 1)
    alone = [model.posterior(image[None]) for image in pixels]
    decoded = torch.cat([model.decode(mean) for mean, _ in alone])
    sizes = []
    for network in (model.vae.encoder, model.vae.decoder):
        monkeypatch.setattr(network, "forward", lambda x, act=network.forward: sizes.append(len(x)) or act(x))
    monkeypatch.setattr("ldm.models.codec.PIXELS_AT_ONCE", 16 * 16)
    mean, std = model.posterior(pixels)
    assert torch.equal(mean, torch.cat([m for m, _ in alone]))
    assert torch.equal(std, torch.cat([s for _, s in alone]))
    assert torch.equal(model.decode(mean), decoded)
    assert sizes == [1] * 10


@torch.no_grad()
def test_no_second_half_without_guidance(model):
    calls = []

    def counted(*inputs):
        calls.append(len(inputs[0]))
        return model.predict(*inputs)

    states = model.embed(PROMPTS)
    denoise = guided(counted, states, states, 1.0)
    denoise(torch.zeros(3, 4, 8, 8), torch.tensor([1, 1, 1]))
    assert calls == [3]


@torch.no_grad()
def test_guidance_on_a_part_of_the_noise_levels(model):
    x, states, unconditional = torch.randn(1, 4, 8, 8), model.embed(PROMPTS[:1]), model.embed([""])
    denoise = guided(model.predict, states, unconditional, 4.0, interval=(200, 800))
    everywhere = guided(model.predict, states, unconditional, 4.0)
    for timestep, is_guided in ((199, False), (200, True), (799, True), (800, False)):
        t = torch.tensor([timestep])
        expected = everywhere(x, t) if is_guided else model.predict(x, t, states)
        assert torch.equal(denoise(x, t), expected), timestep


@pytest.mark.parametrize(
    ("sampler", "spacing", "scheduler"),
    [
        ("ddim", "leading", DDIMScheduler),
        ("plms", "leading", PNDMScheduler),
        ("ddpm", "leading", DDPMScheduler),
        ("dpmpp_2m", "", DPMSolverMultistepScheduler),
    ],
)
def test_sampler_equals_the_diffusers_pipeline(model, tiny, sampler, spacing, scheduler):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    pipeline.set_progress_bar_config(disable=True)
    options = {"skip_prk_steps": True} if sampler == "plms" else {}
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, **options)
    generators = [image_generator(seed) for seed in (5, 6, 7)]
    theirs = pipeline(
        PROMPTS, num_inference_steps=7, guidance_scale=4.0, generator=generators, output_type="latent"
    ).images
    ours = latents_of(model, PROMPTS, (5, 6, 7), sampler, steps=7, spacing=spacing)
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws_an_image_from_its_seed_alone(model, sampler):
    eta = 0.5 if sampler == "ddim" else 0.0
    together = latents_of(model, PROMPTS, (1, 2, 3), sampler, eta=eta)
    alone = latents_of(model, PROMPTS[1:2], (2,), sampler, eta=eta)
    other = latents_of(model, PROMPTS[1:2], (9,), sampler, eta=eta)
    assert torch.isfinite(together).all()
    assert torch.allclose(together[1], alone[0], rtol=1e-3, atol=1e-3)
    assert not torch.allclose(together[1], other[0], rtol=1e-3, atol=1e-3)


def sample(*words):
    assert txt2img.main([str(word) for word in words]) == 0


def pixels(folder):
    return {path.name: Image.open(path).tobytes() for path in sorted(folder.glob("samples/*.png"))}


def test_batch_size_and_order_do_not_matter(run, tmp_path):
    words = ["--ckpt", run, "--prompt", "a photo of [V] dog", "--steps", 4, "--precision", "full"]
    sample(*words, "--n_samples", 4, "--outdir", tmp_path / "four")
    sample(*words, "--n_samples", 2, "--n_iter", 2, "--outdir", tmp_path / "twice two")
    sample(*words, "--n_samples", 1, "--seed", 44, "--outdir", tmp_path / "third alone")
    four, two, third = (pixels(tmp_path / name) for name in ("four", "twice two", "third alone"))
    assert len(set(four.values())) == 4
    for name in four:
        assert nearly(four[name], two[name])
    assert nearly(four["00002.png"], third["00000.png"])


def nearly(one: bytes, other: bytes) -> bool:
    """Equal pixels except for the last bit: other batch shapes round differently."""
    return len(one) == len(other) and max(abs(a - b) for a, b in zip(one, other, strict=True)) <= 1


def test_images_are_added_and_never_overwritten(run, tmp_path):
    words = ["--ckpt", run, "--prompt", "a dog", "--steps", 2, "--n_samples", 2, "--outdir", tmp_path]
    sample(*words)
    before = pixels(tmp_path)
    sample(*words, "--seed", 1)
    after = pixels(tmp_path)
    assert list(after) == ["00000.png", "00001.png", "00002.png", "00003.png"]
    assert all(after[name] == before[name] for name in before)
    assert {path.name for path in tmp_path.glob("*.png")} == {"grid-0000.png", "grid-0001.png"}


def test_from_file_rows_and_skip(run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n\na cat on the beach\n")
    words = ["--ckpt", run, "--from-file", prompts, "--steps", 2, "--n_samples", 2, "--plms"]
    sample(*words, "--skip_grid", "--outdir", tmp_path / "no grid")
    assert len(pixels(tmp_path / "no grid")) == 4
    assert not list((tmp_path / "no grid").glob("*.png"))
    sample(*words, "--skip_save", "--n_rows", 4, "--outdir", tmp_path / "grid")
    assert not (tmp_path / "grid" / "samples").exists()
    assert Image.open(tmp_path / "grid" / "grid-0000.png").size == (4 * 34 - 2, 32)


def test_size_in_pixels(run, tmp_path):
    words = ["--ckpt", run, "--prompt", "a dog", "--steps", 2, "--n_samples", 1, "--outdir", tmp_path]
    sample(*words, "--H", 64, "--W", 48)
    assert Image.open(tmp_path / "samples" / "00000.png").size == (48, 64)


def test_a_run_and_its_export_draw_what_the_pipeline_draws(run, tmp_path):
    words = [
        "--prompt",
        "a photo of [V] dog",
        "--steps",
        4,
        "--spacing",
        "leading",
        "--scale",
        3,
        "--n_samples",
        2,
        "--precision",
        "full",
    ]
    sample("--ckpt", run, *words, "--outdir", tmp_path / "run")
    sample("--ckpt", run / "model", *words, "--outdir", tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(run / "model")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a photo of sks dog"] * 2, num_inference_steps=4, guidance_scale=3.0, output_type="pt",
        generator=[image_generator(42), image_generator(43)],
    ).images  # fmt: skip
    theirs = [to_image(image * 2 - 1).tobytes() for image in theirs]
    ours, exported = (list(pixels(tmp_path / name).values()) for name in ("run", "model"))
    for one, two, three in zip(ours, exported, theirs, strict=True):
        assert nearly(one, two)
        assert nearly(one, three)


def test_what_a_long_prompt_loses_is_said(model, recwarn):
    words = (
        "a photo of a red dog on the beach with a cat and a blue teapot and a red car in the snow at night"
    )
    words += " with an apple"
    model.embed([words + " and a green boat"])
    said = [str(w.message) for w in recwarn if "longer than" in str(w.message)]
    assert len(said) == 1
    assert "32 tokens" in said[0]
    assert said[0].endswith("boat'")
