"""A run's page: its content, its updates, and its look in a browser."""

import json
import shutil
import signal
from pathlib import Path

import pytest

from ldm.data.images import image_files
from ldm.training.report import RunReport
from ldm.training.run_page import Album, run_page
from ldm.training.run_record import RunRecord, state_of
from tests.browser import assert_sound, chromium, opened
from tests.conftest import PROJECT
from tests.runs import at_call, send
from tests.test_report import Page

__all__ = ["chromium"]


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory) -> Path:
    """A finished run with fidelity-like rows, and a setting that is not the recipe's."""
    from main import main
    from tests.conftest import RECIPE

    logs = tmp_path_factory.mktemp("logs")
    words = ["model.params.prior_loss_weight=0.5", "lightning.callbacks.samples.params.every_steps=2"]
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), "-n", "<b>&", *words]) == 0
    return next(logs.iterdir())


@pytest.fixture(scope="module")
def html(run) -> str:
    return (run / "report.html").read_text()


def test_the_page_tells_the_run(run, html):
    page = Page(html)
    told = " ".join(" ".join(page.text).split())
    assert page.fetched == []
    assert "finished" in told
    assert "10 of 10" in told
    assert f"python scripts/evaluate.py --ckpt {run}" in told
    for name in ("validation", "fidelity"):
        assert name in told
    last = json.loads((run / "validation.jsonl").read_text().splitlines()[-1])
    assert all(f"{last[key]:.4f}" in told for key in ("subject_loss", "drift", "score"))
    assert "model.params.prior_loss_weight 1.0 0.5" in told
    for number, word in {"torch": "2.", "Python": "3."}.items():
        assert f"{number} {word}" in told
    assert json.loads(page.data)["validation"][-1] == last


def test_every_picture_is_inside(run, html):
    """6 sheets of 3 prompts x 2 seeds, 5 photographs, 8 prior samples."""
    assert len(list((run / "images").glob("step-*.png"))) == 6
    assert len(Page(html).pictures) == 6 * 6 + len(image_files(PROJECT / "assets/subject/dog")) + 8


def test_time_and_memory_are_kept(run):
    (row,) = json.loads((run / "configs" / "usage.json").read_text())
    assert (row["start"], row["from_step"], row["to_step"]) == (0, 0, 10)
    assert row["seconds"] > 0
    assert row["peak_memory"] > 10_000_000
    assert 0 < row["seconds_of_pages"] < row["seconds"]
    start = json.loads((run / "configs" / "start-000.json").read_text())
    assert start["machine"]["host"]


def test_the_page_is_kept_up_to_date_and_a_stopped_run_says_how_to_go_on(train, tmp_path, monkeypatch):
    kept = tmp_path / "kept.html"
    at_call(monkeypatch, RunReport, "write", [2], lambda: shutil.copy(next(page()), kept))
    at_call(monkeypatch, RunReport, "on_step", [6], send(signal.SIGTERM))

    def page():
        return (tmp_path / "logs").rglob("report.html")

    run = train("lightning.callbacks.samples=null", expect=75)
    assert "at step 0 of 10, when this page was written" in " ".join(kept.read_text().split())
    told = " ".join((run / "report.html").read_text().split())
    assert "until step 6 of 10; everything is saved" in told
    assert f"python main.py --resume {run}" in told
    assert state_of(run).words == "resumable at step 6 of 10"


def test_a_page_that_cannot_be_written_costs_nothing_but_a_warning(train, capsys, monkeypatch):
    from ldm.training import report

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "run_page", full)
    run = train("lightning.callbacks.samples=null", "lightning.trainer.max_steps=2")
    assert not (run / "report.html").exists()
    assert "report.html cannot be written (No space left on device)" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_has_a_page_too(run, tmp_path):
    """Sheets without the places of their pictures, no usage, no machine; columns of several subjects."""
    old = tmp_path / "old"
    shutil.copytree(run, old, ignore=shutil.ignore_patterns("checkpoints", "usage.json", "prior*"))
    for path in (old / "images").glob("*.png"):
        from PIL import Image

        Image.open(path).convert("RGB").save(path)
    rows = [json.loads(line) for line in (old / "metrics.jsonl").read_text().splitlines()]
    rows = [{**row, "subject_loss_rex": 0.25, "prior_loss": float("nan")} for row in rows]
    (old / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fidelity = [{"step": step, "dino_rex": 0.5 + step / 100} for step in (0, 5, 10)]
    (old / "fidelity.jsonl").write_text("".join(json.dumps(row) + "\n" for row in fidelity))
    record = RunRecord.read(old)
    told = run_page(record, state_of(old), Album())
    assert len(Page(told).pictures) == 6
    assert "Subject loss, rex" in told
    assert "DINO, rex higher is better" in " ".join(" ".join(Page(told).text).split())
    assert "nan" not in " ".join(Page(told).text).lower().split()


def test_in_a_browser(run, chromium):
    assert_sound(chromium, run / "report.html")


def test_the_slider_and_the_keyboard(run, chromium):
    with opened(chromium, run / "report.html") as page:
        shown = "figure[data-step]:visible"
        assert page.locator(shown).count() == 6
        assert page.locator(shown).first.get_attribute("data-step") == "10"
        page.focus("#step")
        page.keyboard.press("ArrowLeft")
        assert {f.get_attribute("data-step") for f in page.locator(shown).all()} == {"8"}
        assert page.locator("#step-said").inner_text() == "step 8"
        assert page.get_attribute("#step", "aria-valuetext") == "step 8"
        page.keyboard.press("Home")
        assert page.locator("#step-said").inner_text() == "step 0"
        box = page.locator("#step").bounding_box()
        page.mouse.move(box["x"] + 4, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.61, box["y"] + box["height"] / 2, steps=5)
        page.mouse.up()
        assert page.locator("#step-said").inner_text() == "step 6"
        assert "at 6" in page.locator("output[data-points]").first.inner_text()
        page.check("input[value=all]")
        assert page.locator(shown).count() == 36
        assert page.locator("figcaption:visible", has_text="seed 23 step 4").count() == 3


def test_without_scripts_everything_is_shown(run, chromium):
    with opened(chromium, run / "report.html", script=False) as page:
        assert page.locator("figure[data-step]:visible").count() == 36
        assert page.locator("#timeline:visible").count() == 0
