"""Files with wrong content end in one line that names them; none runs code, hangs or fills the memory."""

import copy
import itertools
import json
import os
import pickle
import shutil
import signal
import struct

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.formats.base import fingerprint, load_base
from ldm.formats.checkpoint_files import problem_with
from ldm.formats.safe_loading import load_checkpoint
from ldm.methods.load import load_for_sampling
from main import main
from tests.conftest import RECIPE
from tests.runs import resume, state
from tests.test_loading_runs import finished, run  # noqa: F401 - fixtures
from tests.test_safe_loading import torch_zip


@pytest.fixture(autouse=True)
def in_time():
    """A file that blocks or never ends fails its own test and not the whole suite."""

    def late(*_):
        raise AssertionError("it takes for ever")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def told(act, *arguments) -> str:
    """The one line with which `act(*arguments)` is refused."""
    with pytest.raises(UserError) as caught:
        act(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Pickles and safetensors


def nested_lists(depth: int) -> bytes:
    return b"\x80\x02}X\x01\x00\x00\x00a" + b"]" * depth + b"a" * (depth - 1) + b"s."


def shared_lists(levels: int, stub: bytes = b"") -> bytes:
    """Lists that each hold the previous one twice: the file has each of them once, with 2 ** levels paths to it."""
    lists = [b"]q\x00"]
    for level in range(1, levels):
        before = b"h" + bytes([level - 1])
        lists.append(b"](" + 2 * before + b"eq" + bytes([level]))
    return b"\x80\x02}(X\x01\x00\x00\x00a](" + b"".join(lists) + b"e" + stub + b"u."


STUB = b"X\x01\x00\x00\x00bcargparse\nNamespace\n)R"
PICKLES = {
    "deep": (nested_lists(100_000), "nest too deep"),
    "deep, with its parts listed first": (
        pickle.dumps({"a": [chain := [], *(chain := [chain] for _ in range(2_000))]}, 2),
        "nest too deep",
    ),
    "holds itself": (b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "contain themselves"),
    "holds itself, with a stub": (
        b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00" + STUB + b"u.",
        "contain themselves",
    ),
    "2 ** 60 paths": (shared_lists(60), "too many values"),
    "2 ** 60 paths, with a stub": (shared_lists(60, STUB), "too many values"),
    "a terabyte of zeros": (
        b"\x80\x02}X\x01\x00\x00\x00ac__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85Rs.",
        "damaged",
    ),
}


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_would_fill_the_memory_or_the_stack(tmp_path, name):
    data, hint = PICKLES[name]
    path = torch_zip(tmp_path / "model.ckpt", data)
    for act in (load_checkpoint, load_base, load_for_sampling):
        assert hint in told(act, path)
    assert hint in (problem_with(path) or "")


def test_shared_parts_that_unfold_to_little_load_and_stay_shared(tmp_path):
    for stub in (b"", STUB):
        loaded = load_checkpoint(torch_zip(tmp_path / "model.ckpt", shared_lists(10, stub)))
        assert list(loaded) == ["a"]
        assert all(later[0] is later[1] is one for one, later in itertools.pairwise(loaded["a"]))


def test_a_safetensors_file_of_256_gb_that_takes_no_space(tmp_path):
    size = 256 << 30
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + size)
    assert str(path) in told(load_base, path)


@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_what_is_no_file_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    for place in (path, "/dev/zero"):
        for act in (load_checkpoint, load_base, load_for_sampling):
            assert "is a pipe or a device, not a file" in told(act, place)
    assert "damaged" in problem_with(path)


def test_names_that_are_not_utf_8(tmp_path, tiny):
    path = tmp_path / os.fsdecode(b"model\xff.safetensors")
    save_file({"a": torch.ones(1)}, tmp_path / "model")
    (tmp_path / "model").rename(path)
    folder = shutil.copytree(tiny, tmp_path / os.fsdecode(b"base\xff"))
    for place in (path, folder):
        for act in (load_base, load_for_sampling, fingerprint):
            assert "has a name that is not UTF-8: rename it" in told(act, place)


def test_names_that_are_too_long():
    assert "not found" in told(load_base, "x" * 300)
    assert "not found" in told(load_base, "~nobody-of-this-name/model")


# The checkpoint of a run


def put(content: dict, path: str, value) -> dict:
    """`content` with the key at `path` changed; "no" removes it."""
    content = copy.deepcopy(content)
    *parents, key = path.split("/")
    node = content
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    if value == "no":
        del node[key]
    else:
        node[key] = value
    return content


PROGRESS = "loops/fit_loop/epoch_loop.batch_progress"
ALL_WEIGHTS = "ldm.methods.all_weights.AllWeights"
SAMPLED = [
    ("config", "no", "config is missing"),
    ("config", 5, "config is 5"),
    ("config/model/params", None, "config.model.params is None"),
    ("config/model/params/vae", ["a"], "config.model.params.vae is a list"),
    ("config/model/params/clip_skip", 0, "clip_skip is 0"),
    ("config/model/params/learning_rate", "fast", "learning_rate is 'fast'"),
    ("config/model/params/learning_rate", float("nan"), "learning_rate is nan"),
    ("config/model/params/tuning", {"target": 5}, "tuning.target is 5"),
    ("config/model/params/tuning", {"target": "os.system"}, "could run any code"),
    ("config/model/params/tuning", {"target": "ldm.methods.dreambooth.DreamBooth"}, "is not a tuning"),
    ("config/model/params/tuning", {"target": ALL_WEIGHTS, "params": {"rank": 4}}, "unknown key"),
    ("config/data/params/class_word", ["dog"], "class_word is a list"),
    ("config/lightning", None, "config.lightning is None"),
    ("base", ["a"], "base is a list"),
    ("base_fingerprint", torch.ones(2), "base_fingerprint is a Tensor"),
    ("identifier", 5, "identifier is 5"),
    ("identifier", "", "identifier is ''"),
    ("global_step", "1", "global_step is '1'"),
    ("global_step", -1, "global_step is -1"),
    ("global_step", True, "global_step is True"),
    ("state_dict", [], "state_dict is a list"),
    ("state_dict", "no", "state_dict is missing"),
    ("state_dict", {"model.unet.conv_in.weight": 1.0}, "state_dict.model.unet.conv_in.weight is 1.0"),
    ("state_dict", {5: torch.ones(1)}, "state_dict"),
]
RESUMED = [
    ("config", 5, "config is 5"),
    ("config", {"a": torch.ones(2)}, "config.a"),
    ("global_step", "1", "global_step is '1'"),
    ("state_dict", [], "state_dict is a list"),
    ("optimizer_states", [], "optimizer_states"),
    ("optimizer_states", [5], "optimizer_states.0"),
    ("optimizer_states/0/param_groups", [], "param_groups"),
    ("lr_schedulers", [], "lr_schedulers"),
    ("lr_schedulers/0/get_lr", 5, "get_lr"),
    ("callbacks", [], "callbacks is a list"),
    ("loops", "no", "loops is missing"),
    (f"{PROGRESS}/current/ready", "1", "ready is '1'"),
    (f"{PROGRESS}/current/increment_ready", 1, "increment_ready"),
    (f"{PROGRESS}/is_last_batch", "no", "is_last_batch is missing"),
    ("base_fingerprint", torch.ones(2), "base_fingerprint is a Tensor"),
    ("samples_per_step", 0, "samples_per_step is 0"),
]


@pytest.mark.parametrize(("path", "value", "hint"), SAMPLED)
def test_a_runs_checkpoint_with_wrong_content_is_not_sampled(finished, tmp_path, path, value, hint):  # noqa: F811
    file = tmp_path / "model.ckpt"
    torch.save(put(state(finished), path, value), file)
    line = told(load_for_sampling, file)
    assert hint in line
    assert str(file) in line or line.startswith("config: ")


@pytest.mark.parametrize(("path", "value", "hint"), RESUMED)
def test_nor_can_a_run_go_on_from_it(finished, tmp_path, path, value, hint):  # noqa: F811
    file = tmp_path / "last.ckpt"
    torch.save(put(state(finished), path, value), file)
    problem = problem_with(file)
    assert hint in problem
    assert str(file) in problem
    assert "\n" not in problem


def test_a_resume_says_what_is_wrong_and_changes_nothing(run, capsys):  # noqa: F811
    path = run / "checkpoints" / "last.ckpt"
    torch.save({**state(run), "optimizer_states": []}, path)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert resume(run, "lightning.trainer.max_steps=2") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Traceback" not in line]
    assert "none of its 1 checkpoints can be loaded" in lines[-1]
    assert any("optimizer_states" in line for line in lines)
    after = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert {**before, run / ".lock": b""} == {**after, run / ".lock": b""}


# A base model's folder


@pytest.fixture
def folder(tiny, tmp_path):
    """A copy of the tiny base, to be damaged."""
    return shutil.copytree(tiny, tmp_path / "base")


def change(path, changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


WRONG_SETTINGS = [
    ("unet/config.json", {"in_channels": 9}, "is an inpainting model with 9 input channels"),
    ("unet/config.json", {"in_channels": 5}, "is a depth model"),
    (
        "unet/config.json",
        {"cross_attention_dim": 48},
        "text states of width 48, but its text encoder gives 32",
    ),
    ("unet/config.json", {"cross_attention_dim": [32, 48]}, "text states of width"),
    ("unet/config.json", {"addition_embed_type": "text_time"}, "SDXL"),
    ("unet/config.json", {"class_embed_type": "projection"}, "(class_embed_type)"),
    ("unet/config.json", {"num_class_embeds": 1000}, "(num_class_embeds)"),
    ("unet/config.json", {"encoder_hid_dim_type": "ip_image_proj"}, "(encoder_hid_dim_type)"),
    ("unet/config.json", {"time_cond_proj_dim": 256}, "consistency-distilled"),
    ("unet/config.json", {"layers_per_block": 10**9}, "layers_per_block"),
    ("unet/config.json", {"block_out_channels": []}, "block_out_channels"),
    ("unet/config.json", {"block_out_channels": [8, "16"]}, "block_out_channels.1 is '16'"),
    ("unet/config.json", {"down_block_types": ["os.system", "os.system"]}, "no network can be built"),
    ("unet/config.json", {"norm_eps": "small"}, "norm_eps is 'small'"),
    ("unet/config.json", {"sample_size": None}, "sample_size is None"),
    ("unet/config.json", {"attention_type": "gated"}, "attention_type is 'gated'"),
    ("unet/config.json", {"mid_block_scale_factor": None}, "mid_block_scale_factor is None"),
    ("unet/config.json", {"flip_sin_to_cos": "no"}, "flip_sin_to_cos is 'no'"),
    ("vae/config.json", {"latent_channels": 16}, "latents have 16 channels, but the UNet expects 4"),
    ("vae/config.json", {"scaling_factor": float("nan")}, "scaling_factor is nan"),
    ("vae/config.json", {"shift_factor": 0.1}, "shift_factor is 0.1"),
    ("vae/config.json", {"out_channels": 4}, "out_channels is 4"),
    ("text_encoder/config.json", {"num_attention_heads": 0}, "num_attention_heads is 0"),
    ("text_encoder/config.json", {"num_attention_heads": 3}, "must be a multiple of num_attention_heads 3"),
    ("text_encoder/config.json", {"num_hidden_layers": 10**6}, "num_hidden_layers"),
    ("text_encoder/config.json", {"hidden_act": "os.system"}, "hidden_act is 'os.system'"),
    ("text_encoder/config.json", {"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ("text_encoder/config.json", {"eos_token_id": None}, "eos_token_id is None"),
    ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
    ("scheduler/scheduler_config.json", {"beta_start": float("nan")}, "beta_start is nan"),
    ("scheduler/scheduler_config.json", {"beta_end": float("inf")}, "beta_end is inf"),
    ("scheduler/scheduler_config.json", {"beta_start": 0.5}, "is larger than beta_end"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "os.system"}, "beta_schedule is 'os.system'"),
    ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas has 1 values"),
    ("scheduler/scheduler_config.json", {"_class_name": "os.system"}, "_class_name is 'os.system'"),
    ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
    ("scheduler/scheduler_config.json", {"num_train_timesteps": 0}, "num_train_timesteps is 0"),
    (
        "scheduler/scheduler_config.json",
        {"num_train_timesteps": 10**11},
        "num_train_timesteps is 100000000000",
    ),
    ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "prediction_type is 'sample'"),
    (
        "model_index.json",
        {"text_encoder_2": ["transformers", "CLIPTextModel"]},
        "its text_encoder_2 is of class",
    ),
    ("model_index.json", {"_class_name": "Flux", "transformer": ["diffusers", "X"]}, "is a FLUX model"),
    (
        "model_index.json",
        {"image_encoder": ["transformers", "CLIPVisionModel"]},
        "its image_encoder is of class",
    ),
    ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    ("model_index.json", {"unet": ["os", "system"]}, "its unet is of class system"),
    ("dreambooth.json", {"identifier": 5}, "identifier is 5"),
    ("dreambooth.json", {"step": "1"}, "step is '1'"),
]


@pytest.mark.parametrize(("name", "changes", "hint"), WRONG_SETTINGS)
def test_a_base_with_wrong_settings_is_told_before_its_weights_are_read(folder, name, changes, hint):
    (folder / "dreambooth.json").write_text("{}")
    change(folder / name, changes)
    line = told(load_for_sampling, folder)
    assert hint in line
    assert str(folder) in line


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "[" * 100_000, "{", "\udcff", "null"])
@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "dreambooth.json"]
)
def test_json_that_is_none_or_other_than_expected(folder, name, content):
    (folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    line = told(load_for_sampling, folder)
    assert str(folder / name) in line
    assert "JSON" in line


@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/vocab.json", "tokenizer/added.json", "dreambooth.json"]
)
def test_a_pipe_in_a_base_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert "is a pipe or a device" in told(load_for_sampling, folder)


def test_weights_that_are_no_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.bin"
    path.with_suffix(".safetensors").unlink()
    for content, hint in (
        ({"conv_in.weight": "text", "conv_in.bias": [1]}, "not a file of weights"),
        ({5: torch.ones(1)}, "not a file of weights"),
        (
            {"conv_in.bias": torch.ones(8, dtype=torch.long)},
            "1 not floating-point numbers (conv_in.bias int64)",
        ),
    ):
        torch.save(content, path)
        assert hint in told(load_base, folder)


def test_a_config_cannot_name_code_for_transformers_to_fetch(folder):
    """transformers takes any key of a config as an attribute; one of them names a kernel on the hub."""
    change(folder / "text_encoder" / "config.json", {"_attn_implementation": "somebody/kernel", "strange": 1})
    config = load_base(folder).text_encoders["text_encoder"].config
    assert config._attn_implementation != "somebody/kernel"
    assert not hasattr(config, "strange")


def test_nothing_is_written_for_a_base_of_another_kind(folder, tiny_config, tmp_path, capsys):
    change(folder / "unet" / "config.json", {"in_channels": 9})
    logs = tmp_path / "logs"
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), "--actual_resume", str(folder)]) == 2
    assert "is an inpainting model with 9 input channels" in capsys.readouterr().err
    assert not logs.exists()


def test_a_vae_of_other_latents_is_told(folder, tiny, tmp_path):
    other = shutil.copytree(tiny / "vae", tmp_path / "vae")
    change(other / "config.json", {"latents_mean": [0.0] * 4})
    assert "latents_mean is a list" in told(lambda: load_base(tiny, vae=other))
