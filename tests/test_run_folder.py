"""A run folder's records: created atomically, numbered, and read as untrusted data."""

import errno
import json

import pytest

from ldm.errors import UserError
from ldm.training import run_folder
from ldm.training.loggers import WANDB_ID, wandb_id
from ldm.training.resume import accepted_before, refuse

CONFIG = {"seed": 1}


@pytest.fixture
def run(tmp_path):
    """A run folder with one start."""
    run_folder.make(tmp_path / "run", CONFIG, ["-b", "recipe.yaml"]).close()
    return tmp_path / "run"


def test_a_start_is_recorded_and_numbered_after_all_before_it(run):
    records = run / "configs"
    assert json.loads((records / "start-000.json").read_text())["config"] == CONFIG
    run_folder.write_record(run, CONFIG, [], resumed_from=3)
    (records / "start-000.json").unlink()
    run_folder.write_record(run, CONFIG, [], resumed_from=5)
    assert [json.loads((records / f"start-00{n}.json").read_text())["resumed_from"] for n in (1, 2)] == [3, 5]


def test_a_folder_whose_first_record_cannot_be_written_is_not_left_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "save_config", full)
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\): free some space"):
        run_folder.make(tmp_path / "run", CONFIG, [])
    assert not (tmp_path / "run").exists()


def test_a_name_that_no_file_system_takes(tmp_path):
    with pytest.raises(UserError, match="255 bytes at most; choose another --name"):
        run_folder.new_folder(tmp_path, "x" * 300)


@pytest.mark.parametrize(
    "text", ["", "[1]", "[]", '{"accepted_changes": 3}', '{"accepted_changes": {"a": 1}}', "[" * 10_000]
)
def test_a_damaged_record_is_told_in_one_line(run, text):
    path = run / "configs" / "start-000.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"start-000.json is damaged .* restore it or remove it"):
        accepted_before(run)


def test_what_was_accepted_once_is_accepted_again(run):
    run_folder.write_record(run, CONFIG, [], accepted_changes={"seed": [1, 2], "size": [None, 64]})
    refuse({"seed": [1, 2], "size": [None, 64]}, run, accept=False)
    for changes in ({"seed": [1, 3]}, {"other": [1, None]}):
        with pytest.raises(UserError, match="would alter the loss record"):
            refuse(changes, run, accept=False)


def test_an_id_at_wandb_is_kept_and_is_a_name(run):
    assert wandb_id(run) == wandb_id(run)
    (run / WANDB_ID).write_text("../../elsewhere")
    with pytest.raises(UserError, match=r"wandb-id.txt is not the id"):
        wandb_id(run)
