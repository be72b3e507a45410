"""Single files of SD 1.x and 2.x, in and out, on scaled-down models with the same keys."""

import dataclasses
import logging
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from ldm.errors import UserError
from ldm.formats.base import load_base, load_vae
from ldm.formats.compvis_layout import ema_key, to_compvis
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import save_diffusers_folder
from ldm.formats.families import SD1
from ldm.formats.single_file import save_single_file
from tests.offline import no_network  # noqa: F401 - a fixture
from tests.small_sd import CONFIGS, part, small_configs, small_sd, tokenizers_are_read_once  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("no_network")


def equal(left, right, components=SD1.networks):
    """Assert that two models have bit-equal weights."""
    for name in components:
        ours, theirs = part(left, name).state_dict(), part(right, name).state_dict()
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("single_files")


@pytest.fixture(scope="module")
def configs(root):
    return {version: small_configs(root / version, version) for version in ("v1", "v2")}


@pytest.fixture(scope="module")
def models(configs):
    return {version: small_sd(folder) for version, folder in configs.items()}


@pytest.fixture(scope="module")
def files(root, models):
    return {
        version: save_single_file(model, root / f"{version}.safetensors", torch.float32)
        for version, model in models.items()
    }


@pytest.fixture
def v1(files):
    """The tensors of an SD 1.x file, for tests that change and write them."""
    return load_file(files["v1"])


@pytest.fixture
def v2(files):
    return load_file(files["v2"])


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_is_written_loads_back_bit_for_bit(tmp_path, models, configs, version, suffix):
    path = save_single_file(models[version], tmp_path / f"model.{suffix}", torch.float32)
    loaded = load_base(path, configs=configs[version])
    equal(loaded, models[version])
    assert loaded.scheduler_config == models[version].scheduler_config
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary, and nothing cached beside it


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_half_precision_rounds_once_and_then_stays(tmp_path, models, configs, version):
    path = save_single_file(models[version], tmp_path / "half.safetensors", torch.float16)
    assert {value.dtype for value in load_file(path).values()} == {torch.float16}
    halved = load_base(path, configs=configs[version], dtype=torch.float16)
    for name in SD1.networks:
        originals = part(models[version], name).state_dict()
        assert all(torch.equal(v, originals[k].half()) for k, v in part(halved, name).state_dict().items())
    equal(load_base(path, configs=configs[version]), _as_float(halved))


def _as_float(components):
    for name in SD1.networks:
        part(components, name).float()
    return components


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_diffusers_reads_the_written_file_to_the_same_weights(tmp_path, models, files, version):
    folder = save_diffusers_folder(models[version], tmp_path / "folder", torch.float32)
    pipeline = StableDiffusionPipeline.from_single_file(
        str(files[version]), config=str(folder), local_files_only=True
    )
    equal(pipeline, models[version])


def test_networks_of_the_loaded_file_compute_what_the_originals_do(files, models, configs):
    for version in ("v1", "v2"):
        loaded, original = load_base(files[version], configs=configs[version]), models[version]
        tokenizer = loaded.tokenizers["tokenizer"]
        ids = tokenizer("a photo of a sks dog", padding="max_length", return_tensors="pt").input_ids
        states = original.text_encoders["text_encoder"](ids)[0]
        assert torch.equal(loaded.text_encoders["text_encoder"](ids)[0], states)
        latents, step = torch.randn(1, 4, 8, 8), torch.tensor([500])
        assert torch.equal(
            loaded.unet(latents, step, states).sample, original.unet(latents, step, states).sample
        )
        assert torch.equal(loaded.vae.decode(latents).sample, original.vae.decode(latents).sample)


def test_the_published_files_wrappings_are_all_read(tmp_path, v1, models, configs):
    """With and without `state_dict`, both prefix layouts, and buffers without information."""
    start = "cond_stage_model.transformer."
    flat = {key.replace(start + "text_model.", start): value for key, value in v1.items()}
    buffers = {
        "betas": torch.zeros(1000),
        "model_ema.decay": torch.tensor(0.9999),
        start + "text_model.embeddings.position_ids": torch.arange(77)[None],
    }
    for number, tensors in enumerate([v1, flat, {**v1, **buffers}]):
        for name, content in {"bare": tensors, "wrapped": {"state_dict": tensors, "global_step": 5}}.items():
            path = tmp_path / f"{number}-{name}.ckpt"
            torch.save(content, path)
            equal(load_base(path, configs=configs["v1"]), models["v1"])


def test_openclips_last_layer_and_projections_are_left_aside(tmp_path, v2, models, configs):
    last = "cond_stage_model.model.transformer.resblocks.23."
    copied = {
        k.replace("resblocks.22.", "resblocks.23."): v.clone() for k, v in v2.items() if "resblocks.22." in k
    }
    assert len(copied) == 12
    assert all(key.startswith(last) for key in copied)
    extra = {
        "cond_stage_model.model.text_projection": torch.eye(16),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }
    path = tmp_path / "full.safetensors"
    save_file({**v2, **copied, **extra}, path)
    equal(load_base(path, configs=configs["v2"], prediction_type="v"), models["v2"])


def test_the_moving_average_is_preferred_and_can_be_turned_off(tmp_path, v1, models, configs):
    averaged = small_sd(configs["v1"], seed=1)
    average = {ema_key(key): value for key, value in to_compvis({"unet": averaged.unet}).items()}
    assert "model_ema.diffusion_modelinput_blocks00weight" in average
    path = tmp_path / "full-ema.ckpt"
    torch.save({"state_dict": {**v1, **average, "model_ema.num_updates": torch.tensor(7)}}, path)
    equal(load_base(path, configs=configs["v1"]), averaged, ["unet"])
    equal(load_base(path, configs=configs["v1"]), models["v1"], ["vae", "text_encoder"])
    equal(load_base(path, configs=configs["v1"], use_ema=False), models["v1"])
    del average["model_ema.diffusion_modelout2bias"]
    torch.save({"state_dict": {**v1, **average}}, path)
    with pytest.raises(UserError, match=r"unet: 1 missing \(conv_out.bias\)"):
        load_base(path, configs=configs["v1"])


def test_keys_that_do_not_fit_are_listed_by_component(tmp_path, v1, configs):
    for key in ("model.diffusion_model.out.2.bias", "first_stage_model.quant_conv.weight"):
        del v1[key]
    v1["cond_stage_model.transformer.text_model.strange"] = torch.ones(1)
    v1["something.else"] = torch.ones(1)
    v1["first_stage_model.post_quant_conv.bias"] = torch.ones(5)
    save_file(v1, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        load_base(tmp_path / "model.safetensors", configs=configs["v1"])
    message = str(caught.value)
    assert "\n" not in message
    assert "unet: 1 missing (conv_out.bias)" in message
    assert (
        "vae: 1 missing (quant_conv.weight); 1 of another shape (post_quant_conv.bias [5] instead of [4])"
        in message
    )
    assert "text_encoder: 1 left over (cond_stage_model.transformer.text_model.strange)" in message
    assert "other: 1 left over (something.else)" in message


class TestPredictionType:
    """The sources of an SD 2.x file's prediction type, in order."""

    @staticmethod
    def predicted(path, configs, **options):
        return load_base(path, configs=configs["v2"], **options).scheduler_config["prediction_type"]

    def test_a_silent_file_is_an_error_that_names_both_ways_out(self, tmp_path, v2, configs):
        save_file(v2, tmp_path / "silent.safetensors")
        with pytest.raises(UserError, match=r"prediction_type.*v_prediction.*epsilon.*\.yaml"):
            self.predicted(tmp_path / "silent.safetensors", configs)

    def test_the_caller_comes_first(self, files, configs):
        assert self.predicted(files["v2"], configs) == "v_prediction"
        assert self.predicted(files["v2"], configs, prediction_type="epsilon") == "epsilon"
        with pytest.raises(UserError, match="unknown prediction type 'x'"):
            self.predicted(files["v2"], configs, prediction_type="x")

    def test_then_the_file_itself(self, tmp_path, v2, configs):
        save_file(v2, tmp_path / "a.safetensors", metadata={"modelspec.prediction_type": "epsilon"})
        (tmp_path / "a.yaml").write_text("model: {params: {parameterization: v}}")
        assert self.predicted(tmp_path / "a.safetensors", configs) == "epsilon"
        torch.save({**v2, "v_pred": torch.empty(0)}, tmp_path / "b.ckpt")
        assert self.predicted(tmp_path / "b.ckpt", configs) == "v_prediction"

    def test_then_the_yaml_beside_it(self, tmp_path, v2, configs):
        save_file(v2, tmp_path / "a.safetensors")
        for text, expected in (("parameterization: v", "v_prediction"), ("timesteps: 1000", "epsilon")):
            (tmp_path / "a.yaml").write_text(f"model:\n  params:\n    {text}\n")
            assert self.predicted(tmp_path / "a.safetensors", configs) == expected
        (tmp_path / "a.yaml").write_text("[1, 2]")
        with pytest.raises(UserError, match="a.yaml beside the model is not a CompVis config"):
            self.predicted(tmp_path / "a.safetensors", configs)

    def test_sd_1_predicts_noise(self, tmp_path, v1, configs):
        save_file(v1, tmp_path / "a.safetensors")
        loaded = load_base(tmp_path / "a.safetensors", configs=configs["v1"])
        assert loaded.scheduler_config["prediction_type"] == "epsilon"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lora_unet_down_blocks_0.lora_down.weight", "LoRA"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "SDXL"),
        ("control_model.input_blocks.0.0.weight", "ControlNet"),
        ("string_to_param.*", "textual inversion"),
        ("model.unet.conv_in.weight", "run's checkpoint"),
        ("down_blocks.0.resnets.0.conv1.weight", "folder with model_index.json"),
        ("first_stage_model.encoder.conv_in.weight", "vae of a base model"),
        ("blocks.0.attn.weight", "not a Stable Diffusion model"),
        ("model.diffusion_model.input_blocks.0.0.weight", "no text encoder"),
    ],
)
def test_files_of_other_kinds_are_named_for_what_they_are(tmp_path, key, hint):
    save_file({key: torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=hint):
        load_base(tmp_path / "other.safetensors")


def test_inpainting_models_are_refused_by_name(tmp_path, v1, configs):
    v1["model.diffusion_model.input_blocks.0.0.weight"] = torch.ones(32, 9, 3, 3)
    save_file(v1, tmp_path / "inpainting.safetensors")
    with pytest.raises(UserError, match="inpainting model with 9 input channels"):
        load_base(tmp_path / "inpainting.safetensors", configs=configs["v1"])


def test_hostile_shapes_and_values_are_refused_like_any_other(tmp_path, v2, configs):
    """Numbers instead of matrices, a matrix that would fill the memory, a value that is not text."""
    key = "model.diffusion_model.input_blocks.0.0.weight"
    one = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    huge = torch.ones(1).expand(10**9, 10**6)
    content = {
        **v2,
        key: torch.tensor(1.0),
        one: torch.tensor(1.0),
        "first_stage_model.quant_conv.weight": huge,
    }
    torch.save({"state_dict": content, "prediction_type": ["v"]}, tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="unknown prediction type"):
        load_base(tmp_path / "model.ckpt", configs=configs["v2"])
    with pytest.raises(
        UserError, match=r"unet: 1 of another shape.*vae: 1 of another shape.*text_encoder: 3 missing"
    ):
        load_base(tmp_path / "model.ckpt", configs=configs["v2"], prediction_type="v")
    torch.save({"state_dict": 5, **v2}, tmp_path / "other.ckpt")
    load_base(tmp_path / "other.ckpt", configs=configs["v2"], prediction_type="v")


def test_a_vae_of_the_users_choice_takes_the_place_of_the_bases(
    tmp_path, files, v1, models, configs, monkeypatch
):
    other = small_sd(configs["v1"], seed=2)
    folder = save_diffusers_folder(other, tmp_path / "folder", torch.float32)
    small = dataclasses.replace(SD1, configs=configs["v1"])  # of the small VAE
    monkeypatch.setattr("ldm.formats.base.family_of", lambda texts: small)
    prefixed = to_compvis({"vae": other.vae})
    bare = {key.removeprefix("first_stage_model."): value for key, value in prefixed.items()}
    save_file(bare | {"loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    save_file(other.vae.state_dict(), tmp_path / "diffusers.safetensors")
    whole = save_single_file(other, tmp_path / "whole.ckpt", torch.float32)
    for choice in (
        folder,
        folder / "vae",
        tmp_path / "vae.safetensors",
        tmp_path / "diffusers.safetensors",
        whole,
    ):
        equal(SimpleNamespace(vae=load_vae(choice, small)), other, ["vae"])
    for base, options in ((files["v1"], {"configs": configs["v1"]}), (folder, {})):
        loaded = load_base(base, vae=whole, **options)
        equal(loaded, other, ["vae"])
        equal(loaded, models["v1"] if options else other, ["unet", "text_encoder"])
        assert loaded.fingerprint != load_base(base, **options).fingerprint
    without = {key: value for key, value in v1.items() if not key.startswith("first_stage_model.")}
    save_file(without, tmp_path / "without.safetensors")
    equal(load_base(tmp_path / "without.safetensors", configs=configs["v1"], vae=folder), other, ["vae"])
    with pytest.raises(UserError, match="vae: 248 missing"):
        load_base(tmp_path / "without.safetensors", configs=configs["v1"])
    save_file(bare | {"encoder.strange": torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(UserError, match="encoder.strange"):
        load_vae(tmp_path / "vae.safetensors", small)


def test_sd_2_at_512_px_differs_in_prediction_and_size_alone(tmp_path, monkeypatch):
    """The published sizes from the real configs, with the networks left on the meta device."""
    from ldm.formats import single_file

    seen = {}

    def assemble(configs, *arguments):
        seen.update(configs)
        raise UserError("enough")

    monkeypatch.setattr(single_file, "assemble", assemble)
    key = "cond_stage_model.model.token_embedding.weight"
    tensors = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(320, 4, 3, 3), key: torch.ones(1)}
    save_file(tensors, tmp_path / "a.safetensors")
    for prediction, size in (("epsilon", 64), ("v_prediction", 96)):
        with pytest.raises(UserError, match="enough"):
            load_base(tmp_path / "a.safetensors", prediction_type=prediction)
        assert seen["unet"] == {**read_json(CONFIGS / "v2" / "unet" / "config.json"), "sample_size": size}


def test_what_a_written_file_says_of_itself(files):
    from safetensors import safe_open

    for version, prediction, kind in (("v1", "epsilon", "v1"), ("v2", "v", "v2-768-v")):
        with safe_open(files[version], framework="pt") as file:
            facts = file.metadata()
        assert facts["modelspec.prediction_type"] == prediction
        assert facts["modelspec.architecture"] == f"stable-diffusion-{kind}"


def test_targets_that_cannot_be_written_are_refused(tmp_path, models, files):
    with pytest.raises(UserError, match="exists already"):
        save_single_file(models["v1"], files["v1"], torch.float32)
    with pytest.raises(UserError, match="neither .safetensors nor .ckpt"):
        save_single_file(models["v1"], tmp_path / "model.bin", torch.float32)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_single_file(models["v1"], tmp_path / "file" / "model.ckpt", torch.float32)


def test_loading_says_nothing(files, configs, caplog, capfd):
    with caplog.at_level(logging.WARNING):
        load_base(files["v1"], configs=configs["v1"])
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
