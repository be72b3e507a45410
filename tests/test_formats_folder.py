"""Diffusers folders in and out, fingerprints, hub ids."""

import json
import os
import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.formats import fingerprint as fingerprints
from ldm.formats import hub
from ldm.formats.base import fingerprint, load_base, load_vae
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import save_diffusers_folder
from ldm.formats.families import SD1
from tests.offline import no_network  # noqa: F401 - a fixture
from tests.small_sd import part

pytestmark = pytest.mark.usefixtures("no_network")


def weights(components, name):
    return part(components, name).state_dict()


def equal(left, right):
    """Assert that two models have bit-equal weights."""
    for name in SD1.networks:
        ours, theirs = weights(left, name), weights(right, name)
        assert ours.keys() == theirs.keys(), name
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny base, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "base")


@pytest.fixture(scope="module")
def base(tiny):
    return load_base(tiny)


@pytest.fixture(scope="module")
def saved(base, tmp_path_factory):
    return save_diffusers_folder(base, tmp_path_factory.mktemp("saved") / "model", torch.float32)


def test_a_folder_loads_as_diffusers_loads_it(tiny, base):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny, local_files_only=True)
    equal(base, pipeline)
    assert not any(part(base, name).training for name in SD1.networks)
    assert base.scheduler_config["prediction_type"] == "epsilon"
    assert base.scheduler_config["num_train_timesteps"] == 1000
    assert base.source == str(tiny)


def test_what_is_written_loads_back_here_and_in_diffusers(base, saved):
    equal(load_base(saved), base)
    pipeline = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True)
    equal(pipeline, base)
    assert pipeline.safety_checker is None
    assert dict(pipeline.scheduler.config)["prediction_type"] == base.scheduler_config["prediction_type"]


def test_written_files_are_those_that_transformers_4_reads(base, saved):
    """Version 4 silently loads random weights if keys lack `text_model.`, and needs a vocab.json."""
    keys = load_file(saved / "text_encoder" / "model.safetensors")
    assert all(key.startswith("text_model.") for key in keys)
    config = read_json(saved / "text_encoder" / "config.json")
    assert config["architectures"] == ["CLIPTextModel"]
    assert config["torch_dtype"] == config["dtype"] == "float32"
    names = {path.name for path in (saved / "tokenizer").iterdir()}
    assert names == {
        *("vocab.json", "merges.txt", "tokenizer.json"),
        *("tokenizer_config.json", "special_tokens_map.json"),
    }
    vocabulary = read_json(saved / "tokenizer" / "vocab.json")
    assert vocabulary == base.tokenizers["tokenizer"].get_vocab()
    settings = read_json(saved / "tokenizer" / "tokenizer_config.json")
    assert settings["tokenizer_class"] == "CLIPTokenizer"
    assert settings["model_max_length"] == base.text_encoders["text_encoder"].config.max_position_embeddings
    index = read_json(saved / "model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


@pytest.mark.parametrize("kept", [("vocab.json", "merges.txt"), ("tokenizer.json",)])
def test_either_kind_of_tokenizer_file_gives_the_same_tokens(base, saved, tmp_path, kept):
    for name in (*kept, "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(saved / "tokenizer" / name, tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(str(tmp_path))
    for prompt in ("a photo of a dog on the beach", "A Teddy  bear's café, 12!"):
        for options in ({}, {"padding": "max_length", "max_length": 20, "truncation": True}):
            assert (
                tokenizer(prompt, **options).input_ids
                == base.tokenizers["tokenizer"](prompt, **options).input_ids
            )


def test_half_precision_is_written_and_read(base, tmp_path):
    path = save_diffusers_folder(base, tmp_path / "half", torch.float16)
    assert {
        value.dtype for value in load_file(path / "unet" / "diffusion_pytorch_model.safetensors").values()
    } == {torch.float16}
    loaded = load_base(path)
    for name in SD1.networks:
        originals = weights(base, name)
        assert all(torch.equal(v, originals[k].half().float()) for k, v in weights(loaded, name).items())


def test_notes_are_written_with_the_model(base, tmp_path):
    path = save_diffusers_folder(base, tmp_path / "model", torch.float32, notes={"README.md": "A dog.\n"})
    assert (path / "README.md").read_text() == "A dog.\n"


def test_an_earlier_model_is_replaced_and_nothing_else_is(base, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    save_diffusers_folder(base, target, torch.float32, notes={"old": "x"})
    (tmp_path / ".model.tmp").mkdir()  # what a killed export leaves
    save_diffusers_folder(base, target, torch.float32)
    assert not (target / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.png").write_text("")
    with pytest.raises(UserError, match="photos exists and is not a model"):
        save_diffusers_folder(base, tmp_path / "photos", torch.float32)
    assert (tmp_path / "photos" / "dog.png").exists()


def test_a_failed_write_leaves_the_earlier_model(base, saved, tmp_path, monkeypatch):
    target = shutil.copytree(saved, tmp_path / "model")
    before = fingerprint(target)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ldm.formats.diffusers_folder.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        save_diffusers_folder(base, target, torch.float32)
    assert fingerprint(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_two_renames_loses_nothing(base, saved, tmp_path, monkeypatch):
    shutil.copytree(saved, tmp_path / ".model.old.tmp")
    monkeypatch.setattr("ldm.formats.diffusers_folder.write_network", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_diffusers_folder(base, tmp_path / "model", torch.float32)
    assert fingerprint(tmp_path / "model") == fingerprint(saved)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_older_layouts_load_too(base, folder):
    """Text-encoder keys without prefix and with position_ids; weights in .bin files."""
    text = load_file(folder / "text_encoder" / "model.safetensors")
    text = {key.removeprefix("text_model."): value for key, value in text.items()}
    save_file(
        text | {"embeddings.position_ids": torch.arange(32)[None]},
        folder / "text_encoder" / "model.safetensors",
    )
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(unet), unet.with_suffix(".bin"))
    unet.unlink()
    (folder / "unet" / "diffusion_pytorch_model.non_ema.bin").write_bytes(b"")
    equal(load_base(folder), base)


def test_names_of_the_first_stages_attention_before_diffusers_0_15():
    from ldm.formats.diffusers_folder import new_vae_name

    start = "decoder.mid_block.attentions.0."
    assert new_vae_name(start + "query.weight") == start + "to_q.weight"
    assert new_vae_name(start + "proj_attn.bias") == start + "to_out.0.bias"
    assert new_vae_name(start + "group_norm.bias") == start + "group_norm.bias"


def test_variants_are_taken_by_name_and_named_when_missing(base, folder):
    for name in SD1.networks:
        path = next((folder / name).glob("*.safetensors"))
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    equal(load_base(folder, variant="fp16"), base)
    with pytest.raises(UserError, match=r"model.fp16.safetensors: set the variant"):
        load_base(folder)


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (lambda f: shutil.rmtree(f / "unet"), "unet/config.json is missing"),
        (lambda f: (f / "vae" / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "vae" / "config.json").write_text("[]"), "a JSON object"),
        (lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(), "it has no weights"),
        (lambda f: shutil.rmtree(f / "tokenizer"), "tokenizer has no CLIP tokenizer"),
        (lambda f: os.truncate(f / "unet" / "diffusion_pytorch_model.safetensors", 5000), "cut short"),
        (lambda f: (f / "tokenizer" / "tokenizer.json").write_text("{}"), "tokenizer"),
    ],
)
def test_incomplete_folders_end_in_one_line(folder, damage, hint):
    damage(folder)
    with pytest.raises(UserError, match=hint) as caught:
        load_base(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_strange_keys_are_listed(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.bias"]
    save_file(tensors | {"strange": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"unet: 1 missing \(conv_in.bias\); 1 left over \(strange\)"):
        load_base(folder)


def test_a_tokenizer_larger_than_the_text_encoder_is_refused(folder):
    other = folder.parents[0] / "clip"
    shutil.copytree("configs/stable-diffusion/v1/tokenizer", other)
    shutil.rmtree(folder / "tokenizer")
    other.rename(folder / "tokenizer")
    with pytest.raises(UserError, match="49408 tokens"):
        load_base(folder)


@pytest.mark.parametrize("name", ["absent", "absent/folder/deep", "/absent/model.ckpt"])
def test_a_base_that_is_nowhere_is_named(name):
    with pytest.raises(UserError, match=f"{name} not found"):
        load_base(name)


def test_a_hub_id_without_a_network_says_what_was_tried(monkeypatch):
    import huggingface_hub

    calls = []

    def unreachable(repository, **options):
        calls.append((repository, options["revision"], options["allow_patterns"]))
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError, match="owner/name is not a local folder or file, and the hub was tried"
    ) as caught:
        load_base("owner/name", revision="v2", variant="fp16")
    assert "\n" not in str(caught.value)
    repository, revision, patterns = calls[0]
    assert (repository, revision) == ("owner/name", "v2")
    assert "model_index.json" in patterns


def test_a_hub_id_loads_from_what_was_downloaded(tiny, base, monkeypatch):
    calls = []

    def download(repository, **options):
        calls.append(options["allow_patterns"])
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    equal(load_base("owner/name", variant=None), base)
    assert not any(pattern.endswith(".bin") for patterns in calls for pattern in patterns)
    assert "unet/diffusion_pytorch_model.safetensors" in calls[1]
    assert not any("ckpt" in pattern or pattern.endswith("*") for pattern in calls[0] + calls[1])
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.weights("fp16", "safetensors")


def test_pickles_are_fetched_only_where_there_is_nothing_else(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _, **o: calls.append(o) or str(tmp_path))
    with pytest.raises(UserError, match="config.json is missing"):
        load_base("owner/name")
    assert "text_encoder/pytorch_model.bin" in calls[2]["allow_patterns"]


def test_a_vae_in_a_repository_of_its_own_is_found_at_its_top(tiny, base, monkeypatch):
    """As in stabilityai/sd-vae-ft-mse: no folders, no model_index.json."""
    calls = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda _, **o: calls.append(o) or str(tiny / "vae")
    )
    loaded = load_vae("owner/vae", SD1).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in weights(base, "vae").items())
    patterns = [pattern for call in calls for pattern in call["allow_patterns"]]
    assert {"config.json", "diffusion_pytorch_model.safetensors"} <= set(patterns)


def test_a_hub_model_of_another_family_is_refused_before_its_weights_are_fetched(folder, monkeypatch):
    index = read_json(folder / "model_index.json")
    index |= {"_class_name": "StableDiffusion3Pipeline", "text_encoder_3": ["transformers", "T5EncoderModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    calls = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda _, **o: calls.append(o) or str(folder))
    with pytest.raises(UserError, match="is a Stable Diffusion 3 model"):
        load_base("owner/name")
    assert not any("safetensors" in pattern for call in calls for pattern in call["allow_patterns"])


class TestFingerprint:
    """It depends only on the contents, is computed once, and leaves nothing in the base's folder."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return tmp_path / "cache" / "dreambooth" / "fingerprints"

    def test_copies_have_the_same_and_changes_another(self, tiny, folder):
        before = fingerprint(folder)
        assert before == fingerprint(tiny) == load_base(folder).fingerprint
        (folder / "README.md").write_text("not part of the model")
        assert fingerprint(folder) == before
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        tensors["conv_in.bias"][0] += 1
        save_file(tensors, path)
        assert fingerprint(folder) != before

    def test_files_are_read_once(self, folder, cache, monkeypatch):
        names = sorted(path.name for path in folder.rglob("*"))
        first = fingerprint(folder)
        read = [path for path in folder.rglob("*") if path.is_file() and path.name != "model_index.json"]
        assert len(list(cache.iterdir())) == len(read)

        def read_again(*arguments):
            raise AssertionError("read again")

        monkeypatch.setattr(fingerprints.hashlib, "file_digest", read_again)
        assert fingerprint(folder) == first
        assert sorted(path.name for path in folder.rglob("*")) == names

    def test_a_cache_that_cannot_be_used_only_costs_time(self, folder, cache):
        first = fingerprint(folder)
        for path in cache.iterdir():
            path.write_text("cut")
        assert fingerprint(folder) == first
        shutil.rmtree(cache)
        cache.write_text("a file in the way")
        assert fingerprint(folder) == first

    def test_the_moving_average_is_part_of_it(self, tmp_path):
        save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
        path = tmp_path / "a.safetensors"
        assert fingerprint(path) != fingerprint(path, use_ema=False)


def test_model_index_is_plain_json(saved):
    assert json.loads((saved / "model_index.json").read_text())["unet"] == [
        "diffusers",
        "UNet2DConditionModel",
    ]


def test_a_written_tokenizer_forgets_how_it_was_last_used(tiny, tmp_path):
    components = load_base(tiny)
    components.tokenizers["tokenizer"](["a dog"], padding="max_length", truncation=True, max_length=32)
    save_diffusers_folder(components, tmp_path / "out", torch.float32)
    written = json.loads((tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text())
    assert written["padding"] is None
    assert written["truncation"] is None
