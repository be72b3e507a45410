"""Files are whole or absent, whoever else writes the same name and whatever lies in the way."""

import os

import pytest

from ldm.files import replacing


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
