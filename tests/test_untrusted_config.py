"""A run folder or checkpoint that a stranger made: its config reaches for nothing and builds nothing of its own."""

import os
import shutil
import subprocess

import pytest
import torch
import yaml

from ldm.config import override, read_plain, save_config
from ldm.errors import UserError
from ldm.methods.load import load_for_sampling
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, resume, state


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run of 10 steps. Copy it before you change it."""
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
    assert "is refused in a run's own config" in told
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
    assert "YAML aliases are refused" in capsys.readouterr().err


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
    """transformers would run such files with trust_remote_code, which is never given."""
    base = shutil.copytree(tiny, tmp_path / "base")
    config = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (base / "tokenizer" / "tokenizer_config.json").write_text(yaml.safe_dump(config, default_flow_style=True))
    (base / "tokenizer" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    main(["-b", RECIPE, str(tiny_config), "-l", str(tmp_path), "--actual_resume", str(base), "-t", "false"])
    assert not (tmp_path / "ran").exists()
