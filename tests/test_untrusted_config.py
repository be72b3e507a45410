"""A stranger's run folder or checkpoint: its config cannot read outside files or build its own classes."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Callback

from ldm.config import load_config, override, read_plain, save_config
from ldm.errors import UserError
from ldm.methods.all_weights import AllWeights
from ldm.methods.load import load_for_sampling
from ldm.values import Count
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, resume, state


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run of 10 steps. Copy it before changing it."""
    logs = tmp_path_factory.mktemp("finished")
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *QUICK]) == 0
    return next(logs.iterdir())


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(run, path: str, value) -> None:
    """Set one key of a run's own config."""
    config = node = yaml.safe_load((run / "configs" / "config.yaml").read_text())
    *parents, key = path.split(".")
    for parent in parents:
        node = node[parent]
    node[key] = value
    (run / "configs" / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.mark.parametrize(
    "value", ["${oc.env:SECRET}", "x-${oc.env:SECRET,none}", "${oc.decode:1}", "${model.params.base}"]
)
@pytest.mark.parametrize("path", ["model.params.base", "data.params.prompt", "lightning.trainer.strategy"])
def test_references_in_a_runs_config_are_refused(run, monkeypatch, capsys, path, value):
    monkeypatch.setenv("SECRET", "hunter2")
    edit(run, path, value)
    assert resume(run, "lightning.trainer.max_steps=11") == 2
    told = capsys.readouterr().err
    assert "is not allowed in a run's own config" in told
    assert "hunter2" not in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "importlib.import_module",
        "subprocess.Popen",
        "torch.load",
        "ldm.training.run_folder.subprocess.Popen",  # what a module of the project imports is not the project's
        "ldm.training.run_folder.shutil",
        "ldm.training.run_folder.remove_temporaries",  # nor is every function of it meant to be called
        "ldm.formats.hub.fetch",
        "ldm.data.datamodule.Path",
        "ldm.methods.dreambooth.Callable",
    ],
)
@pytest.mark.parametrize(
    "path",
    ["model.target", "model.params.optimizer.target", "data.target", "lightning.callbacks.progress.target"],
)
def test_targets_in_a_runs_config_are_the_projects_or_named(run, monkeypatch, capsys, path, target):
    started = []
    monkeypatch.setattr(os, "system", lambda *_: started.append("os.system"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: started.append("Popen"))
    edit(run, path, target)
    assert resume(run, "lightning.trainer.max_steps=11") == 2
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert "if you trust it, add --trust" in told or "cannot import target" in told
    assert not started


EVIL = """
lightning:
  callbacks:
    evil:
      target: {target}
      params: {{command: touch {mark}}}
"""


@pytest.mark.parametrize(
    "target", ["os.system", "subprocess.Popen", "evil_package.Callback", "torch.load", "tests"]
)
@pytest.mark.parametrize("train", ["true", "false"])
def test_a_strangers_recipe_builds_nothing_of_its_own(
    tiny_config, tmp_path, monkeypatch, capsys, target, train
):
    mark = tmp_path / "ran"
    (tmp_path / "evil_package.py").write_text(f"open({str(mark)!r}, 'w')")
    (tmp_path / "recipe.yaml").write_text(EVIL.format(target=target, mark=mark))
    monkeypatch.syspath_prepend(tmp_path)
    words = ["-b", RECIPE, str(tiny_config), str(tmp_path / "recipe.yaml"), "-l", str(tmp_path / "logs")]
    assert main([*words, "-t", train]) == 2
    told = capsys.readouterr().err.strip()
    assert f"target '{target}' is not a class of this project" in told
    assert told.endswith(f"if you trust it, add --trust {target.split('.')[0]}")
    assert len(told.splitlines()) == 1
    assert not mark.exists()
    assert not (tmp_path / "logs").exists()


class Own(Callback):
    """A class written by a user of this project."""

    def __init__(self, times: Count = 1):
        self.times = times

    def on_train_start(self, trainer, pl_module) -> None:
        (Path(trainer.default_root_dir) / "own.txt").write_text(str(self.times))


class OwnTuning(AllWeights):
    """A user's own tuning."""


def test_what_the_user_trusts_is_built_and_checked_and_a_resume_asks_again(tiny_config, tmp_path, capsys):
    own = {"target": "tests.test_untrusted_config.Own", "params": {"times": 3}}
    tuning = {"tuning": {"target": "tests.test_untrusted_config.OwnTuning"}}
    overlay = {"model": {"params": tuning}, "lightning": {"callbacks": {"own": own}}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(overlay))
    words = ["-b", RECIPE, str(tiny_config), str(tmp_path / "own.yaml"), "-l", str(tmp_path / "logs"), *QUICK]
    trust = ["--trust", "tests"]
    assert main([*words, *trust, "lightning.callbacks.own.params.times=0"]) == 2
    assert "own.params.times is 0: it must be a whole number of at least 1" in capsys.readouterr().err
    assert main([*words, *trust]) == 0
    run = next((tmp_path / "logs").iterdir())
    assert (run / "own.txt").read_text() == "3"
    assert "--trust" in json.loads((run / "configs" / "start-000.json").read_text())["command"]
    more = "lightning.trainer.max_steps=11"
    assert resume(run, more) == 2
    assert capsys.readouterr().err.strip().endswith("if you trust it, add --trust tests")
    assert resume(run, more, *trust) == 0
    with pytest.raises(UserError, match="if you trust it, add --trust tests"):
        load_for_sampling(run)
    assert load_for_sampling(run, trust=["tests"]).step == 11


@pytest.mark.parametrize(
    ("word", "key"),
    [
        *[(f"name={place}", "name is ") for place in ("/tmp/abs", "..", "../x", "a/b", '"a\\0"')],
        *[(f"version={place}", "version is ") for place in ("/tmp/abs", "..", "../x", "a/b")],
        ("save_dir=/tmp/abs", "unknown key 'lightning.logger.params.save_dir'"),
        ("sub_dir=../x", "unknown key 'lightning.logger.params.sub_dir'"),
        ("filename_suffix=/../../x", "unknown key 'lightning.logger.params.filename_suffix'"),
    ],
)
@pytest.mark.parametrize("kind", ["TensorBoardLogger", "CSVLogger", "WandbLogger"])
def test_a_logger_stays_in_its_run(tmp_path, kind, word, key):
    words = [f"lightning.logger.target=pytorch_lightning.loggers.{kind}", f"lightning.logger.params.{word}"]
    with pytest.raises(UserError, match=re.escape(key)):
        load_config([RECIPE], words)


@pytest.mark.parametrize(
    "word", ["dir=/tmp/abs", "settings={x_executable: /tmp/evil}", "id=../x", "experiment=1"]
)
def test_wandb_is_told_nothing_that_starts_programs_or_leaves_the_run(word):
    words = [
        "lightning.logger.target=pytorch_lightning.loggers.WandbLogger",
        f"lightning.logger.params.{word}",
    ]
    with pytest.raises(UserError, match=r"unknown key 'lightning\.logger\.params\."):
        load_config([RECIPE], words)


def test_what_the_project_itself_writes_is_trusted(run):
    override(read_plain(run / "configs" / "config.yaml"), [])


def test_yaml_that_would_run_code(run, capsys, tmp_path):
    path = run / "configs" / "config.yaml"
    path.write_text(f"seed: !!python/object/apply:os.system ['touch {tmp_path}/ran']\n" + path.read_text())
    assert resume(run) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "ran").exists()


def test_yaml_that_would_fill_the_memory(run, capsys):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (run / "configs" / "config.yaml").write_text("\n".join(lines))
    assert resume(run) == 2
    assert "YAML aliases are not allowed" in capsys.readouterr().err


def test_yaml_that_would_overflow_the_stack(run, capsys):
    """Refused at once: libyaml itself takes a minute for it."""
    (run / "configs" / "config.yaml").write_text("a: " + "[" * 200_000)
    assert resume(run) == 2
    assert "nested more than 50 levels deep" in capsys.readouterr().err


def test_a_saved_config_has_no_aliases(tmp_path):
    shared = [1, 2]
    save_config({"a": shared, "b": shared, "c": {"d": shared}}, tmp_path / "config.yaml")
    assert read_plain(tmp_path / "config.yaml") == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}


def test_the_config_inside_a_checkpoint_is_not_resolved_either(run, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", str(tmp_path))
    content = state(run)
    content["base"] = content["config"]["model"]["params"]["base"] = "${oc.env:SECRET}"
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with pytest.raises(UserError, match=r"\$\{oc.env:SECRET\} not found"):
        load_for_sampling(path)


def test_a_target_in_the_config_inside_a_checkpoint_is_never_built(run, monkeypatch, tmp_path, capsys):
    """Only the run folder's config is built from, and it is compared with the checkpoint's."""
    content = state(run)
    content["config"]["model"]["params"]["optimizer"]["target"] = "os.system"
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("it was called"))
    torch.save(content, run / "checkpoints" / "last.ckpt")
    assert resume(run, "lightning.trainer.max_steps=11") == 2
    assert "model.params.optimizer.target was os.system, now torch.optim.AdamW" in capsys.readouterr().err


def test_a_tokenizer_that_is_no_tokenizer(tiny, tmp_path, capsys, tiny_config):
    base = shutil.copytree(tiny, tmp_path / "base")
    for name, text in {"tokenizer.json": "{", "vocab.json": "[]", "merges.txt": "\0"}.items():
        (base / "tokenizer" / name).write_text(text)
    assert (
        main(["-b", RECIPE, str(tiny_config), "-l", str(tmp_path / "logs"), "--actual_resume", str(base)])
        == 2
    )
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "logs").exists()


def test_a_tokenizer_that_names_code_runs_none_of_it(tiny, tmp_path, tiny_config):
    """transformers would run such files with trust_remote_code, which is never set."""
    base = shutil.copytree(tiny, tmp_path / "base")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (base / "tokenizer" / "tokenizer_config.json").write_text(yaml.safe_dump(config, default_flow_style=True))
    (base / "tokenizer" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    main(["-b", RECIPE, str(tiny_config), "-l", str(tmp_path), "--actual_resume", str(base), "-t", "false"])
    assert not (tmp_path / "ran").exists()
