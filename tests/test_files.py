"""Files are found, are complete or absent, and are never written through a link."""

import os

import pytest

from ldm.errors import UserError
from ldm.files import PROJECT, find, refuse_links, replacing
from scripts import benchmark_speed, compare, figure, judge_base, judge_features, make_world, preview_data
from tests.conftest import RECIPE


def fail_halfway(path):
    path.write_text("half")
    raise OSError("the disk is full")


@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, sync, shared):
    path = tmp_path / "a" / "b.txt"
    with replacing(path, sync=sync, shared=shared) as temporary:
        temporary.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path, sync=sync, shared=shared) as temporary:
        fail_halfway(temporary)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("sync", [True, False])
def test_only_what_must_not_be_lost_waits_for_the_disk(tmp_path, sync, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    with replacing(tmp_path / "a", sync=sync) as temporary:
        temporary.write_text("x")
    assert len(synced) == (2 if sync else 0)  # the file, then its folder


def test_writers_of_one_name_do_not_meet(tmp_path):
    path = tmp_path / "cache.npy"
    with replacing(path, shared=True) as one:
        one.write_text("one")
        with replacing(path, shared=True) as two:
            two.write_text("two")
        assert path.read_text() == "two"
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.json", ".a.json.tmp"])
def test_a_link_in_the_way_is_replaced_and_not_followed(tmp_path, name):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / name).symlink_to(outside)
    with replacing(run / "a.json") as temporary, open(temporary, "w") as file:
        file.write("new")
    assert outside.read_text() == "mine"
    assert (run / "a.json").read_text() == "new"
    assert not (run / "a.json").is_symlink()


def test_a_path_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find("configs/dreambooth.yaml") == PROJECT / "configs" / "dreambooth.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dreambooth.yaml").write_text("mine")
    assert str(find("configs/dreambooth.yaml")) == "configs/dreambooth.yaml"
    assert str(find("nowhere")) == "nowhere"  # an error names the requested path


@pytest.mark.parametrize("place", ["file", "folder/file", "folder", ".file.tmp"])
def test_links_below_a_folder_are_refused(tmp_path, place):
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / "other").mkdir(parents=True)
    for target in (outside, run / "other"):  # a link within the folder is refused too: the rule stays simple
        (run / place).parent.mkdir(exist_ok=True)
        (run / place).symlink_to(target)
        with pytest.raises(UserError, match="is a link"):
            refuse_links(run)
        (run / place).unlink()
    refuse_links(run)
    os.mkfifo(run / "pipe")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        refuse_links(run)


def test_links_that_wandb_leaves_behind_are_its_own(tmp_path):
    home = tmp_path / "run" / "wandb"
    (home / "offline-run-1").mkdir(parents=True)
    (home / "latest-run").symlink_to("offline-run-1", target_is_directory=True)
    (tmp_path / "link").symlink_to("run")
    refuse_links(tmp_path / "run")
    refuse_links(tmp_path / "link")  # the folder itself may be reached through one
    (home / "offline-run-1" / "logs").mkdir()
    (home / "offline-run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "core-debug-1.log")
    refuse_links(tmp_path / "run")
    for place in ("debug.log", "offline-run-1/logs/debug.log"):
        (home / place).symlink_to(tmp_path / "outside")
        with pytest.raises(UserError, match="debug.log is a link"):
            refuse_links(tmp_path / "run")
        (home / place).unlink()


def test_a_folder_in_place_of_a_file_is_told_before_any_work(tmp_path, capsys):
    for script, words in (
        (compare, [str(PROJECT)]),
        (figure, ["--runs", "nowhere"]),
        (benchmark_speed, []),
        (judge_base, ["--base", "nowhere"]),
        (judge_features, ["--clip", "nowhere"]),
        (make_world, ["sheet", "--art", "nowhere"]),
        (preview_data, ["-b", RECIPE, "model.params.base=nowhere"]),
    ):
        assert script.main([*words, "--out", str(tmp_path)]) == 2
        line = capsys.readouterr().err
        assert line == f"error: {tmp_path} cannot be written to: it is a folder; name a file in it\n", script
