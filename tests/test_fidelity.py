"""The fidelity callback, through main: it measures at each validation, changes nothing, and resumes."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from ldm.errors import UserError
from ldm.methods.load import load_for_sampling
from ldm.training.rows import read_rows
from ldm.training.run_record import RunRecord
from ldm.training.validation import Validation
from main import main
from tests.conftest import PROJECT, RECIPE
from tests.test_report import Page
from tests.tiny_features import tiny_features


@pytest.fixture
def with_fidelity(tmp_path) -> str:
    """An overlay: configs/fidelity.yaml with tiny networks and few samples."""
    clip, dino = tiny_features(tmp_path / "features")
    overlay = yaml.safe_load((PROJECT / "configs" / "fidelity.yaml").read_text())
    params = overlay["lightning"]["callbacks"]["fidelity"]["params"]
    params.update({"dino": str(dino), "clip": str(clip), "steps": 2, "per_prompt": 2})
    path = tmp_path / "fidelity.yaml"
    path.write_text(yaml.safe_dump(overlay))
    return str(path)


def trained(folder: Path, *configs) -> Path:
    assert main(["--base", RECIPE, *map(str, configs), "-l", str(folder)]) == 0
    return next(folder.iterdir())


def test_it_measures_at_each_validation_and_leaves_the_training_as_it_was(
    tiny_config, with_fidelity, tmp_path
):
    plain = trained(tmp_path / "plain", tiny_config)
    run = trained(tmp_path / "measured", tiny_config, with_fidelity)
    assert (run / "metrics.jsonl").read_text() == (plain / "metrics.jsonl").read_text()

    rows, validation = read_rows(run / "fidelity.jsonl"), read_rows(run / "validation.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in validation] == [0, 5, 10]
    assert [row["drift"] for row in rows] == [row["drift"] for row in validation]
    assert all(row["score"] == row["dino"] - 4.0 * row["drift"] for row in rows)  # the overlay's drift_weight

    record = RunRecord.read(run)
    assert [value for _, value in record.series("val/score")] == [row["score"] for row in validation]
    assert [value for _, value in record.series("val/fidelity_score")] == [row["score"] for row in rows]
    best = max(rows[1:], key=lambda row: row["score"])["step"]
    assert load_for_sampling(run / "checkpoints" / "best-fidelity.ckpt").step == best
    assert (run / "fidelity.svg").read_text().count("<circle") == 3

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for key in ("dino", "clip_t", "drift"):
        assert [point.step for point in events.Scalars(f"val/{key}")] == [0, 5, 10]

    page = Page((run / "report.html").read_text())
    told = " ".join(" ".join(page.text).split())
    for title, key in {"DINO": "dino", "CLIP-I": "clip_i", "CLIP-T": "clip_t"}.items():
        assert f"{title} higher is better" in told  # the head of its curve
        assert told.count(f"{rows[-1][key]:.4f}") >= 2  # the fact and the table
        drawn = [points for points in page.curves if [[row["step"], row[key]] for row in rows] == points]
        assert len(drawn) == 1
    assert f"was {rows[0]['dino']:.4f} at the base" in told

    # A resumed run measures again only what came after its checkpoint.
    again = tmp_path / "again"
    shutil.copytree(run, again)
    assert main(["--resume", str(again), "lightning.trainer.max_steps=15"]) == 0
    assert read_rows(again / "fidelity.jsonl")[:3] == rows
    assert [row["step"] for row in read_rows(again / "fidelity.jsonl")] == [0, 5, 10, 15]


def test_several_subjects_are_measured_apart_everywhere(
    tiny_config, with_fidelity, tmp_path, monkeypatch, capsys
):
    """In the records, TensorBoard, the page and on the bar."""
    monkeypatch.setattr("ldm.console.LINE_EVERY", 0.0)
    concepts = [{"data_root": f"assets/benchmark/{name}", "class_word": name} for name in ("cat", "vase")]
    words = [f"data.params.concepts={json.dumps(concepts)}", "lightning.trainer.max_steps=2"]
    words += ["lightning.callbacks.samples=null", "lightning.callbacks.progress.params.log_every_steps=1"]
    configs = ["--base", RECIPE, str(tiny_config), with_fidelity]
    monkeypatch.chdir(PROJECT)
    assert main([*configs, "-l", str(tmp_path / "logs"), *words]) == 0
    (run,) = (tmp_path / "logs").iterdir()
    bar = capsys.readouterr().err
    fidelity, validation = read_rows(run / "fidelity.jsonl"), read_rows(run / "validation.jsonl")
    for key in ("dino", "clip_i", "clip_t"):
        assert all(row[key] == pytest.approx((row[f"{key}_v1"] + row[f"{key}_v2"]) / 2) for row in fidelity)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    scalars = set(events.Reload().Tags()["scalars"])
    told = " ".join(" ".join(Page((run / "report.html").read_text()).text).split())
    for name in ("v1", "v2"):
        kinds = ("train/subject_loss", "train/prior_loss", "val/subject_loss", "val/drift", "val/dino")
        assert {f"{kind}_{name}" for kind in kinds} <= scalars
        assert events.Scalars(f"val/drift_{name}")[-1].value == pytest.approx(validation[-1][f"drift_{name}"])
        assert f"DINO, {name} higher is better" in told
        assert f"Drift, {name} lower is better" in told
        assert "--prompt 'a photo of [V1] cat on the moon'" in told
        assert "“[V1] cat, [V2] vase” has been taught" in told
        last = read_rows(run / "metrics.jsonl")[-1].get(f"subject_loss_{name}")
        if last is not None:
            assert f"{name} {last:.4f}" in bar


def test_drift_that_is_not_measured_is_not_told(tiny_config, with_fidelity, tmp_path, capsys):
    words = ["lightning.callbacks.validation.params.drift_samples=0", "lightning.trainer.max_steps=2"]
    run = trained(tmp_path / "logs", tiny_config, with_fidelity, *words)
    told = capsys.readouterr().out
    rows, validation = read_rows(run / "fidelity.jsonl"), read_rows(run / "validation.jsonl")
    assert not {"drift"} & {*rows[-1], *validation[-1]}
    assert validation[-1]["score"] == validation[-1]["subject_loss"]
    assert rows[-1]["score"] == rows[-1]["dino"]
    assert "drift of the class" not in told
    assert "score, of the subject loss alone (lower is better)" in told
    assert "step (red: the best)" in (run / "fidelity.svg").read_text()
    assert "0.0000" not in "".join(Page((run / "report.html").read_text()).text)
    with pytest.raises(UserError, match="monitor=drift needs drift_samples above 0"):
        Validation(1, drift_samples=0, monitor="drift")


def test_without_validation_before_it_there_is_nothing_to_stand_beside(
    tiny_config, with_fidelity, tmp_path, capsys
):
    words = ["--base", RECIPE, str(tiny_config), with_fidelity, "-l", str(tmp_path)]
    assert main([*words, "lightning.callbacks.validation=null"]) == 2
    assert "needs the validation callback" in capsys.readouterr().err
