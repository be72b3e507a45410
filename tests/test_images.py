"""Users' images in every mode, size and orientation, and files that are not images."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data import images
from ldm.data.images import image_files, load_image, resize_and_crop, to_image, to_tensor
from ldm.data.subject import SubjectImages
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


@pytest.fixture
def smooth():
    """A picture of 512 x 384 px without grain."""
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((512, 384), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_huge_picture_is_read_at_a_fraction_of_its_size(tmp_path, monkeypatch, smooth, extension):
    path = tmp_path / f"a.{extension}"
    smooth.save(path)
    assert load_image(path, 12).size == (512, 384)  # today's limit is far above this picture
    monkeypatch.setattr(images, "LARGE", 512 * 384 - 1)
    assert load_image(path).size == (512, 384)
    assert load_image(path, 12).size == (128, 96)  # its shorter side is 8 times what is needed
    assert load_image(path, 13).size == (256, 192)
    assert load_image(path, 25).size == (512, 384)
    whole, part = (np.asarray(resize_and_crop(load_image(path, side), 12), int) for side in (None, 12))
    assert np.abs(whole - part).max() <= 2


def test_a_huge_jpeg_is_never_unpacked(tmp_path, monkeypatch, smooth):
    smooth.save(tmp_path / "a.jpg")
    monkeypatch.setattr(images, "LARGE", 0)
    sizes = []
    monkeypatch.setattr(images, "_to_rgb", lambda image: sizes.append(image.size) or image)
    load_image(tmp_path / "a.jpg", 6)
    assert sizes == [(64, 48)]


def test_what_is_kept_of_a_photograph_is_what_training_sees_of_it(tmp_path, smooth):
    smooth.save(tmp_path / "a.png")
    options = {"prompt": "[V] dog", "size": 32, "seed": 0}
    cropped = SubjectImages.from_folder(tmp_path, **options)
    at_random = SubjectImages.from_folder(tmp_path, random_crop=True, **options)
    assert (cropped.nbytes, at_random.nbytes) == (4 * 32 * 32, 4 * 512 * 384)
    now = to_tensor(resize_and_crop(Image.open(tmp_path / "a.png"), 32))
    assert torch.equal(cropped.pixels(0), now)
    assert torch.equal(at_random.without_augmentation().pixels(1), now.flip(-1))
    assert at_random.without_augmentation().images is at_random.images
    assert set(at_random.without_augmentation()[0]) == {"view", "prompt", "size_ids"}


@pytest.mark.parametrize(("mode", "full"), [("I;16", 65535), ("I", 65535), ("F", 1.0)])
def test_deep_pictures_are_scaled_in_strips(tmp_path, mode, full):
    """The result equals that of a single pass; the pictures have more rows than a strip."""
    values = np.linspace(0, full, 1_001_000).reshape(1001, 1000)
    image = Image.fromarray(values.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    assert image.mode == mode
    at_once = (np.asarray(image, np.float64) / full * 255).round().astype(np.uint8)
    assert np.array_equal(np.asarray(images._to_8_bits(image)), at_once)


def test_photographs_of_todays_telephones_bring_no_warning_of_bombs(tmp_path, recwarn):
    Image.new("L", (12_000, 9_000)).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg", 64).size == (1500, 1125)
    assert not recwarn.list
