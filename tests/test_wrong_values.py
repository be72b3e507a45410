"""Every key of every shipped config with wrong types and values just out of range, and past omissions."""

import copy
import math

import pytest
import torch

from ldm.config import load_config, load_settings
from ldm.errors import UserError
from ldm.evaluation.settings import EvaluationSettings
from ldm.schema import check, check_as, settings
from ldm.targets import instantiate_from_config
from tests.conftest import PROJECT, RECIPE

CONFIGS = PROJECT / "configs"
RUNS = [
    *[[RECIPE, path] for path in sorted(CONFIGS.glob("*.yaml")) if path.stem != "evaluation"],
    *[[RECIPE, CONFIGS / "stable-diffusion" / f"{version}.yaml"] for version in ("v1", "v2")],
    *[
        [path]
        for path in sorted((CONFIGS / "toy").glob("*.yaml"))
        if path.stem not in ("base-further", "base-again", "decoder")
    ],
    [CONFIGS / "toy" / f"{stem}.yaml" for stem in ("base", "base-further", "base-again")],
    [CONFIGS / "toy" / f"{stem}.yaml" for stem in ("autoencoder", "decoder")],
]

COUNT = ["abc", 1.5, 0, -1, True, None, [64], {"x": 1}, math.nan]
STEPS_OR_NONE = [value for value in COUNT if value is not None]
COUNT_FROM_0 = ["abc", 1.5, -1, True, None, [64], {"x": 1}]
NUMBER = ["abc", True, None, [1.0], math.nan, math.inf, -math.inf]
NUMBER_FROM_0 = [*NUMBER, -1, -1e-9]
ABOVE_0 = [*NUMBER_FROM_0, 0]
SHARE = [*NUMBER_FROM_0, 1.0001, 7]
TRUTH = ["abc", 1, 0, None, [True]]
TEXT = ["", "  ", 5, 1.5, True, None, ["a"], {"x": None}]
TEXT_OR_NONE = [value for value in TEXT if value is not None]
WORDS = [[], "a prompt", [5], [""], None, {"x": None}]
SEED = ["abc", 1.5, -1, 2**63, 2**64, True, None]
NAME = ["abc", "", 5, None, True, ["ddim"]]
NAME_OR_NONE = [value for value in NAME if value is not None]
FOLDER = ["..", ".", "/tmp", "a/b", "../a", "a" * 300, "a\0", 5]
OF_LIBRARY = ["abc", [[]], {"x": 1}]

WRONG = {
    "accelerator": ["tpus", 5, None],
    "accumulate_grad_batches": COUNT,
    "art": TEXT,
    "at_end": TRUTH,
    "average_decay": SHARE,
    "base": TEXT,
    "batch_size": COUNT,
    "betas": ["abc", [0.9], [0.9, 1.0], [-0.1, 0.9], [0.9, math.nan], [0.9, "a"], 0.9],
    "cache": TEXT,
    "prior.cache": TEXT_OR_NONE,
    "cache_gigabytes": ABOVE_0,
    "caption_dropout": SHARE,
    "captions": TRUTH,
    "bucket_step": STEPS_OR_NONE,
    "check_signals_every_steps": COUNT,
    "chunk_size": COUNT,
    "class_word": [*TEXT, "{x}", "a {dog", "[V]"],
    "clip": TEXT,
    "clip_revision": TEXT_OR_NONE,
    "clip_skip": COUNT,
    "compile": TRUTH,
    "cuda_graphs": TRUTH,
    "concepts": ["abc", 5, True, [], {"x": 1}, ["cat"], [{"class_word": "cat"}], [{"data_root": 5}]],
    "count": COUNT,
    "data_root": TEXT,
    "decay_steps": COUNT_FROM_0,
    "deterministic": ["abc", 1, None],
    "max_time": [*TEXT_OR_NONE, "soon", "00:00:00:00", "12:00:00", "00:12:00", "1h", {"hours": 12}],
    "devices": [0, -2, 1.5, "abc", [], [-1], [0, 0], ["a"], True, None, math.nan],
    "dino": TEXT,
    "dino_revision": TEXT_OR_NONE,
    "drift_samples": COUNT_FROM_0,
    "drift_weight": NUMBER_FROM_0,
    "edge_weight": NUMBER_FROM_0,
    "eps": ["abc", -1, math.nan, math.inf, None, [1]],
    "every_minutes": [value for value in ABOVE_0 if value is not None],
    "every_steps": STEPS_OR_NONE,
    "export_dtype": [*NAME, "bf16"],
    "fill_at_start": TRUTH,
    "ema": [value for value in SHARE if value is not None],
    "first_stage": TEXT,
    "flip_probability": SHARE,
    "flush_every_steps": COUNT,
    "fused": ["abc", 5, [True]],
    "gradient_checkpointing": TRUTH,
    "gradient_clip_val": [value for value in NUMBER_FROM_0 if value is not None],
    "guidance_interval": [[800, 200], [200], [1, 2, 3], [5, 5], [-1, 5], [1.5, 3], ["a", 5], 5, "abc", True],
    "guidance_scale": [value for value in NUMBER_FROM_0 if value is not None],
    "prior.guidance_scale": NUMBER_FROM_0,
    "hold_out": COUNT_FROM_0,
    "identifier": TEXT,
    "keep": COUNT,
    "keep_best": TRUTH,
    "kl_weight": NUMBER_FROM_0,
    "large": COUNT,
    "latent_cache": TEXT,
    "latent_shape": ["abc", 4, [4, 16], [4, 16, 16, 16], [4, 16, 0], [4, 16, 1.5], None],
    "learning_rate": NUMBER_FROM_0,
    "log_every_steps": COUNT,
    "lr_schedule": [*NAME, "piecewise_constant"],
    "lr_warmup_steps": COUNT_FROM_0,
    "max_steps": COUNT,
    "milestone_every_steps": STEPS_OR_NONE,
    "min_snr_gamma": [value for value in ABOVE_0 if value is not None],
    "monitor": ["foo", "", 5, True],
    "name": FOLDER,
    "name_share": SHARE,
    "num_nodes": COUNT,
    "num_timesteps": COUNT,
    "num_workers": COUNT_FROM_0,
    "per_prompt": COUNT,
    "precision": [*NAME, "17-mixed", 32],
    "prediction_type": ["abc", 5, "sample", True],
    "prior_loss_weight": NUMBER_FROM_0,
    "prior_prompt": TEXT,
    "prior_target": NAME,
    "project": FOLDER,
    "projection_dim": COUNT,
    "prompt": TEXT,
    "prompts": WORDS,
    "prototypes": COUNT,
    "random_crop": TRUTH,
    "read_every_steps": COUNT,
    "reg_data_root": TEXT_OR_NONE,
    "revision": TEXT_OR_NONE,
    "sampler": [*NAME_OR_NONE, "dpm"],
    "prior.sampler": [*NAME, "dpm"],
    "seed": SEED,
    "size": COUNT,
    "small": COUNT_FROM_0,
    "small_size": COUNT,
    "steps": STEPS_OR_NONE,
    "prior.steps": COUNT,
    "stop_after": COUNT,
    "strategy": ["ddq", 5, None, ["ddp"]],
    "student_temperature": ABOVE_0,
    "teacher_momentum": SHARE,
    "teacher_temperature": ABOVE_0,
    "text_encoder_learning_rate": [value for value in NUMBER_FROM_0 if value is not None],
    "tag_dropout": SHARE,
    "tag_shuffle": TRUTH,
    "templates": [value for value in WORDS if value is not None],
    "tf32": TRUTH,
    "token_std": NUMBER_FROM_0,
    "tokenizer": TEXT,
    "total_steps": COUNT,
    "unmasked_weight": SHARE,
    "use_ema": TRUTH,
    "vae": TEXT_OR_NONE,
    "variant": FOLDER,
    "version": FOLDER[:-1],
    "warmup_steps": COUNT_FROM_0,
    "weight_decay": ["abc", -1, math.nan, math.inf, None, [1]],
    "token_learning_rate": [value for value in ABOVE_0 if value is not None],
    "weighting": ["abc", 5, True, {"gamma": 5}],
    "weights_precision": [*NAME, "fp16"],
    "zero_terminal_snr": TRUTH,
    "r": COUNT_FROM_0,
    "use_dora": TRUTH,
    "oft_block_size": COUNT_FROM_0,
    "lora_alpha": ABOVE_0,
    "target_modules": ["to_q", [], [5], [".*"], None],
    "token": ["", "a dog", 5, None, True],
    "initial_word": TEXT,
    "vectors": COUNT,
    "d_coef": ABOVE_0,
    "use_bias_correction": TRUTH,
    "safeguard_warmup": TRUTH,
    "beside": ["abc", 5, True, {"r": 5}],
    "first": COUNT_FROM_0,
    "end": STEPS_OR_NONE,
    "offset_noise": NUMBER_FROM_0,
    "start": TEXT_OR_NONE,
}
"""Wrong values of each key."""

EVALUATION = {
    "images_per_prompt": COUNT,
    "class_images": COUNT,
    "deepcache": STEPS_OR_NONE,
    "others": [None, 5, "abc", [5], {"a": 5}, {"a": ""}],
    "class_prompt": TEXT,
    "prompts": TEXT,
    "lpips": ["vgg16", 5, True, ""],
    "diversity": NAME,
    "live_classes": ["cat", [5], [""], None],
    "pair_prompts": [None, [], "{} and {}", ["a photo of {}"], ["{} and {x}"], ["{} {} {}"], [5]],
    "prompt_sets": [None, [], {"a": "b"}, {"a": []}, {"a": [5]}],
    "published": [None, 5, [5], {"a": 1}],
}
"""The keys of evaluation that no run has, or of another type there."""

NETWORKS = (
    "model.params.network.",
    "model.params.unet.",
    "model.params.text_encoder.",
    "model.params.scheduler.",
)


def all_settings():
    """(config, path) of every key of every shipped config, once for each of its types."""
    seen = set()
    for files in RUNS:
        config = load_config(files)
        for setting in settings(config):
            about = (setting.path, str(setting.annotation))
            if about not in seen and not setting.path.endswith("._class_name"):  # a library's note to itself
                seen.add(about)
                yield config, setting.path


def with_value(config, path, value):
    """A copy of `config` with another value at `path`."""
    config = node = copy.deepcopy(config)
    *parents, key = path.split(".")
    for parent in parents:
        node = node[int(parent) if isinstance(node, list) else parent]
    node[key] = value
    return config


def told(config):
    """The message that refuses a config, from its check or its networks; empty if accepted."""
    try:
        check(config)
        if config["model"]["target"].startswith("ldm.world."):
            with torch.device("meta"):
                instantiate_from_config(config["model"])
    except UserError as error:
        return str(error)
    return ""


def wrong_values(path):
    if path.startswith(NETWORKS):
        return OF_LIBRARY
    group, key = path.split(".")[-2:] if "." in path else ("", path)
    assert key in WRONG, f"{path} is a new key: give it a row in WRONG"
    return WRONG.get(f"{group}.{key}", WRONG[key])


def test_every_key_of_every_shipped_config_refuses_what_it_is_not():
    missed, count = [], 0
    for config, path in all_settings():
        for value in wrong_values(path):
            line = told(with_value(config, path, value))
            count += 1
            if path.rpartition(".params.")[0] not in line or "\n" in line or not 0 < len(line) < 400:
                missed.append((path, value, line))
    assert missed == []
    assert count > 700


def test_every_key_of_the_evaluation_refuses_what_it_is_not():
    config = load_settings([CONFIGS / "evaluation.yaml"], EvaluationSettings)
    paths = [*(key for key in config if key not in ("networks", "sampling"))]
    paths += [f"{section}.{key}" for section in ("networks", "sampling") for key in config[section]]
    for path in paths:
        key = path.rpartition(".")[2]
        for value in EVALUATION.get(key) or WRONG[key]:
            with pytest.raises(UserError) as error:
                check_as(with_value(config, path, value), EvaluationSettings)
            assert f"config: {path} is " in str(error.value)


@pytest.mark.parametrize(
    "files", RUNS, ids=lambda files: files[-1].stem if hasattr(files[-1], "stem") else "recipe"
)
def test_every_shipped_config_is_right(files):
    load_config(files)
