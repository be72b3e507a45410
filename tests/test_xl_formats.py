"""Stable Diffusion XL in and out: a diffusers folder, a single file, and what is refused, on a small model."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.formats.base import load_base
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import save_diffusers_folder
from ldm.formats.families import SDXL
from ldm.formats.single_file import save_single_file
from tests.offline import no_network  # noqa: F401 - a fixture
from tests.small_sd import part

pytestmark = pytest.mark.usefixtures("no_network")

INERT = ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids",)
INERT += ("conditioner.embedders.1.model.logit_scale", "denoiser.sigmas", "ztsnr")
"""Keys of published files that no network takes."""


@pytest.fixture(scope="module")
def base(xl):
    return load_base(xl)


@pytest.fixture(scope="module")
def file(base, tmp_path_factory):
    return save_single_file(base, tmp_path_factory.mktemp("file") / "xl.safetensors", torch.float32)


@pytest.fixture
def folder(xl, tmp_path):
    return shutil.copytree(xl, tmp_path / "base")


def equal(left, right):
    """Assert that two models have bit-equal weights."""
    for name in SDXL.networks:
        ours, theirs = part(left, name).state_dict(), part(right, name).state_dict()
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


def change(path, **changes):
    path.write_text(json.dumps({**read_json(path), **changes}))


def test_a_folder_of_diffusers_is_read_and_written_to_the_same_weights(xl, base, tmp_path):
    equal(base, StableDiffusionXLPipeline.from_pretrained(xl))
    assert (base.family, base.zero_unconditional) == (SDXL, True)
    assert [tokenizer.pad_token for tokenizer in base.tokenizers.values()] == ["<|endoftext|>", "!"]
    written = save_diffusers_folder(base, tmp_path / "written", torch.float32)
    equal(load_base(written), base)
    pipe = StableDiffusionXLPipeline.from_pretrained(written)
    equal(pipe, base)
    assert pipe.config.force_zeros_for_empty_prompt is True
    assert [pipe.tokenizer.pad_token, pipe.tokenizer_2.pad_token] == ["<|endoftext|>", "!"]
    assert pipe.tokenizer_2("a dog").input_ids == base.tokenizers["tokenizer_2"]("a dog").input_ids


def test_a_folder_says_whether_no_prompt_is_zeros(xl, folder, tmp_path):
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    base = load_base(folder)
    assert not base.zero_unconditional
    assert base.fingerprint != load_base(xl).fingerprint
    written = save_diffusers_folder(base, tmp_path / "written", torch.float32)
    assert read_json(written / "model_index.json")["force_zeros_for_empty_prompt"] is False
    change(folder / "model_index.json", force_zeros_for_empty_prompt="no")
    with pytest.raises(UserError, match="force_zeros_for_empty_prompt is 'no': it must be true or false"):
        load_base(folder)


def test_a_single_file_goes_out_and_comes_back_here_and_in_diffusers(xl, base, file):
    loaded = load_base(file, configs=xl)
    equal(loaded, base)
    assert (loaded.scheduler_config, loaded.zero_unconditional) == (base.scheduler_config, True)
    equal(StableDiffusionXLPipeline.from_single_file(str(file), config=str(xl), local_files_only=True), base)


@pytest.mark.parametrize("to_the_end", [False, True])
@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
def test_a_file_says_that_it_predicts_the_velocity_and_how_its_schedule_ends(
    xl, file, tmp_path, ending, to_the_end
):
    base = load_base(xl, prediction_type="v_prediction", zero_terminal_snr=to_the_end)
    path = save_single_file(base, tmp_path / f"xl{ending}", torch.float32)
    marks = set(load_file(path) if ending == ".safetensors" else torch.load(path)["state_dict"]) - set(
        load_file(file)
    )
    assert marks == {"v_pred", *(["ztsnr"] if to_the_end else [])}
    assert load_base(path, configs=xl).scheduler_config == base.scheduler_config


def test_a_published_file_has_more_keys_half_precision_and_other_endings(xl, base, file, tmp_path):
    tensors = {key: value.half() for key, value in load_file(file).items()}
    tensors |= {key: torch.zeros(1) for key in INERT}
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": tensors}, path)
    halved = load_base(path, configs=xl)
    for name, network in base.networks.items():
        theirs = halved.networks[name].state_dict()
        assert all(torch.equal(v.half().float(), theirs[key]) for key, v in network.state_dict().items())


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("conditioner.embedders.0.", "is an SDXL refiner, or SDXL without a text encoder"),
        ("conditioner.embedders.1.", "is an SDXL refiner, or SDXL without a text encoder"),
        ("conditioner.embedders.1.model.text_projection", "text_encoder_2: 1 missing"),
        ("model.diffusion_model.label_emb.0.0.bias", "unet: 1 missing"),
        ("first_stage_model.", "vae: "),
    ],
)
def test_a_file_that_lacks_a_part_is_refused(xl, file, tmp_path, lost, message):
    path = tmp_path / "part.safetensors"
    save_file({key: v for key, v in load_file(file).items() if not key.startswith(lost)}, path)
    with pytest.raises(UserError, match=message):
        load_base(path, configs=xl)


def test_an_inpainting_file_is_refused(xl, file, tmp_path):
    tensors = load_file(file)
    tensors["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(8, 9, 3, 3)
    save_file(tensors, tmp_path / "inpaint.safetensors")
    with pytest.raises(UserError, match="is an inpainting model with 9 input channels"):
        load_base(tmp_path / "inpaint.safetensors", configs=xl)


REFUSED = {
    "refiner": (
        "model_index.json",
        {"text_encoder": [None, None], "tokenizer": [None, None]},
        "is an SDXL refiner: give a text-to-image model of",
    ),
    "inpainting": ("unet/config.json", {"in_channels": 9}, "is an inpainting model with 9 input channels"),
    "another UNet": ("unet/config.json", {"addition_embed_type": "image"}, "the UNet of an unCLIP model"),
    "no sizes": ("unet/config.json", {"addition_embed_type": None}, "a UNet without addition_embed_type"),
    "refiner's sizes": (
        "unet/config.json",
        {"projection_class_embeddings_input_dim": 60},
        "its UNet expects 6 sizes and a pooled text of width 12, but its text encoder gives 20",
    ),
    "one text encoder's width": (
        "unet/config.json",
        {"cross_attention_dim": 24},
        "its UNet expects text states of width 24, but its text encoders give 40",
    ),
    "swapped activations": ("text_encoder/config.json", {"hidden_act": "gelu"}, "with these activations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_are_refused_in_one_line(folder, name):
    file, changes, message = REFUSED[name]
    change(folder / file, **changes)
    with pytest.raises(UserError, match=message) as refusal:
        load_base(folder)
    assert "\n" not in str(refusal.value)


def test_variants_and_a_vae_of_another_kind(xl, base, folder, file):
    for name in SDXL.networks:
        path = next((folder / name).glob("*.safetensors"))
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    equal(load_base(folder, variant="fp16"), base)
    with pytest.raises(UserError, match=r"model.fp16.safetensors: set the variant"):
        load_base(folder)
