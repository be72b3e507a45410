"""Stable Diffusion XL on a small model: pictures and loss equal diffusers', and runs through the entry points."""

import dataclasses
import json
import signal

import diffusers
import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, inject_adapter_in_model
from PIL import Image
from safetensors import safe_open

from ldm.config import load_config
from ldm.data.batch import collate
from ldm.data.datamodule import TrainingSamples
from ldm.data.images import original_size, resize_and_crop, size_ids, to_image
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.formats.families import SDXL
from ldm.methods.all_weights import AllWeights
from ldm.methods.dreambooth import DreamBooth
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator
from ldm.training.build import build
from main import main
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state
from tests.small_sd import part

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmpp_2m": "DPMSolverMultistepScheduler",
}
PROMPTS = ["a photo of a dog on the beach", "a red cat"]
SEEDS = [3, 4]
STEPS = 5


@pytest.fixture(scope="module")
def model(xl):
    return LatentDiffusion.from_base(xl).eval()


@pytest.fixture(scope="module")
def pipe(xl):
    pipe = StableDiffusionXLPipeline.from_pretrained(xl)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def xl_config(xl, tiny_config, tmp_path_factory):
    """The overlay `tiny_config` with the small SDXL as the base, and fewer steps."""
    overlay = yaml.safe_load(tiny_config.read_text())
    overlay["model"]["params"]["base"] = str(xl)
    overlay["lightning"]["trainer"]["max_steps"] = 4
    path = tmp_path_factory.mktemp("config") / "xl.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return path


def trained(xl_config, logs, *words, expect=0):
    """Run main on the small SDXL; the run folder."""
    assert main(["-b", RECIPE, str(xl_config), *words, "-l", str(logs)]) == expect
    return next(logs.iterdir())


@pytest.fixture(scope="module")
def whole(xl_config, tmp_path_factory):
    """A run that nothing interrupts, with sample images."""
    return trained(xl_config, tmp_path_factory.mktemp("whole"), "lightning.logger=null")


# Pictures


@pytest.mark.parametrize("negative", ["", "a boat in the snow"])
@pytest.mark.parametrize("scale", [1.0, 5.0])
@pytest.mark.parametrize("sampler", SCHEDULERS)
def test_pictures_are_those_of_diffusers_pipeline(model, pipe, sampler, scale, negative):
    sampling = Sampling(sampler, STEPS, scale, negative_prompt=negative, spacing="base")
    ours = model.images(PROMPTS, SEEDS, sampling)
    kind = getattr(diffusers, SCHEDULERS[sampler])
    pipe.scheduler = kind.from_config(model.scheduler_config, clip_sample=False)
    theirs = pipe(
        PROMPTS,
        negative_prompt=[negative] * 2 if negative else None,
        num_inference_steps=STEPS,
        guidance_scale=scale,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images
    for one, other in zip(ours, theirs, strict=True):
        assert np.array_equal(np.asarray(to_image(one)), np.asarray(other))


@torch.no_grad()
def test_no_negative_prompt_is_zeros_or_an_empty_text_as_the_base_says(model, pipe):
    sampling = Sampling("euler", STEPS, 5.0)
    zeros = model.images(PROMPTS, SEEDS, sampling)
    parts = model.components()
    parts.zero_unconditional = False
    empty = LatentDiffusion(parts).images(PROMPTS, SEEDS, sampling)
    assert not torch.equal(zeros, empty)
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(model.scheduler_config)
    theirs = pipe(
        PROMPTS,
        negative_prompt=["", ""],
        num_inference_steps=STEPS,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images
    assert np.array_equal(np.asarray(to_image(empty[0])), np.asarray(theirs[0]))


@torch.no_grad()
@pytest.mark.parametrize("skip", [1, 2])
def test_text_and_its_layers_are_those_of_the_pipeline(xl, pipe, skip):
    model = LatentDiffusion.from_base(xl, clip_skip=skip).eval()
    states, _, pooled, _ = pipe.encode_prompt(
        "a photo of a dog", do_classifier_free_guidance=False, clip_skip=skip - 1
    )
    conditioning = model.embed(["a photo of a dog"])
    assert torch.allclose(conditioning.states, states, atol=1e-5)
    assert torch.allclose(conditioning.pooled, pooled, atol=1e-5)
    assert conditioning.size_ids.tolist() == [[32, 32, 0, 0, 32, 32]]
    with pytest.raises(UserError, match="clip_skip is 3: the text encoder of .* has layers 1 to 2"):
        LatentDiffusion.from_base(xl, clip_skip=3)


def test_layers_that_condition_nothing_have_no_gradient(model):
    unused = {p for layer in model.unused_text_layers() for p in layer.parameters()}
    conditioning = model.embed(PROMPTS)
    (conditioning.states.sum() + conditioning.pooled.sum()).backward()
    without = {p for own in model.text_encoders.values() for p in own.parameters() if p.grad is None}
    model.zero_grad()
    assert without == unused
    assert unused


@pytest.mark.parametrize(
    ("size", "place", "mirrored", "expected"),
    [
        ((96, 48), (0.5, 0.5), False, [48, 96, 0, 16, 32, 32]),
        ((48, 96), (0.5, 0.0), False, [96, 48, 0, 0, 32, 32]),
        ((48, 96), (0.5, 1.0), True, [96, 48, 32, 0, 32, 32]),
        ((96, 48), (0.25, 0.5), True, [48, 96, 0, 24, 32, 32]),
        ((16, 16), (0.5, 0.5), False, [16, 16, 0, 0, 32, 32]),
    ],
)
def test_sizes_and_crops_are_where_the_picture_was_cut(tmp_path, size, place, mirrored, expected):
    """A picture whose colours say where each pixel was."""
    width, height = size
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))
    image.save(tmp_path / "a.png")
    assert original_size(tmp_path / "a.png") == size
    told = size_ids(size, (32, 32), place, mirrored)
    assert told == expected
    cropped = np.asarray(resize_and_crop(image, 32, place)).astype(float)
    scale = 32 / min(size)
    left = told[3] if not mirrored else round(width * scale) - 32 - told[3]
    assert abs(cropped[16, 16, 0] - 255 * (left + 16.5) / (width * scale)) < 6
    assert abs(cropped[16, 16, 1] - 255 * (told[2] + 16.5) / (height * scale)) < 6


def test_a_rotated_photograph_has_its_upright_size(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert original_size(tmp_path / "a.jpg") == (20, 40)


# Training


@pytest.fixture
def photographs(tmp_path):
    """The sample subject, each picture in another shape."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, path in enumerate(sorted((PROJECT / "assets" / "subject" / "dog").glob("*.png"))):
        image = Image.open(path).convert("RGB").resize((40 + 20 * number, 90 - 10 * number))
        image.save(folder / path.name)
    return folder


def built(xl_config, tmp_path, *words, overlays=()):
    """Data and model of a run, ready to train."""
    data, module, trainer = build(load_config([RECIPE, xl_config, *overlays], list(words)), tmp_path)
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    module.setup("fit")
    data.prepare_latents()
    return data, module


@pytest.mark.parametrize("random_crop", [False, True])
def test_the_loss_is_equation_2_of_diffusers_parts(xl, xl_config, photographs, pipe, tmp_path, random_crop):
    data, module = built(
        xl_config,
        tmp_path / "run",
        f"data.params.data_root={photographs}",
        f"data.params.random_crop={str(random_crop).lower()}",
        "data.params.flip_probability=0.5",
        "model.params.prior_loss_weight=0.7",
    )
    samples = [TrainingSamples(data)[n] for n in range(4)]
    batch = data.on_after_batch_transfer(collate(samples), 0)
    loss = module.training_step(batch, 0)["loss"]

    sizes = {original_size(path) for path in data.subjects[0].files}
    told = [sample["size_ids"] for sample in samples]
    assert {(width, height) for height, width, *_ in told} <= sizes
    assert all(ids[4:] == [32, 32] for ids in told)
    assert any(ids[2] or ids[3] for ids in told)  # they are not square
    told += [[32, 32, 0, 0, 32, 32]] * 4  # drawn whole
    reference = loss_of_diffusers_parts(pipe, batch, told, 0.7)
    assert loss.item() == pytest.approx(reference, rel=1e-5)
    flipped = loss_of_diffusers_parts(pipe, batch, [ids[::-1] for ids in told], 0.7)
    assert flipped != pytest.approx(reference, rel=2e-5)  # sizes matter to this model, if little


def loss_of_diffusers_parts(pipe, batch, size_ids, prior_loss_weight):
    """Equation 2 for 4 photographs and 4 prior samples."""
    noising = DDPMScheduler.from_config(pipe.scheduler.config)
    noisy = noising.add_noise(batch.latents, batch.noise, batch.timesteps)
    prompts = ["a photo of sks dog"] * 4 + ["a photo of a dog"] * 4
    states, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    added = {"text_embeds": pooled, "time_ids": torch.tensor(size_ids, dtype=torch.float32)}
    answer = pipe.unet(noisy, batch.timesteps, states, added_cond_kwargs=added).sample
    errors = ((answer - batch.noise) ** 2).mean(dim=(1, 2, 3))
    return (errors[:4].mean() + prior_loss_weight * errors[4:].mean()).item()


def test_a_loras_loss_is_that_of_peft_in_diffusers_parts(xl, xl_config, tmp_path):
    overlay = PROJECT / "configs" / "lora.yaml"
    data, module = built(xl_config, tmp_path / "run", overlays=[overlay])
    learned = module.tuning.learned(module.model)
    for name, value in learned.items():
        if "lora_B" in name:  # 0 before training
            value.copy_(torch.randn(value.shape, generator=generator(0, name)))
    samples = [TrainingSamples(data)[n] for n in range(4)]
    batch = data.on_after_batch_transfer(collate(samples), 0)
    with torch.no_grad():
        loss = module.training_step(batch, 0)["loss"]

    pipe = StableDiffusionXLPipeline.from_pretrained(xl)
    before = loss_of_diffusers_parts(pipe, batch, batch.size_ids.tolist(), 1.0)
    settings = load_config([RECIPE, xl_config, overlay])["model"]["params"]["tuning"]["params"]
    for network, key in (
        ("unet", "config"),
        *((name, "text_encoder_config") for name in ("text_encoder", "text_encoder_2")),
    ):
        part_of_pipe = getattr(pipe, network)
        inject_adapter_in_model(LoraConfig(**settings[key]["params"]), part_of_pipe)
        own = {
            name.removeprefix(f"{network}."): v
            for name, v in learned.items()
            if name.startswith(f"{network}.")
        }
        missing, unexpected = part_of_pipe.load_state_dict(own, strict=False)
        assert not unexpected
        assert own
    assert loss.item() == pytest.approx(
        loss_of_diffusers_parts(pipe, batch, batch.size_ids.tolist(), 1.0), rel=1e-5
    )
    assert loss.item() != pytest.approx(before, rel=1e-3)


def test_prior_samples_are_the_pipelines_at_the_training_size(xl_config, tmp_path, pipe):
    data, _ = built(xl_config, tmp_path / "run", "data.params.prior.sampler=euler")
    prior, settings = data.classes[0], data.prior
    prior.bank.fill([0])
    numbers = range(settings["chunk_size"])
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    theirs = pipe(
        [prior.prompt] * len(numbers),
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
        generator=[generator(data.seed, "prior", number) for number in numbers],
        output_type="latent",
    ).images
    assert torch.allclose(prior.bank.latents(numbers, "cpu"), theirs, atol=1e-4)


def test_all_but_what_conditions_nothing_trains_and_is_exported(whole, xl, tmp_path):
    tensors = state(whole)["state_dict"]
    networks = {key.split(".")[1] for key in tensors}
    assert networks == {"unet", "text_encoder", "text_encoder_2"}
    assert not any("text_encoder.encoder.layers.2" in key for key in tensors)
    assert "model.text_encoder_2.text_projection.weight" in tensors
    base, exported = load_base(xl), load_base(whole / "model")
    for name in networks:
        before, after = base.networks[name].state_dict(), exported.networks[name].state_dict()
        assert not all(torch.equal(before[key], after[key]) for key in before), name
    pipe = StableDiffusionXLPipeline.from_pretrained(whole / "model")
    for name, network in exported.networks.items():
        theirs = part(pipe, name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in network.state_dict().items())
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert list((whole / "images").glob("step-*.png"))


def test_a_run_and_its_export_draw_the_same_pictures(whole, tmp_path):
    words = [
        "--prompt",
        "a photo of [V] dog",
        "--steps",
        "3",
        "--seed",
        "1",
        "--skip_grid",
        "--precision",
        "full",
    ]
    pixels = []
    for name, ckpt in (("run", whole), ("model", whole / "model")):
        assert txt2img.main(["--ckpt", str(ckpt), "--outdir", str(tmp_path / name), *words]) == 0
        pixels.append(np.asarray(Image.open(next((tmp_path / name / "samples").glob("*.png")))).astype(int))
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_a_run_is_exported(whole, xl, tmp_path, monkeypatch, capsys):
    folder, file = tmp_path / "dog", tmp_path / "dog.safetensors"
    assert export.main(["--ckpt", str(whole), "--out", str(folder), "--dtype", "fp32"]) == 0
    assert load_base(folder).zero_unconditional
    assert export.main(["--ckpt", str(whole), "--out", str(file)]) == 2
    assert "does not have Stable Diffusion's sizes" in capsys.readouterr().err

    as_published = (dataclasses.replace(SDXL, configs=xl),)
    monkeypatch.setattr("ldm.formats.single_file.FAMILIES", as_published)
    assert export.main(["--ckpt", str(whole), "--out", str(file)]) == 0
    with safe_open(file, "pt") as tensors:
        assert {tensors.get_tensor(key).dtype for key in tensors.keys()} == {torch.float16}  # noqa: SIM118
        assert tensors.metadata()["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
        assert tensors.metadata()["modelspec.trigger_phrase"] == "sks dog"
    pipe = StableDiffusionXLPipeline.from_single_file(str(file), config=str(xl), local_files_only=True)
    for name, network in load_base(folder).networks.items():
        theirs = part(pipe, name).state_dict()
        assert all(torch.equal(v.half().float(), theirs[key]) for key, v in network.state_dict().items())


def test_a_stopped_run_goes_on_to_the_same_end(whole, xl_config, tmp_path, monkeypatch):
    at_call(monkeypatch, DreamBooth, "training_step", {3}, send(signal.SIGTERM))
    cut = trained(xl_config, tmp_path / "cut", "lightning.logger=null", expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


def test_each_text_encoder_has_its_rate(xl, xl_config, tmp_path):
    module = built(
        xl_config,
        tmp_path,
        "model.params.learning_rate=1e-3",
        "model.params.text_encoder_learning_rate={text_encoder: 1.0e-5, text_encoder_2: 0}",
    )[1]
    groups = module.tuning.parameter_groups(module.model)
    assert {group["name"]: group["lr"] for group in groups} == {"unet": 1e-3, "text_encoder": 1e-5}
    with pytest.raises(UserError, match=r"for each text encoder of this base \(text_encoder, text_encoder_2"):
        AllWeights(1e-3, {"text_encoder": 1e-5}).attach(LatentDiffusion.from_base(xl))


def test_prompts_are_encoded_once_where_no_text_encoder_trains(xl_config, tmp_path, monkeypatch):
    """And a resume, which encodes them anew, ends as a run that was never stopped."""
    words = [*QUICK, "model.params.text_encoder_learning_rate=0"]
    data, module = built(xl_config, tmp_path / "built", *words)
    with torch.no_grad():
        alone = module.model.embed(["a photo of sks dog"])
        module.model.remember_prompts()
        passes = []
        module.model.text_encoders["text_encoder_2"].register_forward_hook(lambda *_: passes.append(1))
        for _ in range(3):
            both = module.model.embed(["a photo of sks dog", "a photo of a dog"])
    assert len(passes) == 2
    assert torch.equal(both.states[:1], alone.states)
    assert torch.equal(both.pooled[:1], alone.pooled)
    one = trained(xl_config, tmp_path / "one", *words)
    at_call(monkeypatch, DreamBooth, "training_step", {3}, send(signal.SIGTERM))
    cut = trained(xl_config, tmp_path / "cut", *words, expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, one)


def test_an_empty_prompt_in_training_is_what_guidance_takes_for_no_prompt(xl):
    model = LatentDiffusion.from_base(xl).eval()
    dog, nothing = "a photo of a dog", ""
    both = model.embed([nothing, dog, nothing])
    alone = model.embed([dog])
    for rows, row in ((both.states, alone.states), (both.pooled, alone.pooled)):
        assert not rows[[0, 2]].any()
        torch.testing.assert_close(rows[1], row[0])
    assert both.size_ids[0].tolist() == alone.size_ids[0].tolist()
    model.zero_unconditional = False
    assert model.embed([nothing]).states.any()
