"""A run's output: one bar on a terminal, occasional lines in a file, messages at its start and end."""

import re
import sys
import time

import pytest

from ldm import console
from ldm.console import counted, phase, progress_bar, run_bar
from ldm.methods.dreambooth import DreamBooth
from ldm.training.messages import advice_on_threads, busy_cores, duration
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, at_call


@pytest.fixture
def log(monkeypatch, capsys):
    """Write lines at a given interval; returns a function that returns the output."""
    monkeypatch.setattr(console, "LINE_EVERY", 0.0)
    return lambda: capsys.readouterr().err


def test_a_log_file_gets_lines_and_no_carriage_returns(log):
    with run_bar(4, "training", "step") as bar:
        for _ in range(4):
            with phase("prior samples", 2) as advance:
                advance()
            bar.set_postfix_str("subject 0.1000")
            bar.update()
    told = log()
    assert "\r" not in told
    assert "prior samples 1/2: 3 of 4" in told
    assert re.search(r"^training: 4 of 4, 00:00 so far, 00:00 left, .*subject 0.1000$", told, re.M)


def test_a_log_file_gets_few_lines(capsys):
    with run_bar(1000, "training", "step") as bar:
        for _ in range(1000):
            with phase("validation"):
                bar.update()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith("training: 1000 of 1000, ")


def test_a_bar_counts_in_whole_units(log):
    with progress_bar(4, "sampling", "image", initial=1) as bar:
        for _ in range(3):
            bar.update()
    assert {line.partition(",")[0] for line in log().splitlines()} == {
        f"sampling: {n} of 4" for n in (1, 2, 3, 4)
    }


def test_items_are_counted_as_they_are_done(log):
    assert [item for item in counted(range(3), "drawing", "picture")] == [0, 1, 2]
    assert re.fullmatch(r"(drawing: \d of 3, .*\n)+", told := log())
    assert told.splitlines()[-1].startswith("drawing: 3 of 3, ")


def test_a_phase_without_a_run_has_a_bar_of_its_own(log):
    with phase("prior samples 1-4 of 8", 2) as advance:
        advance()
    assert "prior samples 1-4 of 8: 1 of 2" in log()


@pytest.mark.parametrize(
    ("seconds", "words"), [(7.6, "8 s"), (80, "1 min 20 s"), (7500, "2 h 05 min"), (0.2, "0 s")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_run_on_a_terminal(train, monkeypatch, capsys):
    """One bar shows losses and phases; the first message describes the plan, the last the results."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run = train()
    out, err = capsys.readouterr()
    for name, words in {
        "run folder": str(run),
        "device": "cpu",
        "base": "parameters train",
        "subject": "5 photographs in assets/subject/dog",
        "prompts": "'a photo of sks dog' for it, 'a photo of a dog' for its class",
        "steps": "10 of 2 samples each",
    }.items():
        assert [line for line in out.splitlines() if line.startswith(name) and words in line], name
    shown = err.split("\r")
    for title in ("validation", "samples 9/9", "saving", "prior samples 1-4 of 8 3/3"):
        assert [line for line in shown if line.startswith(f"{title}: ") and "/10 [" in line], title
    assert re.search(r"training: 100%.* 10/10 \[.*subject \d\.\d{4}, prior \d\.\d{4}\]", err)
    end = out[out.index("trained in") :]
    assert re.search(r"subject loss (fell|rose) from \d\.\d{4} to \d\.\d{4}", end)
    assert "drift of the class" in end
    assert "score, the sum of the two (lower is better)" in end
    assert f"python scripts/evaluate.py --ckpt {run}" in end
    assert f"Look at {run}/report.html, or {run}/images/step-000010.png" in end


def test_a_run_that_is_written_to_a_file(train, capsys):
    run = train("lightning.callbacks.samples=null", "lightning.trainer.max_steps=3")
    told = capsys.readouterr().err
    assert run.is_dir()
    assert "\r" not in told
    assert len([line for line in told.splitlines() if line.startswith("training: ")]) == 1


def test_runs_are_named_after_all_their_configs(tiny_config, tmp_path, capsys):
    words = ["-b", RECIPE, "configs/debug.yaml", str(tiny_config), "-l", str(tmp_path), *QUICK]
    assert main([*words, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=1"]) == 0
    (run,) = tmp_path.iterdir()
    assert run.name.endswith("_dreambooth_debug_tiny")


@pytest.mark.parametrize(
    ("load", "threads", "advised"), [(0.3, 2, False), (1.2, 2, True), (1.2, 1, False), (3.0, 4, False)]
)
def test_a_shared_machine_is_noticed(monkeypatch, load, threads, advised):
    monkeypatch.setattr("ldm.training.messages.busy_cores", lambda: load)
    monkeypatch.setattr("os.cpu_count", lambda: 8 if threads == 4 else 2)
    assert ("OMP_NUM_THREADS=1" in advice_on_threads(threads)) is advised


def test_other_work_is_measured_as_it_is_now(monkeypatch):
    ticks = iter([(100, 400), (110, 440)])  # idle for 10 of 40
    monkeypatch.setattr("ldm.training.messages.core_times", lambda: next(ticks))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert busy_cores(seconds=0) == 1.5


def test_without_proc_the_load_average_tells(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    monkeypatch.setattr("os.getloadavg", lambda: (1.2, 0.0, 0.0))
    assert busy_cores() == 1.2


def test_the_time_left_leaves_a_slow_first_step_out(train, monkeypatch, capsys):
    """A first step of 4 s would make it 16 s at the pace of all ten."""
    at_call(monkeypatch, DreamBooth, "training_step", {1}, lambda: time.sleep(4))
    train(*QUICK, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=50")
    left = re.search(r"about (\d+) s left at the pace of steps 2 to 10", capsys.readouterr().err)
    assert left is not None
    assert int(left[1]) < 10
