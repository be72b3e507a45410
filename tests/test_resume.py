"""Interrupted runs resume to the same result, bit for bit, and only with unchanged settings."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Timer

from ldm.methods.base_latents import BaseLatents
from ldm.methods.dreambooth import DreamBooth
from ldm.training.checkpoint import tensors_in
from ldm.training.validation import Validation
from main import main
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_equal, assert_same_run, at_call, corrupt, resume, send, state
from tests.tiny import tiny_base

STOPPED = 75


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """An uninterrupted run of 10 steps."""
    logs = tmp_path_factory.mktemp("whole")
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *QUICK]) == 0
    return next(logs.iterdir())


@pytest.fixture(scope="module")
def stopped(tiny_config, tmp_path_factory):
    """The same run, stopped by SIGTERM in step 5. Copy it before continuing it."""
    logs = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, DreamBooth, "training_step", {5}, send(signal.SIGTERM))
        assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *QUICK]) == STOPPED
    return next(logs.iterdir())


@pytest.fixture
def cut(stopped, tmp_path):
    """A fresh copy of the stopped run."""
    return shutil.copytree(stopped, tmp_path / "cut")


def error_of(capsys) -> str:
    """The error on stderr, which must be a single line."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_an_optimizer_with_a_state_of_8_bits_goes_on_where_it_was(train, monkeypatch):
    words = [
        *QUICK,
        "model.params.optimizer.target=bitsandbytes.optim.AdamW8bit",
        "model.params.optimizer.params={min_8bit_size: 64}",
    ]
    whole = train(*words, name="whole")
    assert torch.uint8 in {tensor.dtype for tensor in tensors_in(state(whole)["optimizer_states"])}
    at_call(monkeypatch, DreamBooth, "training_step", {5}, send(signal.SIGTERM))
    cut = train(*words, expect=STOPPED, name="cut")
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_says_so_and_goes_on_to_the_same_end(train, whole, monkeypatch, capsys, number):
    at_call(monkeypatch, DreamBooth, "training_step", {3, 14}, send(number))
    run = train(*QUICK, expect=STOPPED)
    assert f"continue with python main.py --resume {run}" in capsys.readouterr().err
    assert state(run)["global_step"] == 3
    assert not (run / "model").exists()
    assert resume(run) == 0  # the second signal comes in its last step: there is nothing left to stop
    assert_same_run(run, whole)


def test_in_mid_accumulation_the_step_is_finished_first(train, monkeypatch):
    words = (*QUICK, "lightning.trainer.accumulate_grad_batches=3", "data.params.batch_size=1")
    words += ("model.params.lr_schedule=cosine", "model.params.lr_warmup_steps=3")
    run = train(*words, name="whole")
    at_call(monkeypatch, DreamBooth, "training_step", {4, 17}, send(signal.SIGTERM))
    other = train(*words, name="stopped", expect=STOPPED)
    assert state(other)["global_step"] == 2
    assert resume(other) == STOPPED
    assert resume(other) == 0
    assert_same_run(other, run)


def test_a_limit_of_time_saves_and_each_start_has_it_anew(train, whole, monkeypatch, capsys):
    limited = Timer.__init__

    def begin(self, duration, **options):
        assert duration == "00:00:00:01"
        limited(self, {"seconds": 1e-6}, **options)

    monkeypatch.setattr(Timer, "__init__", begin)
    run = train(*QUICK, "lightning.trainer.max_time=00:00:00:01", expect=STOPPED)
    assert "stopped at step 1, everything is saved: continue with" in capsys.readouterr().err
    assert resume(run) == STOPPED
    assert state(run)["global_step"] == 2
    assert not (run / "model").exists()
    assert resume(run, "lightning.trainer.max_time=null") == 0
    assert "warning" not in capsys.readouterr().err
    assert_same_run(run, whole)


def test_a_callback_that_ends_training_in_mid_accumulation_loses_nothing(train, monkeypatch):
    words = (*QUICK, "lightning.trainer.accumulate_grad_batches=3", "data.params.batch_size=1")
    words += ("lightning.trainer.max_steps=4",)
    run = train(*words, name="whole")
    original, calls = DreamBooth.training_step, iter(range(1, 100))

    def training_step(self, *arguments):
        self.trainer.should_stop |= next(calls) == 5
        return original(self, *arguments)

    monkeypatch.setattr(DreamBooth, "training_step", training_step)
    other = train(*words, name="stopped", expect=STOPPED)
    assert state(other)["global_step"] == 1
    assert resume(other) == 0
    assert_same_run(other, run)


def test_a_second_interrupt_quits_at_once(train, monkeypatch):
    at_call(monkeypatch, DreamBooth, "training_step", {3}, lambda: [send(signal.SIGINT)() for _ in "12"])
    train(*QUICK, expect=130)


def test_without_checkpoints_a_signal_ends_the_run_at_once(train, monkeypatch, tmp_path, capsys):
    at_call(monkeypatch, DreamBooth, "training_step", {3}, send(signal.SIGTERM))
    train(*QUICK, "lightning.callbacks.checkpoint=null", expect=STOPPED)
    assert "nothing is saved: start again with python main.py --resume" in capsys.readouterr().err
    run = next((tmp_path / "logs" / "run").iterdir())
    assert not (run / "model").exists()


def test_a_signal_while_a_resume_starts(cut, whole, monkeypatch, capsys):
    at_call(monkeypatch, DreamBooth, "__init__", {1}, send(signal.SIGTERM))
    assert resume(cut) == STOPPED
    assert "--resume continues" in capsys.readouterr().err
    assert resume(cut) == 0
    assert_same_run(cut, whole)


@pytest.mark.parametrize(
    ("words", "code"), [(("--resume", "configs"), STOPPED), (("-b", RECIPE), -signal.SIGTERM)]
)
def test_a_signal_while_a_process_still_imports(words, code):
    """A resume can itself be resumed; a run that has not started ends on a signal like any program."""
    strike = (
        "import os, signal, sys; from main import main\n"
        "class Strike:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, Strike()); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", strike, *words], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert ("--resume continues" in done.stderr) == (code == STOPPED)
    assert "Traceback" not in done.stderr


def test_sigusr1_saves_and_goes_on(train, whole, monkeypatch):
    steps = []
    at_call(monkeypatch, DreamBooth, "training_step", {3}, send(signal.SIGUSR1))
    at_call(monkeypatch, DreamBooth, "on_save_checkpoint", range(99), lambda: steps.append(1))
    run = train(
        *QUICK,
        "lightning.callbacks.checkpoint.params.every_steps=null",
        "lightning.callbacks.validation=null",
    )
    assert len(steps) == 2  # for the signal, and at the end
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("owner", "name", "call", "step"),
    [
        (BaseLatents, "draw_prior", 1, None),  # before the first step: there is nothing to save
        (BaseLatents, "draw_prior", 2, 3),  # in the middle of training
        (Validation, "validate", 1, None),
        (Validation, "validate", 2, 5),
        (DreamBooth, "export", 1, 10),
    ],
)
def test_signals_outside_of_the_training_step(train, whole, monkeypatch, owner, name, call, step):
    at_call(monkeypatch, owner, name, {call}, send(signal.SIGTERM))
    run = train(*QUICK, expect=STOPPED)
    assert (run / "checkpoints" / "last.ckpt").exists() == (step is not None)
    if step:
        assert state(run)["global_step"] == step
    assert resume(run) == 0
    assert_same_run(run, whole)
    assert (run / "model" / "dreambooth.json").is_file()


def test_prior_samples_are_drawn_once(train, monkeypatch):
    drawn = []
    original = BaseLatents.draw_prior
    monkeypatch.setattr(
        BaseLatents,
        "draw_prior",
        lambda self, prompt, i, *rest: drawn.append(i) or original(self, prompt, i, *rest),
    )
    at_call(monkeypatch, DreamBooth, "training_step", {2}, send(signal.SIGTERM))
    run = train(*QUICK, expect=STOPPED)
    assert resume(run) == 0
    assert [i[0] for i in drawn] == [0, 4]


def test_the_scaler_of_fp16_is_resumed(train, monkeypatch):
    words = (*QUICK, "lightning.trainer.precision=16-mixed", "lightning.callbacks.validation=null")
    original = DreamBooth.training_step

    def step(self, batch, batch_idx):
        out = original(self, batch, batch_idx)
        return {**out, "loss": out["loss"] * (float("inf") if self.global_step == 1 else 1)}

    monkeypatch.setattr(DreamBooth, "training_step", step)
    whole = train(*words, name="whole")
    at_call(monkeypatch, DreamBooth, "training_step", {4}, send(signal.SIGTERM))
    run = train(*words, name="stopped", expect=STOPPED)
    assert state(run)["MixedPrecision"]["scale"] == 32768.0
    assert resume(run) == 0
    assert_same_run(run, whole)
    assert state(run)["MixedPrecision"] == state(whole)["MixedPrecision"]


def test_a_finished_run_says_so_and_changes_nothing(whole, capsys):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}
    assert resume(whole) == 0
    assert "is finished at step 10 of 10" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.name != ".lock"}


def test_a_finished_run_without_its_model_writes_it(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (run / "model").rglob("*.safetensors")}
    shutil.rmtree(run / "model")
    assert resume(run) == 0
    assert before == {path.name: path.read_bytes() for path in (run / "model").rglob("*.safetensors")}
    assert_same_run(run, whole)


def test_a_run_past_its_last_step_and_options_of_a_new_run_are_refused(whole, capsys):
    before = (whole / "configs" / "config.yaml").read_bytes()
    assert resume(whole, "lightning.trainer.max_steps=5") == 2
    assert "it is at step 10, past lightning.trainer.max_steps=5" in error_of(capsys)
    for words in (("-n", "other"), ("-l", "elsewhere"), ("-f", "more"), ("--scale_lr",)):
        assert resume(whole, *words) == 2
        assert "continues a run in its own folder" in error_of(capsys)
    assert (whole / "configs" / "config.yaml").read_bytes() == before


def test_more_steps_extend_a_finished_run(train, whole):
    longer = train(*QUICK, "lightning.trainer.max_steps=13")
    run = shutil.copytree(whole, longer.parent / "copy")
    assert resume(run, "lightning.trainer.max_steps=13") == 0
    assert (run / "metrics.jsonl").read_bytes() == (longer / "metrics.jsonl").read_bytes()
    assert_equal(state(run)["state_dict"], state(longer)["state_dict"], "weights")
    assert json.loads((run / "model" / "dreambooth.json").read_text())["step"] == 13


def test_more_steps_are_a_change_where_the_schedule_ends_with_them(train, monkeypatch, capsys):
    run = train(*QUICK, "model.params.lr_schedule=cosine")
    assert resume(run, "lightning.trainer.max_steps=12") == 2
    assert "lightning.trainer.max_steps was 10, now 12" in error_of(capsys)
    rates, original = [], DreamBooth.training_step

    def training_step(self, *arguments):
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return original(self, *arguments)

    monkeypatch.setattr(DreamBooth, "training_step", training_step)
    assert resume(run, "--accept-changes", "lightning.trainer.max_steps=12") == 0
    # From its first step on the rate is the longer schedule's, not what was left of the shorter one's: nothing.
    assert rates == pytest.approx([2e-4 * (1 + math.cos(math.pi * step / 12)) / 2 for step in (10, 11)])


@pytest.mark.parametrize(
    "word",
    [
        "model.params.learning_rate=1e-3",
        "seed=5",
        "data.params.prior.steps=4",
        "lightning.trainer.precision=bf16-mixed",
    ],
)
def test_a_setting_that_changes_the_record_is_refused(cut, capsys, word):
    before = (cut / "configs" / "config.yaml").read_bytes()
    assert resume(cut, word) == 2
    assert word.partition("=")[0] in error_of(capsys)
    assert (cut / "configs" / "config.yaml").read_bytes() == before


def test_an_edited_config_is_noticed(cut, capsys):
    path = cut / "configs" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["model"]["params"]["prior_loss_weight"] = 0.5
    path.write_text(yaml.safe_dump(config))
    assert resume(cut) == 2
    assert "model.params.prior_loss_weight was 1.0, now 0.5" in error_of(capsys)


def test_other_images_and_another_base_are_refused(cut, tmp_path, capsys):
    images = shutil.copytree("assets/subject/dog", tmp_path / "dog")
    assert resume(cut, f"data.params.data_root={images}", "lightning.trainer.max_steps=6") == 0  # they moved
    (images / "04.png").unlink()
    assert resume(cut) == 2
    assert "the images was" in error_of(capsys)
    assert (
        resume(
            cut,
            "data.params.data_root=assets/subject/dog",
            f"model.params.base={tiny_base(tmp_path / 'b', 1)}",
        )
        == 2
    )
    assert "the base model was" in error_of(capsys)


def test_what_an_optimizer_step_sees_may_be_shared_out_anew_but_not_changed(cut, whole, capsys):
    assert resume(cut, "data.params.batch_size=1") == 2
    assert "samples per optimizer step" in error_of(capsys)
    assert resume(cut, "data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2") == 0
    ours, others = ((run / "metrics.jsonl").read_text().splitlines() for run in (cut, whole))
    for row, other in zip(map(json.loads, ours), map(json.loads, others), strict=True):
        assert row == pytest.approx(other, abs=1e-5)


def test_what_leaves_the_record_alone_may_change(cut, whole):
    words = ["data.params.num_workers=1", "data.params.prior.fill_at_start=true"]
    assert resume(cut, *words, "lightning.callbacks.progress=null") == 0
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_an_accepted_change_is_recorded_and_stays(cut, monkeypatch, capsys):
    at_call(monkeypatch, DreamBooth, "training_step", {1}, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resume(cut, "--accept-changes", "model.params.learning_rate=1e-3")
    record = json.loads((cut / "configs" / "start-001.json").read_text())
    assert record["accepted_changes"] == {"model.params.learning_rate": [2e-4, 1e-3]}
    assert record["resumed_from"] == 5
    assert (
        "continuing with changes: model.params.learning_rate was 0.0002, now 0.001" in capsys.readouterr().err
    )
    assert resume(cut) == 0  # alone, although the new run has not saved a checkpoint yet
    assert state(cut)["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-3


def test_before_its_first_checkpoint_a_run_starts_again_and_says_so(
    train, whole, tmp_path, monkeypatch, capsys
):
    at_call(monkeypatch, DreamBooth, "training_step", {3}, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(*QUICK)
    run = next((tmp_path / "logs" / "run").iterdir())
    assert resume(run) == 0
    assert "before its first checkpoint: it starts again at step 0" in capsys.readouterr().err
    assert_same_run(run, whole)
    steps = [json.loads(row)["step"] for row in (run / "validation.jsonl").read_text().splitlines()]
    assert steps == [0, 5, 10]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(train, whole, monkeypatch, capsys):
    words = (*QUICK, "lightning.callbacks.checkpoint.params={every_steps: 2, keep: 3}")
    at_call(monkeypatch, DreamBooth, "training_step", {7}, send(signal.SIGTERM))
    run = train(*words, expect=STOPPED)
    folder = run / "checkpoints"
    assert sorted(p.name for p in folder.glob("*-*.ckpt")) == ["state-000004.ckpt", "state-000006.ckpt"]
    corrupt(folder / "last.ckpt")
    (folder / "state-000006.ckpt").write_bytes((folder / "state-000006.ckpt").read_bytes()[:-999])
    assert resume(run) == 0
    told = capsys.readouterr().err
    assert "last.ckpt is damaged; using the previous checkpoint" in told
    assert "state-000006.ckpt is damaged; using the previous checkpoint" in told
    assert_same_run(run, whole)
    assert sorted(p.name for p in folder.glob("*-*.ckpt")) == ["state-000006.ckpt", "state-000008.ckpt"]
    assert state(run, "state-000006.ckpt")["global_step"] == 6


def test_where_no_checkpoint_loads_nothing_starts_over(cut, capsys):
    corrupt(cut / "checkpoints" / "last.ckpt")
    before = (cut / "metrics.jsonl").read_bytes()
    assert resume(cut) == 2
    assert "none of its 1 checkpoints can be loaded" in error_of(capsys)
    assert (cut / "metrics.jsonl").read_bytes() == before


def test_from_a_file(train, whole, monkeypatch, capsys):
    run = train(*QUICK, "lightning.callbacks.checkpoint.params={every_steps: 2, keep: 3}")
    assert resume(run / "checkpoints" / "best.ckpt") == 2
    assert "only weights" in error_of(capsys)
    assert resume(run / "checkpoints" / "last.ckpt") == 0
    assert "finished" in capsys.readouterr().out
    at_call(monkeypatch, DreamBooth, "training_step", {2}, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        resume(run / "checkpoints" / "state-000006.ckpt")
    assert "of a later step" in capsys.readouterr().err
    assert state(run)["global_step"] == 6  # no later state is left that the next resume could take
    assert sorted(p.name for p in (run / "checkpoints").glob("s*")) == ["state-000006.ckpt"]
    assert resume(run) == 0
    assert_same_run(run, whole)


def test_tensorboard_shows_no_step_twice(train, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    at_call(monkeypatch, DreamBooth, "training_step", {9}, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train("lightning.callbacks.loss_record.params.flush_every_steps=1")
    run = next((tmp_path / "logs" / "run").iterdir())
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which hold the second
    assert resume(run) == 0
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 11))


def test_wandb_goes_on_with_its_run(train, monkeypatch):
    import wandb

    at_call(monkeypatch, DreamBooth, "training_step", {7}, send(signal.SIGTERM))
    ids = []
    original = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **kwargs: ids.append(kwargs["id"]) or original(**kwargs))
    words = (
        "lightning.logger.target=pytorch_lightning.loggers.WandbLogger",
        "lightning.callbacks.samples=null",
    )
    run = train(*words, expect=STOPPED)
    wandb.finish()
    time.sleep(1.1)  # a folder of the same second would have another number at its name's end
    assert resume(run) == 0
    wandb.finish()
    assert len(set(ids)) == 1
    assert len(ids) == 2
    assert all(path.name.endswith(ids[0]) for path in (run / "wandb").glob("offline-run-*"))


def test_leftovers_of_a_death_in_mid_write_are_removed(cut):
    places = [
        "checkpoints/.last.ckpt.tmp",
        "prior/.00000.tmp",
        "images/.step-000000.png.tmp",
        ".metrics.jsonl.tmp",
    ]
    for place in places:
        (cut / place).parent.mkdir(exist_ok=True)
        (cut / place).write_text("half")
    (cut / ".model.tmp" / "unet").mkdir(parents=True)
    assert resume(cut) == 0
    assert not [path for path in cut.rglob(".*.tmp")]
