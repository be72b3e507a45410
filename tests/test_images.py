"""Pictures as users have them: every mode, size and orientation, and the ones that are none."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.images import image_files, load_image, resize_and_crop, to_image, to_tensor
from ldm.errors import UserError

RED = (200, 30, 40)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    extension = "tif" if mode in ("CMYK", "YCbCr") else "png"
    Image.new("RGB", (8, 6), RED).convert(mode).save(tmp_path / f"a.{extension}")
    image = load_image(tmp_path / f"a.{extension}")
    assert (image.mode, image.size) == ("RGB", (8, 6))
    if mode in ("RGB", "RGBA", "CMYK", "YCbCr"):
        assert np.abs(np.array(image)[0, 0].astype(int) - RED).max() <= 3


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_greyscale_is_scaled_not_clipped(tmp_path, extension):
    values = np.array([[0, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{extension}")
    assert np.array(load_image(tmp_path / f"a.{extension}"))[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "a.png")
    palette = Image.new("P", (4, 4), 0)
    palette.info["transparency"] = 0
    palette.save(tmp_path / "b.png", transparency=0)
    for name in ("a.png", "b.png"):
        assert np.array(load_image(tmp_path / name)).min() == 255


def test_exif_orientation_is_obeyed(tmp_path):
    upright = Image.new("RGB", (20, 10), "black")
    upright.paste(RED, (0, 0, 10, 10))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    upright.rotate(90, expand=True).save(tmp_path / "a.png", exif=exif)
    image = load_image(tmp_path / "a.png")
    assert image.size == (20, 10)
    assert image.getpixel((2, 5)) == RED


@pytest.mark.parametrize("size", [(100, 40), (40, 100), (17, 16), (16, 16), (7, 9)])
def test_resized_and_cropped_never_squashed(size):
    """A circle in the middle stays a circle."""
    width, height = size
    radius = min(size) / 4
    y, x = np.mgrid[:height, :width]
    inside = np.hypot(x - width / 2 + 0.5, y - height / 2 + 0.5) < radius
    image = Image.fromarray((inside * 255).astype(np.uint8)).convert("RGB")
    cropped = np.array(resize_and_crop(image, 64))[..., 0] > 127
    assert cropped.shape == (64, 64)
    across, down = cropped.any(0).sum(), cropped.any(1).sum()
    assert abs(int(across) - int(down)) <= 64 / min(size) + 1


def test_the_crop_can_be_placed():
    image = Image.new("RGB", (30, 10), "black")
    image.paste(RED, (20, 0, 30, 10))
    assert resize_and_crop(image, 10, (1, 0.5)).getpixel((5, 5)) == RED
    assert resize_and_crop(image, 10, (0, 0.5)).getpixel((5, 5)) == (0, 0, 0)


def test_pixel_range_there_and_back():
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = Image.fromarray(np.stack([values] * 3, axis=-1))
    tensor = to_tensor(image)
    assert (tensor.min(), tensor.max()) == (-1, 1)
    assert torch.equal(to_tensor(to_image(tensor)), tensor)


def test_only_pictures_are_taken(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "Thumbs.db").write_bytes(b"\0")
    assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.JPG"]


def test_no_such_folder_and_no_images(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        image_files(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no images in it"):
        image_files(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_an_unreadable_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png: cannot be read"):
        load_image(path)


def test_a_picture_cut_short_is_named(tmp_path):
    path = tmp_path / "cut.jpg"
    Image.effect_noise((200, 200), 50).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"cut\.jpg: cannot be read"):
        load_image(path)
