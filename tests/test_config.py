"""Configs: merged left to right, complete, and without unknown keys."""

from typing import get_args

import pytest
import yaml
from pytorch_lightning import Callback

from ldm.config import load_config, override, read_plain
from ldm.errors import UserError
from ldm.schema import unaffecting
from ldm.targets import get_class, instantiate_from_config, parameters
from ldm.values import is_provided
from tests.conftest import PROJECT, RECIPE

OVERLAYS = ["debug", "fidelity", "wandb"]


@pytest.fixture
def overlay(tmp_path):
    def write(text, name="overlay.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_later_files_and_words_win(overlay):
    config = load_config([RECIPE, overlay("seed: 1\ndata:\n  params:\n    size: 128\n")], ["seed=2"])
    assert config["seed"] == 2
    assert config["data"]["params"]["seed"] == 2  # ${seed}
    assert config["data"]["params"]["size"] == 128
    assert config["data"]["params"]["class_word"] == "dog"


def test_numbers_are_numbers():
    config = load_config([RECIPE], ["model.params.learning_rate=1e-6", "lightning.trainer.max_steps=800"])
    assert config["model"]["params"]["learning_rate"] == 1e-6
    assert config["lightning"]["trainer"]["max_steps"] == 800


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.params.siez=64"], "data.params.siez'; did you mean 'size'"),
        (["model.params.learning_rat=1"], "did you mean 'learning_rate'"),
        (["lightning.trainer.max_step=1"], "did you mean 'max_steps'"),
        (["sed=1"], "did you mean 'seed'"),
        (["data.params.prior.cuont=1"], "did you mean 'count'"),
        (["lightning.callbacks.samples.params.seeds=1"], "did you mean 'seed'"),
        (["model.params.optimizer.params.beta=1"], "did you mean 'betas'"),
        (["model.target=ldm.models.nowhere.Nothing"], "cannot import target"),
        (["nonsense"], "key.sub=value"),
        (["data.params.size=${nowhere}"], "nowhere"),
    ],
)
def test_a_misspelt_key_is_an_error_that_suggests_the_right_one(words, message):
    with pytest.raises(UserError) as error:
        load_config([RECIPE], words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_misspelt_in_an_overlay_names_the_file(overlay):
    path = overlay("data:\n  params:\n    prior:\n      guidance_scal: 1\n")
    with pytest.raises(UserError, match=r"overlay\.yaml: unknown key 'data\.params\.prior\.guidance_scal'"):
        load_config([RECIPE, path])


@pytest.mark.parametrize(
    "text", ["a: [", "- 1\n- 2\n", "a: b: c\n", "a: " + "[" * 10**5 + "]" * 10**5, "{a: " * 60 + "}" * 60]
)
def test_a_file_that_is_no_config(overlay, text):
    with pytest.raises(UserError, match=r"overlay\.yaml"):
        load_config([RECIPE, overlay(text)])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("seed: 1\nmodel: {}\nseed: 2\n", r"found duplicate key seed \(line 3, column 1\)"),
        ("model:\n\tparams: {}\n", r"found character .*\(line 2, column 1\)"),
        ("model: {params: {learning_rate: 1.0}", r"\(line \d, column \d+\)"),
    ],
)
def test_a_mistake_in_yaml_is_told_with_its_line(overlay, text, told):
    with pytest.raises(UserError, match=rf"overlay\.yaml: .*{told}$"):
        load_config([RECIPE, overlay(text)])


def test_the_complete_recipe_comes_first():
    overlay = PROJECT / "configs" / "debug.yaml"
    with pytest.raises(UserError, match="unknown key 'seed'; put the complete recipe first"):
        load_config([overlay, RECIPE])
    with pytest.raises(UserError, match="the first of --base is a complete recipe"):
        load_config([PROJECT / "configs" / "stable-diffusion" / "v1.yaml"])


def test_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config(["nowhere.yaml"])


def test_a_new_target_replaces_its_params():
    config = load_config([RECIPE], ["model.params.optimizer.target=torch.optim.SGD"])
    assert config["model"]["params"]["optimizer"] == {"target": "torch.optim.SGD"}


def test_null_removes_a_callback():
    config = load_config([RECIPE], ["lightning.callbacks.samples=null"])
    assert config["lightning"]["callbacks"]["samples"] is None


def test_nested_targets_arrive_as_partials():
    config = load_config([RECIPE])
    sgd = {"target": "torch.optim.SGD", "params": {"lr": 0.5}}
    node = {"target": "builtins.dict", "params": {"optimizer": sgd, "size": 3}}
    built = instantiate_from_config(node, trust=["builtins"])
    assert built["optimizer"].keywords == {"lr": 0.5}
    assert built["size"] == 3
    assert config["model"]["params"]["optimizer"]["target"] == "torch.optim.AdamW"


def test_a_saved_config_holds_no_references(overlay):
    path = overlay("model: {params: {base: '${oc.env:HOME}'}}\n")
    with pytest.raises(UserError, match=r"'\$\{oc.env:HOME\}' is not allowed"):
        read_plain(path)


def test_each_class_says_which_of_its_settings_leave_the_loss_record_as_it_is():
    assert unaffecting(load_config([RECIPE])) == {
        *(
            f"data.params.{key}"
            for key in ("batch_size", "captions", "data_root", "num_workers", "reg_data_root")
        ),
        *(f"data.params.prior.{key}" for key in ("cache", "cache_gigabytes", "fill_at_start")),
        *(f"lightning.trainer.{key}" for key in ("accelerator", "accumulate_grad_batches", "deterministic")),
        "lightning.trainer.max_time",
        *(f"lightning.trainer.{key}" for key in ("devices", "num_nodes", "strategy")),
        *(
            f"model.params.{key}"
            for key in ("base", "compile", "cuda_graphs", "ema", "export_dtype", "gradient_checkpointing")
        ),
        *(f"model.params.{key}" for key in ("revision", "use_ema", "vae", "variant")),
    }
    toy = unaffecting(load_config([PROJECT / "configs" / "toy" / "base.yaml"]))
    assert {"model.params.total_steps", "model.params.latent_cache", "data.params.cache"} <= toy
    assert not {"model.params.learning_rate", "data.params.count", "data.params.seed", "seed"} & toy


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_fit_the_recipe(name):
    override(load_config([RECIPE, PROJECT / "configs" / f"{name}.yaml"]), [])


def test_every_key_of_the_recipe_is_a_parameter_and_every_parameter_a_key():
    """The first YAML has every key that can be set."""
    config = load_config([RECIPE, PROJECT / "configs" / "fidelity.yaml"])  # the one callback it leaves out
    nodes = [config["model"], config["data"], *config["lightning"]["callbacks"].values()]
    for node in nodes:
        hints = parameters(get_class(node["target"]))
        # A callback that another uses is handed to it, as the subjects are to the model, and never set by a config.
        settable = {name for name, hint in hints.items() if not (names_a_callback(hint) or is_provided(hint))}
        assert set(node["params"]) == settable, node["target"]


def names_a_callback(hint):
    return any(isinstance(kind, type) and issubclass(kind, Callback) for kind in (hint, *get_args(hint)))


def test_every_key_of_the_recipe_says_what_it_is():
    lines = (PROJECT / "configs" / "dreambooth.yaml").read_text().splitlines()
    known = {"seed", "target", "params", "model", "data", "lightning", "logger", "callbacks", "num_nodes"}
    known |= {"sampler", "steps", "guidance_scale", "progress", "every_steps", "log_every_steps", "prompts"}
    known |= {"every_minutes", "optimizer", "prior"}
    for line in lines:
        key = line.strip().split(":")[0]
        if ":" in line and not line.strip().startswith(("#", "-")) and key not in known:
            assert "#" in line, line


def test_the_recipe_is_plain_yaml():
    assert isinstance(yaml.safe_load((PROJECT / "configs" / "dreambooth.yaml").read_text()), dict)
