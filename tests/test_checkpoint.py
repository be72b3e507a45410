"""Checkpoints are written atomically, at the right times, and no more are kept than configured."""

import contextlib
import os
import resource
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import UserError
from ldm.files import replacing
from ldm.methods.dreambooth import DreamBooth
from ldm.training import checkpoint as checkpoints
from ldm.training.checkpoint import AtomicCheckpointIO, is_finite
from ldm.training.rows import append_rows, read_rows, truncate_rows
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state

NO_VALIDATION = "lightning.callbacks.validation=null"


def content(value: float) -> dict:
    return {"global_step": 1, "state_dict": {"w": torch.full((50_000,), value)}}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    io, path = AtomicCheckpointIO({"config": {}}), tmp_path / "last.ckpt"
    io.save_checkpoint(content(1.0), path)
    for call in ("fsync", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(
                os, call, lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
            )
            io.save_checkpoint(content(2.0), path)
        assert "No space left on device" in io.problem
        assert [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]
        assert torch.load(path)["state_dict"]["w"][0] == 1.0
    io.save_checkpoint(content(3.0), path)
    assert io.problem is None
    assert torch.load(path)["state_dict"]["w"][0] == 3.0


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    path, seen = tmp_path / "last.ckpt", []
    original = os.fsync
    monkeypatch.setattr(
        os,
        "fsync",
        lambda fd: seen.append((os.readlink(f"/proc/self/fd/{fd}"), path.exists())) or original(fd),
    )
    AtomicCheckpointIO({}).save_checkpoint(content(1.0), path)
    assert seen == [(str(tmp_path / ".last.ckpt.tmp"), False), (str(tmp_path), True)]


@pytest.fixture
def umask_022():
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_every_file_of_a_run_has_the_usual_permissions(train, umask_022):
    """safetensors writes files that only their owner may read."""
    files = [path for path in train(*QUICK).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".ckpt", ".safetensors", ".jsonl", ".json", ".yaml"}
    assert {path: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(files, "0o644")


def test_a_written_file_respects_the_umask(tmp_path, umask_022):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        os.umask(umask)
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(1)}, temporary)
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode
        assert os.umask(umask) == umask  # and leaves it as it is


def test_nothing_that_is_not_finite_replaces_a_good_checkpoint(tmp_path):
    io, path = AtomicCheckpointIO({}), tmp_path / "best.ckpt"
    io.save_checkpoint(content(1.0), path)
    for value in (float("nan"), float("inf"), -float("inf")):
        io.save_checkpoint(content(value), path)
        assert io.fatal
        assert torch.load(path)["state_dict"]["w"][0] == 1.0
    assert not is_finite(
        {"optimizer_states": [{"state": {0: {"exp_avg": torch.tensor([1.0, float("nan")])}}}]}
    )
    assert is_finite({"state_dict": {"w": torch.tensor([3e38, -3e38])}, "optimizer_states": []})


def test_a_full_disk_in_scheduled_saves_is_a_warning(train, monkeypatch, capsys):
    """RLIMIT_FSIZE simulates the disk: no file can grow beyond 100 KB from step 4 to step 7."""
    words = (*QUICK, "lightning.callbacks.checkpoint.params={every_steps: 2, milestone_every_steps: 6}")
    whole = train(*words, name="whole")
    at_call(monkeypatch, DreamBooth, "training_step", {4}, lambda: limit(100_000))
    at_call(monkeypatch, DreamBooth, "training_step", {8}, lambda: limit(resource.RLIM_INFINITY))
    run = train(*words)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: checkpoint")]
    assert [line.partition("cannot be written")[0].split()[2].rpartition("/")[2] for line in told] == [
        "last.ckpt",
        "best.ckpt",
        "last.ckpt",
        "weights-000006.ckpt",
    ]
    assert all("Training continues; the last good checkpoint is kept" in line for line in told)
    assert_same_run(run, whole)


def limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_in_the_final_save_keeps_what_exists(train, tmp_path, monkeypatch, capsys):
    at_call(monkeypatch, DreamBooth, "training_step", {9}, lambda: limit(100_000))
    try:
        train(*QUICK, NO_VALIDATION, "lightning.callbacks.checkpoint.params.every_steps=4", expect=2)
    finally:
        limit(resource.RLIM_INFINITY)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "last.ckpt of step 10 cannot be written" in errors[0]
    assert "--resume" in errors[0]
    run = next((tmp_path / "logs" / "run").iterdir())
    assert state(run)["global_step"] == 8
    assert not (run / "model").exists()
    assert resume(run) == 0
    assert len(read_rows(run / "metrics.jsonl")) == 10


def test_a_full_disk_before_the_first_checkpoint_promises_none(train, monkeypatch, capsys):
    at_call(monkeypatch, DreamBooth, "training_step", {2}, lambda: limit(100_000))
    try:
        train(*QUICK, NO_VALIDATION, "lightning.trainer.max_steps=2", expect=2)
    finally:
        limit(resource.RLIM_INFINITY)
    assert "there is no checkpoint yet" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_full_altogether(train, small_disk, tiny_config, monkeypatch, capsys):
    """No free byte from step 4 on, then space again in step 8: loss record and weights are as usual."""
    from main import main
    from tests.conftest import RECIPE

    whole = train(name="whole")
    filler = small_disk / "filler"

    def fill():
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    at_call(monkeypatch, DreamBooth, "training_step", {4}, fill)
    at_call(monkeypatch, DreamBooth, "training_step", {8}, filler.unlink)
    words = ("lightning.callbacks.loss_record.params.flush_every_steps=1",)
    code = main(["-b", RECIPE, str(tiny_config), "-l", str(small_disk), *words])
    told = capsys.readouterr().err
    run = next(path for path in small_disk.iterdir() if path.is_dir())
    assert "last.ckpt of step 5 cannot be written" in told
    assert "step-000005.png cannot be written" in told
    assert code == 0, told
    assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_retention(train, keep):
    run = train(
        *QUICK, NO_VALIDATION, f"lightning.callbacks.checkpoint.params={{every_steps: 2, keep: {keep}}}"
    )
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["last.ckpt", *(f"state-{step:06d}.ckpt" for step in (4, 6, 8)[4 - keep :])]
    assert state(run)["global_step"] == 10


def test_milestones_and_the_best_are_weights_alone(train):
    run = train(*QUICK, "lightning.callbacks.checkpoint.params.milestone_every_steps=4")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == [
        "best.ckpt",
        "last.ckpt",
        "weights-000004.ckpt",
        "weights-000008.ckpt",
        "weights-000010.ckpt",
    ]
    for name in names:
        assert ("optimizer_states" in state(run, name)) == (name == "last.ckpt")
        assert state(run, name)["identifier"] == "sks"
        assert not any(key.startswith("model.vae") for key in state(run, name)["state_dict"])


def test_by_the_clock(train, monkeypatch):
    """A clock that advances by 10 seconds whenever it is read."""
    seconds, saved = iter(range(0, 10**6, 10)), []
    original = AtomicCheckpointIO.save_checkpoint

    def save(io, content, path, **options):
        saved.append(content["global_step"])
        original(io, content, path, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: next(seconds))
    words = ("lightning.callbacks.progress=null", NO_VALIDATION)
    train(*QUICK, *words, "lightning.callbacks.checkpoint.params={every_steps: null, every_minutes: 0.5}")
    assert saved == [3, 6, 9, 10]


def test_rows_are_appended_whole_and_cut_back(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"step": step, "loss": 0.1 * step} for step in range(1, 6)])
    with open(path, "a") as file:
        file.write('{"step": 6, "lo')  # a death in mid-write
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3, 4, 5]
    truncate_rows(path, 3)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]
    limit(os.path.getsize(path) + 10)
    try:
        with pytest.raises(OSError, match="File too large"):
            append_rows(path, [{"step": 4, "loss": 1.0}])
    finally:
        limit(resource.RLIM_INFINITY)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 3]


def test_rows_that_could_not_be_written_go_with_the_checkpoint(train, whole_rows, monkeypatch):
    import ldm.training.loss_record as record

    original = record.append_rows
    full = [True]

    def append(path, rows):
        if full[0] and rows and path.name == "metrics.jsonl":
            raise OSError(28, "No space left on device")
        original(path, rows)

    monkeypatch.setattr(record, "append_rows", append)
    at_call(monkeypatch, DreamBooth, "training_step", {6}, send(15))
    run = train(*QUICK, expect=75)
    assert read_rows(run / "metrics.jsonl") == []
    full[0] = False
    assert resume(run) == 0
    assert (run / "metrics.jsonl").read_bytes() == whole_rows


@pytest.fixture
def whole_rows(train):
    return (train(*QUICK, name="whole") / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("line", ["[1]", "{}", '{"step": "1"}', "null", "[" * 100_000, "\udcff"])
def test_a_line_that_is_no_row_is_told_by_its_number(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("utf-8", "surrogateescape") + b'\n{"step": 2')
    with pytest.raises(UserError, match="metrics.jsonl, line 2 is not a row"):
        truncate_rows(path, 1)
