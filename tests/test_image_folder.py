"""Folders of images: which files are used, which are skipped and why, links out of the folder, captions."""

import os
import sys
import warnings

import pytest
from PIL import Image, features

from ldm.data.captions import MAX_BYTES, caption_of
from ldm.data.images import image_files, load_image, readable
from ldm.data.subject import SubjectImages
from ldm.errors import UserError
from ldm.evaluation.folder import read_folder
from main import main
from tests.conftest import PROJECT, RECIPE


@pytest.fixture
def folder(tmp_path):
    """A folder with one image, photo.png."""
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "photo.png")
    return folder


@pytest.fixture
def without_plugins(monkeypatch):
    """A Pillow that reads neither HEIC nor AVIF."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "check", lambda feature: False)
    readable.cache_clear()
    yield
    readable.cache_clear()


def told(folder, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image_files(folder, **options)
    return [str(warning.message) for warning in caught]


def test_skipped_pictures_are_counted_and_named_with_what_to_do(folder, without_plugins):
    for name in ("1.HEIC", "2.heic", "3.heic", "4.heic", "a.avif", "b.gif", "c.dng", "d.xyz"):
        (folder / name).write_bytes(b"picture")
    for name in ("photo.txt", "notes.md", ".hidden.gif", "Thumbs.db"):
        (folder / name).write_bytes(b"no picture")
    (folder / "masks").mkdir()
    (message,) = told(folder)
    assert "\n" not in message
    assert "1 of 9 files are used" in message
    assert "4 .heic (1.HEIC, 2.heic, 3.heic, ...: pip install pillow-heif, or convert to JPEG)" in message
    assert "1 .avif (a.avif: pip install 'pillow>=11.3', or convert to JPEG)" in message
    assert "1 .gif (b.gif: convert to PNG)" in message
    assert "1 .dng (c.dng: develop to JPEG)" in message
    assert "1 .xyz (d.xyz: not a supported format)" in message
    assert "notes.md" not in message


def test_nothing_is_told_where_nothing_is_skipped(folder):
    (folder / "photo.txt").write_text("a dog")
    assert told(folder) == []


def test_a_folder_of_nothing_else_says_why(folder, without_plugins):
    (folder / "photo.png").rename(folder / "photo.heic")
    with pytest.raises(UserError, match=r"no images in it \(skipped: 1 .heic .*pillow-heif"):
        image_files(folder)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(folder):
    Image.new("RGB", (40, 30), (200, 30, 40)).save(folder / "a.avif")
    assert [path.name for path in image_files(folder)] == ["a.avif", "photo.png"]
    assert load_image(folder / "a.avif").size == (40, 30)


def test_heic_is_read_where_the_plugin_is_installed(folder):
    pytest.importorskip("pillow_heif")
    readable.cache_clear()
    readable()
    Image.new("RGB", (40, 30), (200, 30, 40)).save(folder / "a.heic")
    assert [path.name for path in image_files(folder)] == ["a.heic", "photo.png"]
    assert load_image(folder / "a.heic").size == (40, 30)


def test_heic_under_another_name_is_recognised(folder, without_plugins):
    (folder / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(200))
    with pytest.raises(UserError, match=r"phone\.jpg.*its content is HEIC: pip install pillow-heif"):
        load_image(folder / "phone.jpg")


def test_an_image_that_is_a_link_out_of_its_folder_is_refused(folder, tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "private.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    with pytest.raises(UserError, match=r"link\.png is a link to a file outside"):
        image_files(folder)
    (folder / "link.png").unlink()
    (folder / "link.png").symlink_to("photo.png")
    assert len(image_files(folder)) == 2
    (tmp_path / "elsewhere").symlink_to(folder)  # the folder itself may be reached by a link
    assert len(image_files(tmp_path / "elsewhere")) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX")
def test_a_pipe_is_refused_and_not_waited_for(folder):
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(UserError, match=r"pipe\.png is not a regular file"):
        image_files(folder)


def caption_in_subject(folder):
    return SubjectImages.from_folder(folder, prompt="[V] dog", size=32, seed=0, captions=True).prompts[0]


def caption_in_evaluation(folder):
    return read_folder(folder, None, None, "a dog")[0].prompt


CAPTIONS = [caption_in_subject, caption_in_evaluation]


@pytest.mark.parametrize("read", CAPTIONS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ein Hündchen".encode("latin-1"), "not UTF-8 text"),
        ("a [V] dog".encode("utf-16"), "not UTF-8 text"),
        (b" \n", "it is empty"),
        (b"x" * (MAX_BYTES + 1), "longer than"),
    ],
    ids=["latin-1", "utf-16", "empty", "long"],
)
def test_a_caption_that_is_none_is_one_line(folder, read, content, message):
    (folder / "photo.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"photo\.txt.*{message}") as error:
        read(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("read", CAPTIONS)
def test_a_caption_that_is_a_link_out_is_neither_read_nor_printed(folder, read, tmp_path):
    (tmp_path / "secret").write_text("password")
    (folder / "photo.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=r"photo\.txt is a link to a file outside") as error:
        read(folder)
    assert "password" not in str(error.value)


@pytest.mark.parametrize("read", CAPTIONS)
def test_a_caption_with_a_byte_order_mark(folder, read):
    (folder / "photo.txt").write_bytes("a [V] Hündchen\n".encode("utf-8-sig"))
    assert read(folder) == "a [V] Hündchen"


def test_no_caption(folder):
    assert caption_of(folder / "photo.png", folder) is None
    assert caption_in_subject(folder) == "[V] dog"


def test_a_run_says_what_it_skips_and_what_its_images_take(folder, tiny_config, monkeypatch, capsys):
    """In one line each, without the control characters that a file's name may hold."""
    monkeypatch.chdir(PROJECT)
    for name in ("\x1b[31mred\n.gif", "b.gif"):
        (folder / name).write_bytes(b"picture")
    Image.new("RGB", (20, 20)).save(folder / "\x1b[2Jsmall.png")
    words = ["--base", RECIPE, str(tiny_config), "-t", "false", "--data_root", str(folder)]
    assert main([*words, "data.params.random_crop=true", "data.params.size=1600"]) == 0
    told = capsys.readouterr()
    assert "\x1b" not in told.err
    lines = [line for line in told.err.splitlines() if "b.gif" in line or "small.png" in line]
    assert len(lines) == 2
    assert lines[0].startswith("warning: ")
    assert "2 of 4 files are used" in lines[0]
    assert r"\x1b[31mred\n.gif" in lines[0]
    assert " 0 MB for images" in told.out
    Image.new("RGB", (3000, 2000)).save(folder / "photo.png")
    assert main([*words, "data.params.random_crop=true"]) == 0
    assert " 24 MB for images" in capsys.readouterr().out  # 4 bytes a pixel, since crops are random
