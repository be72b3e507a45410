"""Sheets: every picture is recovered pixel for pixel, and a stranger's metadata is not trusted."""

import json

import numpy as np
import pytest
from PIL import Image

from ldm.data.images import load_image, resize_and_crop, to_image
from ldm.data.png import png_info
from ldm.data.sheet import FACT, Strip, draw_sheet, picture_of, read_sheet, save_sheet
from ldm.diffusion.sampling import Sampling
from ldm.methods.load import load_for_sampling
from tests.conftest import PROJECT
from tests.tiny import SIDE


def pictures(count, width=8, height=8):
    return [
        Image.frombytes(
            "RGB", (width, height), bytes((7 * k + 3 * i) % 256 for i in range(3 * width * height))
        )
        for k in range(count)
    ]


def test_pictures_come_back_pixel_for_pixel(tmp_path):
    small, large = pictures(5), pictures(2, 200, 170)
    strips = [
        Strip("a photo of sks dog " * 9, small, seeds=range(23, 28)),
        Strip("photographs", large, ["a.png", "b.png"]),
    ]
    sheet, cells = draw_sheet("step 5 of 10", strips, columns=3)
    save_sheet(sheet, cells, tmp_path / "sheet.png", step=5)
    image, found, facts = read_sheet(tmp_path / "sheet.png")
    assert found == cells
    assert facts["step"] == "5"
    assert [picture_of(image, cell).tobytes() for cell in found] == [p.tobytes() for p in (*small, *large)]
    assert [cell.seed for cell in found] == [23, 24, 25, 26, 27, None, None]
    assert [cell.title for cell in found[5:]] == ["a.png", "b.png"]
    assert all(cell.width >= 160 for cell in found)
    boxes = [(c.left, c.top, c.left + c.width, c.top + c.height) for c in found]
    for one in boxes:
        for other in boxes:
            assert (
                one == other
                or one[2] <= other[0]
                or other[2] <= one[0]
                or one[3] <= other[1]
                or other[3] <= one[1]
            )


@pytest.mark.parametrize(
    "fact",
    [
        "",
        "[1]",
        "{}",
        "[" * 5000,
        '[{"title": "x"}]',
        json.dumps([{"title": "x", "seed": 1, "left": 0, "top": 0, "width": 10**9, "height": 8, "scale": 1}]),
        json.dumps([{"title": "x", "seed": 1, "left": 0, "top": 0, "width": 8, "height": 8, "scale": 0}]),
        json.dumps([{"title": "x", "seed": 1, "left": -9, "top": 0, "width": 8, "height": 8, "scale": 1}]),
        json.dumps([{"title": 1, "seed": 1, "left": 0, "top": 0, "width": 8, "height": 8, "scale": 1}]),
    ],
)
def test_a_sheet_that_says_nonsense_has_no_pictures(tmp_path, fact):
    path = tmp_path / "sheet.png"
    pictures(1, 64, 64)[0].save(path, pnginfo=png_info({FACT: fact}))
    image, cells, _ = read_sheet(path)
    assert image.size == (64, 64)
    assert cells == []


def test_a_runs_sheets_say_prompt_seed_and_step(train):
    drawn_by = "lightning.callbacks.samples.params={sampler: dpmpp_2m, steps: 3, guidance_scale: 4.0}"
    run = train("lightning.trainer.max_steps=5", drawn_by)
    sheet, cells, facts = read_sheet(run / "images" / "step-000005.png")
    assert facts["step"] == "5"
    samples = [cell for cell in cells if cell.seed is not None]
    assert [cell.seed for cell in samples] == [23, 24] * 3
    assert samples[0].title == "a photo of sks dog in the snow"
    assert [cell.title for cell in cells if cell.seed is None] == [f"0{k}.png" for k in range(5)]
    photograph = picture_of(sheet, cells[-1])
    expected = resize_and_crop(load_image(PROJECT / "assets/subject/dog/04.png"), SIDE)
    assert photograph.tobytes() == expected.tobytes()
    loaded = load_for_sampling(run).model.eval()
    (drawn,) = loaded.images([samples[0].title], [23], Sampling("dpmpp_2m", 3, 4.0), SIDE, SIDE)
    difference = np.abs(np.asarray(to_image(drawn), int) - np.asarray(picture_of(sheet, samples[0]), int))
    assert difference.max() <= 1  # a batch of one rounds apart from a batch of two
