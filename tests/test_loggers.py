"""TensorBoard and W&B, offline: the page's names with descriptions, images in steps, hyperparameters, final metrics."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from ldm.training.curves import CURVES, curve_of
from ldm.training.loggers import log_in
from ldm.training.rows import read_rows
from main import main
from tests.conftest import RECIPE


@pytest.fixture
def events(train):
    run = train()
    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return run, found.Reload()


def hyperparameters(events, tag) -> HParamsPluginData:
    return HParamsPluginData.FromString(events.summary_metadata[tag].plugin_data.content)


def test_tensorboard(events):
    run, found = events
    scalars = set(found.Tags()["scalars"])
    named = {name for name in scalars if name.startswith(("train/", "val/", "throughput/"))}
    assert scalars == named  # and no hp_metric
    assert {
        "train/subject_loss",
        "train/prior_loss",
        "val/drift",
        "val/score",
        "train/gradient_norm",
    } <= named
    assert {"train/learning_rate/unet", "train/learning_rate/text_encoder"} <= named
    for name in named:
        metadata = found.summary_metadata[name]
        assert (metadata.display_name, metadata.summary_description) == (
            curve_of(name).title,
            curve_of(name).description,
        )
        assert metadata.summary_description, name
    rows = read_rows(run / "metrics.jsonl")
    logged = found.Scalars("train/subject_loss")
    assert [(event.step, event.value) for event in logged] == [
        (row["step"], pytest.approx(row["subject_loss"])) for row in rows
    ]
    assert [event.value for event in found.Scalars("train/learning_rate/unet")] == pytest.approx([2e-4])
    assert found.Scalars("train/gradient_norm")[0].value > 0
    assert [event.step for event in found.Images("samples")] == [0, 5, 10]

    experiment = hyperparameters(found, "_hparams_/experiment").experiment
    assert {info.name.tag for info in experiment.metric_infos} == {
        "val/subject_loss",
        "val/drift",
        "val/score",
    }
    started = hyperparameters(found, "_hparams_/session_start_info").session_start_info.hparams
    assert started["model.params.prior_loss_weight"].number_value == 1
    assert started["model.params.tuning.target"].string_value == "ldm.methods.all_weights.AllWeights"
    assert not [name for name in started if "callbacks" in name]
    assert "_hparams_/session_end_info" in found.summary_metadata


@pytest.mark.parametrize(
    ("key", "told"), [(None, "No API key configured"), ("short", "API key must have 40+")]
)
def test_without_a_login_at_wandb_nothing_is_written(tiny_config, tmp_path, monkeypatch, capsys, key, told):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    wandb.teardown()  # it has read the variables before
    words = ["-b", RECIPE, str(tiny_config), "-l", str(tmp_path / "logs"), "lightning.logger.params={}"]
    assert main([*words, "lightning.logger.target=pytorch_lightning.loggers.WandbLogger"]) == 2
    wandb.teardown()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert told in line
    with pytest.warns(UserWarning, match=told):
        log_in({"target": "pytorch_lightning.loggers.WandbLogger"}, resumed=True)
    wandb.teardown()
    assert "WANDB_MODE=offline" in line
    assert not (tmp_path / "logs").exists()


def test_a_run_goes_on_without_a_server_that_does_not_answer(train, monkeypatch, capsys):
    import wandb

    def fail(**_):
        raise wandb.errors.CommError("the server does not answer")

    monkeypatch.setattr(wandb, "init", fail)
    words = (
        "lightning.logger.params={}",
        "lightning.trainer.max_steps=2",
        "lightning.callbacks.samples=null",
    )
    run = train("lightning.logger.target=pytorch_lightning.loggers.WandbLogger", *words)
    assert "WandbLogger cannot write (the server does not answer)" in capsys.readouterr().err
    assert len(read_rows(run / "metrics.jsonl")) == 2


def test_wandb_has_a_table_of_samples_and_the_best_step(train, monkeypatch):
    import wandb

    summary = {}
    finish = wandb.sdk.wandb_run.Run.finish

    def finished(run, *args, **options):
        summary.update({"notes": run.notes, **dict(run.summary)})
        return finish(run, *args, **options)

    monkeypatch.setattr(wandb.sdk.wandb_run.Run, "finish", finished)
    run = train("lightning.logger.target=pytorch_lightning.loggers.WandbLogger", "lightning.logger.params={}")
    (path,) = (run / "wandb").glob("offline-run-*/files/media/table/samples_table*.table.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["step", "prompt", "seed", "image"]
    assert len(table["data"]) == 3 * 3 * 2  # steps x prompts x seeds
    assert table["data"][0][:3] == [0, "a photo of sks dog in the snow", 23]
    rows = read_rows(run / "validation.jsonl")
    best = min(rows[1:], key=lambda row: row["score"])
    assert (summary["best/score"], summary["best/step"]) == (best["score"], best["step"])
    assert summary["val/drift"] == rows[-1]["drift"]
    assert all(curve.description in summary["notes"] for curve in CURVES.values())
