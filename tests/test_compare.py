"""Runs beside one another: the list, the states in it, and the page that compares."""

import json
import shutil
import signal

import pytest

from ldm.training import run_folder
from ldm.training.compare import listing
from ldm.training.report import RunReport
from ldm.training.run_record import RunRecord, state_of
from scripts import compare, runs
from tests.browser import assert_sound, chromium, opened
from tests.runs import at_call, send
from tests.test_report import Page

__all__ = ["chromium"]

INTERVAL = {"value": 0.731, "low": 0.7, "high": 0.76, "count": 100}


@pytest.fixture
def logs(train, tmp_path, monkeypatch):
    """A finished run that was evaluated, and one that was stopped, with another weight of the prior."""
    words = ("lightning.callbacks.samples.params.every_steps=2", "lightning.logger=null")
    first = train(*words, "lightning.trainer.max_steps=4")
    at_call(monkeypatch, RunReport, "on_step", [3], send(signal.SIGTERM))
    second = train(*words, "model.params.prior_loss_weight=0.25", name="other", expect=75)
    folder = tmp_path / "together"
    folder.mkdir()
    for run, name in ((first, "dog1_first"), (second, "dog2_<b>")):
        shutil.move(run, folder / name)
    (folder / "dog1_first" / "evaluation").mkdir()
    (folder / "dog1_first" / "evaluation" / "metrics.json").write_text(
        json.dumps({"metrics": {"dino": INTERVAL}})
    )
    return folder


def test_runs_are_listed_and_compared(logs, capsys, chromium):
    assert runs.main([str(logs)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "subject", "state", "subject", "loss", "drift", "size"]
    assert lines[0].startswith("dog1_first  sks dog  finished")
    assert lines[1].startswith("dog2_<b>    sks dog  resumable at step 3 of 10")
    last = RunRecord.read(logs / "dog1_first").validation[-1]
    assert f"{last['subject_loss']:.4f}" in lines[0]

    assert compare.main(["--logdir", str(logs)]) == 0
    assert capsys.readouterr().out.splitlines() == [head, *lines]

    assert compare.main([str(logs / "dog1_first"), str(logs / "dog2_<b>")]) == 0
    path = logs / "compare.html"
    assert capsys.readouterr().out.strip() == str(path)
    page = Page(path.read_text())
    told = " ".join(" ".join(page.text).split())
    assert "model.params.prior_loss_weight 1.0 0.25" in told
    assert "lightning.trainer.max_steps 4 10" in told
    assert "data.params.class_word" not in told
    assert "0.731 0.700 to 0.760" in told
    assert page.fetched == []
    assert len(page.pictures) == 3 * 2 * (
        3 + 2
    )  # prompts x seeds x (steps 0, 2, 4 of one run, 0, 2 of the other)
    assert_sound(chromium, path)
    with opened(chromium, path) as shown:
        shown.fill("#step", "1")
        assert shown.locator("#step-said").inner_text() == "step 2"
        assert shown.locator("figure[data-step]:visible").count() == 12
        shown.fill("#step", "2")
        assert shown.locator("figcaption:visible", has_text="A first step 4").count() == 6
        assert shown.locator("figcaption:visible", has_text="B <b> step 2").count() == 6


def test_what_has_become_of_a_run(logs):
    run = logs / "dog2_<b>"
    assert state_of(run).words == "resumable at step 3 of 10"
    with run_folder.lock(run):
        assert state_of(run).words == "running at step 3 of 10"
    last = run / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[: len(content) // 2])
    assert state_of(run).words.startswith("damaged: ")
    middle = len(content) // 2
    last.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert state_of(run, every_byte=True).words.startswith("damaged: ")
    last.unlink()
    assert state_of(run).words == "resumable at step 0 of 10"
    (run / "configs" / "config.yaml").write_text("[1]")
    assert "damaged: " in listing(logs)


@pytest.mark.parametrize(
    ("script", "words", "told"),
    [
        (compare, ["nowhere"], "nowhere: no such run folder"),
        (compare, ["configs"], "configs is no run folder"),
        (runs, ["nowhere"], "nowhere: no such folder of runs"),
    ],
)
def test_what_is_no_run_is_told(capsys, script, words, told):
    assert script.main(words) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1
