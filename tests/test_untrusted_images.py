"""A stranger's images: bombs, truncated files and wrong extensions end in one line."""

import contextlib
import io
import random
import struct
import zlib

import pytest
from PIL import Image

from ldm.data.images import load_image
from ldm.errors import UserError

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")


def encoded(kind: str, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = random.Random(0).randbytes(size[0] * size[1] * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, pixels).save(buffer, format=kind)
    return buffer.getvalue()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def refused(tmp_path, content: bytes, name: str = "photo.png") -> str:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_image(path)
    message = str(error.value)
    assert "\n" not in message
    assert name in message
    return message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [13_500, 15_000, 60_000])
def test_a_decompression_bomb_is_not_unpacked(tmp_path, side):
    """A few KB that claim hundreds of megabytes; the lines they hold unpack to zeros only."""
    content = png(side, side, png_chunk(b"IDAT", zlib.compress(bytes(10_000_000))))
    assert len(content) < 20_000
    refused(tmp_path, content)


def test_a_bomb_in_a_text_chunk(tmp_path):
    text = b"Comment\0\0" + zlib.compress(bytes(200_000_000))
    content = png(8, 8, png_chunk(b"zTXt", text), png_chunk(b"IDAT", zlib.compress(bytes(8 * 25))))
    path = tmp_path / "photo.png"
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        load_image(path)  # Pillow may leave such a text out


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_was_cut_short(tmp_path, kind):
    content = encoded(kind)
    for part in (0.02, 0.3, 0.9):
        refused(tmp_path, content[: int(len(content) * part)])


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<html><body>404</body></html>", "photo.jpg"),
        (b"", "photo.png"),
        (b"MZ" + bytes(500), "photo.webp"),
        (b"version https://git-lfs.github.com/spec/v1\n", "photo.png"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n", "photo.png"),
    ],
)
def test_what_is_no_image(tmp_path, content, name):
    refused(tmp_path, content, name)


def test_no_interpreter_is_started_for_postscript_that_calls_itself_a_png(tmp_path, monkeypatch):
    import subprocess

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="EPS")
    refused(tmp_path, buffer.getvalue())


def test_a_true_image_under_another_name_is_read_by_its_content(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encoded("JPEG"))
    assert load_image(path).size == (40, 30)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(tmp_path, kind):
    draw = random.Random(kind)
    content, path = encoded(kind), tmp_path / "photo.png"
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 12)):
            damaged[draw.randrange(min(len(damaged), 200) if draw.random() < 0.7 else len(damaged))] = (
                draw.randrange(256)
            )
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert load_image(path).mode == "RGB"
