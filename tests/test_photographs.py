"""Photographs as people have them: masks, captions, shapes that are not square, large folders of class pictures."""

import json
import math
import shutil
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import load_config
from ldm.data.batch import collate
from ldm.data.buckets import buckets, nearest
from ldm.data.captions import CaptionChanges, read_lists
from ldm.data.datamodule import TrainingSamples
from ldm.data.images import check_images, image_files
from ldm.data.masks import cell_weights, mask_of
from ldm.data.order import SampleOrder
from ldm.data.sheet import picture_of, read_sheet
from ldm.data.subject import SubjectImages
from ldm.diffusion.loss import denoising_error, weighted_mean
from ldm.diffusion.schedule import VariancePreserving
from ldm.errors import UserError
from ldm.targets import instantiate_from_config
from ldm.training.rows import read_rows
from ldm.training.run import build
from ldm.world.drawing import World
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, assert_same_run, resume

OPTIONS = {"prompt": "a photo of [V] dog", "size": 32, "seed": 0}


def photograph(folder: Path, name: str, size=(40, 40), colour=(200, 30, 30), mode="RGB") -> Path:
    """A picture with some texture, so that latents differ."""
    values = np.random.default_rng(sum(map(ord, name))).integers(0, 60, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(values + np.array(colour, np.uint8) // 2).convert(mode)
    image.save(folder / name)
    return folder / name


def half_mask(size=(40, 40)) -> Image.Image:
    """White on the left half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return mask


def test_the_masked_loss_is_its_formula():
    x, eps, prediction = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind()
    schedule, t = VariancePreserving(torch.linspace(0.99, 0.01, 10), "epsilon"), torch.tensor([1, 5, 9])
    weights = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    weights[2] = 0
    found = denoising_error(lambda *_: prediction, x, eps, t, schedule, cell_weights=weights)
    for b in range(2):
        total = norm = 0.0
        for c in range(4):
            for i in range(8):
                for j in range(8):
                    w = weights[b, 0, i, j].item()
                    total += w * (prediction[b, c, i, j] - eps[b, c, i, j]).item() ** 2
                    norm += w
        assert found[b].item() == pytest.approx(total / norm, rel=1e-5)
    assert found[2] == 0  # a random crop that has missed the subject
    ones = denoising_error(lambda *_: prediction, x, eps, t, schedule, cell_weights=torch.ones(3, 1, 8, 8))
    assert torch.allclose(ones, denoising_error(lambda *_: prediction, x, eps, t, schedule), rtol=1e-5)
    assert torch.equal(weighted_mean(x, None), x.mean(dim=(1, 2, 3)))


def test_cells_weigh_by_the_share_of_the_mask_in_them():
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 10, 32))  # 2 and a half of the 8 columns of cells
    weights = cell_weights(mask, 8, 8, 0.2)
    assert weights.shape == (1, 8, 8)
    assert torch.allclose(weights[0, 3], torch.tensor([1, 1, 0.6, 0.2, 0.2, 0.2, 0.2, 0.2]))
    assert torch.equal(cell_weights(None, 8, 8, 0.2), torch.ones(1, 8, 8))


def test_a_mask_is_a_picture_beside_the_photograph_or_its_alpha_channel(tmp_path):
    beside = photograph(tmp_path, "a.jpg")
    half_mask((80, 80)).save(tmp_path / "a-mask.png")  # of another size, but the same proportions
    own = photograph(tmp_path, "b.png", mode="RGBA")
    image = Image.open(own)
    image.putalpha(half_mask())
    image.save(own)
    opaque = photograph(tmp_path, "c.png", mode="RGBA")
    assert image_files(tmp_path) == [beside, own, opaque]  # a mask is no photograph
    for path in (beside, own):
        assert np.array_equal(np.asarray(mask_of(path, (40, 40))), np.asarray(half_mask()))
    assert mask_of(opaque, (40, 40)) is None
    half_mask((80, 40)).save(tmp_path / "a-mask.png")
    with pytest.raises(UserError, match="a-mask.png: its proportions, 80 x 40, are not those of a.jpg"):
        mask_of(beside, (40, 40))
    Image.new("L", (40, 40), 0).save(tmp_path / "a-mask.png")
    with pytest.raises(UserError, match="it marks nothing"):
        mask_of(beside, (40, 40))


def test_the_mask_of_a_photograph_that_is_skipped_is_no_photograph(tmp_path, recwarn):
    kept = photograph(tmp_path, "a.png")
    (tmp_path / "b.psd").write_bytes(b"no picture that Pillow may read")
    half_mask().save(tmp_path / "b-mask.png")
    assert image_files(tmp_path) == [kept]
    assert "1 of 2 files are used; skipped: 1 .psd (b.psd" in str(recwarn[0].message)


def test_a_mask_follows_its_photograph_through_crops_and_mirrors(tmp_path):
    photograph(tmp_path, "a.png", (64, 40))
    half_mask((64, 40)).save(tmp_path / "a-mask.png")
    images = SubjectImages.from_folder(tmp_path, unmasked_weight=0.0, **OPTIONS)
    plain, mirrored = images.cell_weights(0, (8, 8)), images.cell_weights(1, (8, 8))
    assert plain[0, 0].round().tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert torch.equal(mirrored, plain.flip(-1))
    at_random = SubjectImages.from_folder(tmp_path, unmasked_weight=0.0, random_crop=True, **OPTIONS)
    assert at_random.cell_weights(0, (8, 8), (0.0, 0.5)).mean() > 0.7
    assert at_random.cell_weights(0, (8, 8), (1.0, 0.5)).mean() < 0.3


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_masks_that_do_nothing_and_photographs_without_one_are_told(tmp_path, weight):
    photograph(tmp_path, "a.png")
    photograph(tmp_path, "b.png")
    half_mask().save(tmp_path / "a-mask.png")
    with pytest.warns(UserWarning, match="b.png" if weight < 1 else "not used.*a-mask.png"):
        SubjectImages.from_folder(tmp_path, unmasked_weight=weight, **OPTIONS)


def test_a_masked_run_weighs_training_and_validation_and_resumes(train, tmp_path):
    for name in ("a", "b", "c"):
        photograph(tmp_path, f"{name}.png")
        half_mask().save(tmp_path / f"{name}-mask.png")
    words = (*QUICK, "--data_root", str(tmp_path), "data.params.flip_probability=0.5")
    masked = (*words, "data.params.unmasked_weight=0.1")
    whole = train(*masked, "lightning.trainer.max_steps=5", name="whole")
    half = train(*masked, "lightning.trainer.max_steps=3", name="half")
    assert resume(half, "lightning.trainer.max_steps=5") == 0
    assert_same_run(half, whole)
    plain = train(*words, "lightning.trainer.max_steps=1", name="plain")
    for name in ("metrics.jsonl", "validation.jsonl"):
        ours, others = read_rows(whole / name)[0], read_rows(plain / name)[0]
        assert ours["subject_loss"] != pytest.approx(others["subject_loss"], rel=1e-3)
    assert read_rows(whole / "metrics.jsonl")[0]["prior_loss"] == pytest.approx(
        read_rows(plain / "metrics.jsonl")[0]["prior_loss"], rel=1e-4
    )  # the class has no mask
    half_mask().transpose(Image.Transpose.ROTATE_180).save(tmp_path / "a-mask.png")
    assert resume(half, "lightning.trainer.max_steps=6") == 2  # the images have changed


def test_captions_of_a_list_and_of_files_beside(tmp_path):
    for name in ("a.png", "b.png", "c.png"):
        photograph(tmp_path, name)
    rows = [
        {"file_name": "a.png", "text": "[V] dog, listed"},
        {"file_name": "b.png", "prompt": "[V] dog, too"},
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.txt").write_text("[V] dog, beside")
    images = SubjectImages.from_folder(tmp_path, captions=True, placeholder="[rex]", **OPTIONS)
    assert images.prompts == ["[rex] dog, listed", "[rex] dog, beside", "a photo of [V] dog"]
    # Unicode's line separators may stand in JSON's texts.
    listed = {"file_name": "a.png", "caption": "[V] dog, first", "by": "me\u2028you"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(listed, ensure_ascii=False), encoding="utf-8")
    assert read_lists(tmp_path)["a.png"].text == "[V] dog, first"
    for line in ("no json", '{"file_name": "a.png"}', '{"file_name": "a.png", "text": " "}', "[1]"):
        (tmp_path / "captions.jsonl").write_text(line)
        with pytest.raises(UserError, match="captions.jsonl: every line must be"):
            read_lists(tmp_path)


def test_captions_that_do_nothing_and_photographs_without_one_are_told(tmp_path):
    def told(**options) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            SubjectImages.from_folder(tmp_path, **OPTIONS, **options)
        return [str(warning.message) for warning in caught]

    for name in ("a.png", "b.png"):
        photograph(tmp_path, name)
    shuffled = CaptionChanges(tag_shuffle=True)
    assert told() == []
    assert told(changes=shuffled) == [
        "tag_shuffle and tag_dropout change nothing: no prompt has parts between commas"
    ]
    rows = [{"file_name": name, "text": "[V] dog, listed"} for name in ("a.png", "gone.png")]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert told() == ["captions are not used, since data.params.captions is false: captions.jsonl"]
    assert told(captions=True, changes=shuffled) == [
        "photographs without a caption, which take data.params.prompt: b.png",
        "captions are listed for files that do not exist: gone.png",
    ]


def test_tags_of_templates_count_whatever_is_held_out(tmp_path, recwarn):
    for name in ("a.png", "b.png"):
        photograph(tmp_path, name)
    words = ["data.params.hold_out=1", "data.params.tag_shuffle=true", "data.params.size=32"]
    words += [
        f"data.params.data_root={tmp_path}",
        'data.params.templates=["a photo of [V] {class_word}, outdoors"]',
    ]
    instantiate_from_config(load_config([RECIPE], words)["data"])
    assert not recwarn.list


def test_tags_are_shuffled_and_dropped_and_captions_left_out_by_the_sample_number():
    prompt = "a photo, [V] dog, snow, evening, blurred"
    changes = CaptionChanges(tag_shuffle=True, tag_dropout=0.3, caption_dropout=0.2)
    drawn = [changes(prompt, "[V]", 5, n) for n in range(1000)]
    assert drawn == [changes(prompt, "[V]", 5, n) for n in range(1000)]
    assert drawn != [changes(prompt, "[V]", 6, n) for n in range(1000)]
    assert 150 < drawn.count("") < 250
    kept = [text.split(", ") for text in drawn if text]
    assert all(tags[0] == "[V] dog" for tags in kept)
    counts = Counter(tag for tags in kept for tag in tags)
    for tag in ("a photo", "snow", "evening", "blurred"):
        assert counts[tag] / len(kept) == pytest.approx(0.7, abs=0.06)
    assert len({tuple(tags) for tags in kept if len(tags) == 5}) == 24  # every order
    in_order = [CaptionChanges(tag_dropout=0.5)(prompt, "[V]", 5, n).split(", ") for n in range(50)]
    assert all(sorted(tags, key=prompt.index) == tags for tags in in_order)
    assert CaptionChanges(caption_dropout=1e-9)("a,  b", "[V]", 5, 0) == "a,  b"


def test_each_sample_draws_its_template_by_its_number(train, tiny_config, tmp_path, capsys):
    """A photograph with a caption keeps it; validation keeps the prompt; a resume and a repetition draw the same."""
    templates = ["a photo of a [V]", "a rendering of a {class_word}, a [V]", "my [V]"]
    files = [photograph(tmp_path, f"{name}.png") for name in "ab"]
    (tmp_path / "b.txt").write_text("[V] dog, snow")
    plain = SubjectImages(files, captions=True, **OPTIONS)
    images = SubjectImages(files, captions=True, templates=templates, **OPTIONS)
    drawn = Counter((images[n]["view"], images[n]["prompt"]) for n in range(600))
    assert {prompt for view, prompt in drawn if view == 2} == {"[V] dog, snow"}
    assert {prompt for view, prompt in drawn if view == 0} == set(templates)
    assert all(70 < drawn[0, template] < 130 for template in templates)
    assert [images[n]["view"] for n in range(50)] == [plain[n]["view"] for n in range(50)]
    assert images.without_augmentation()[0]["prompt"] in plain.prompts

    words = (
        f"data.params.templates={json.dumps(templates)}",
        "lightning.callbacks.validation.params.every_steps=2",
    )
    run = train(*QUICK, *words, "lightning.trainer.max_steps=4")
    other = train(*QUICK, words[1], "lightning.trainer.max_steps=4", name="other")
    assert "one of 3 templates for it" in capsys.readouterr().out
    rows, others = (read_rows(path / "metrics.jsonl") for path in (run, other))
    assert [row["prior_loss"] for row in rows][0] == [row["prior_loss"] for row in others][0]
    assert all(
        row["subject_loss"] != another["subject_loss"] for row, another in zip(rows, others, strict=True)
    )
    first, of_others = (read_rows(path / "validation.jsonl")[0] for path in (run, other))
    assert first == of_others
    words = ["--base", RECIPE, str(tiny_config), "-t", "false", "data.params.templates=[a photo of a dog]"]
    assert main(words) == 2
    assert "prompt 'a photo of a dog' of the subject's images: write [V]" in capsys.readouterr().err


def test_a_caption_without_placeholder_is_told_by_its_file(train, tmp_path, capsys):
    for name in ("a", "b"):
        photograph(tmp_path, f"{name}.png")
    (tmp_path / "a.txt").write_text("a dog in the snow")
    (tmp_path / "b.txt").write_text("[V] dog, snow")
    words = ("data.params.captions=true", "data.params.tag_shuffle=true", "data.params.caption_dropout=0.5")
    train(*QUICK, "--data_root", str(tmp_path), *words, "lightning.trainer.max_steps=1")
    assert "captions without [V], from which the subject is not learned: a.txt ('a dog in the snow')" in (
        capsys.readouterr().err
    )


def test_buckets_have_equal_areas_and_sides_that_the_step_divides():
    found = buckets(512, 64)
    assert (512, 512) in found
    for width, height in found:
        assert width % 64 == height % 64 == 0
        assert width * height == pytest.approx(512 * 512, rel=0.13)
        assert max(width, height) / min(width, height) <= 2
        assert (height, width) in found
    assert buckets(64, None) == [(64, 64)]
    assert nearest(4032, 3024, found) == (576, 448)
    assert nearest(3024, 4032, found) == (448, 576)
    assert nearest(9000, 1000, found) == max(found, key=lambda shape: shape[0] / shape[1])


def test_every_step_has_one_shape_and_every_photograph_its_share():
    """Two subjects of weights 1 and 2; the first has 3 square and 1 tall photographs, the second 2 tall ones."""
    order = replace(SampleOrder.of(7, [1, 2], [[3, 1], [0, 2]]), step=4)
    samples = [(order.shape(n), order.subject(n)) for n in range(12_000)]
    for first in range(0, len(samples), 4):
        assert len({shape for shape, _ in samples[first : first + 4]}) == 1
    shares = {key: count / len(samples) for key, count in Counter(samples).items()}
    assert shares == pytest.approx({(0, 0): 1 / 4, (1, 0): 1 / 12, (1, 1): 2 / 3}, rel=0.02)
    for n in (0, 17, 4001):
        assert order.number_among(n, [0]) == samples[:n].count((samples[n][0], 0))
        assert order.number_among(n, [0, 1]) == sum(shape == samples[n][0] for shape, _ in samples[:n])


@pytest.fixture(scope="module")
def tall_and_wide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    for name, size in (("a.png", (80, 40)), ("b.png", (40, 80)), ("c.png", (48, 48)), ("d.png", (64, 36))):
        photograph(folder, name, size)
    return folder


def test_a_run_in_buckets_walks_one_curve_however_it_is_shared_out_and_resumes(train, tall_and_wide):
    words = (
        *QUICK,
        "--data_root",
        str(tall_and_wide),
        "data.params.bucket_step=8",
        "lightning.trainer.max_steps=6",
    )
    whole = train(*words, "data.params.batch_size=2", name="whole")
    parts = train(
        *words, "data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2", name="parts"
    )
    for one, other in zip(
        read_rows(whole / "metrics.jsonl"), read_rows(parts / "metrics.jsonl"), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-4)
    banks = {path.name for path in (whole / "prior").iterdir()}
    assert banks <= {"40x24", "24x40", "32x32"}
    assert len(banks) > 1
    half = train(*words, "data.params.batch_size=2", "lightning.trainer.max_steps=3", name="half")
    assert resume(half, "lightning.trainer.max_steps=6") == 0
    assert_same_run(half, whole)


def test_a_batch_in_buckets_holds_the_photographs_and_masks_at_their_shape(
    tiny_config, tall_and_wide, tmp_path
):
    photographs = tmp_path / "photographs"
    shutil.copytree(tall_and_wide, photographs)
    for path in sorted(tall_and_wide.iterdir()):
        half_mask(Image.open(path).size).save(photographs / f"{path.stem}-mask.png")
    words = [
        f"data.params.data_root={photographs}",
        "data.params.bucket_step=8",
        "data.params.batch_size=2",
        "data.params.unmasked_weight=0.1",
    ]
    data, module, trainer = build(load_config([RECIPE, tiny_config], words), tmp_path)
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    module.setup("fit")
    data.prepare_latents()
    samples, seen = TrainingSamples(data), set()
    for first in range(0, 16, 2):
        loaded = collate([samples[first], samples[first + 1]])
        batch = data.on_after_batch_transfer(loaded, 0)
        width, height = data.subjects[0].shape_of(loaded.views[0])
        assert batch.latents.shape == batch.noise.shape == (4, 4, height // 4, width // 4)
        assert batch.cell_weights.shape == (4, 1, height // 4, width // 4)
        of_subject, of_class = batch.cell_weights.chunk(2)
        assert torch.equal(of_class, torch.ones_like(of_class))
        half = width // 4 // 2
        for place, expected in ((slice(half - 1), 1.0), (slice(half + 1, None), 0.1)):  # the edge is soft
            assert torch.allclose(of_subject[..., place], torch.tensor(expected), atol=1e-3)
        seen |= {view // 2 for view in loaded.views}
    assert seen == {0, 1, 2, 3}
    assert torch.isfinite(module.training_step(batch, 0)["loss"])
    wide = data.subjects[0].pixels(0)
    assert wide.shape == (3, 24, 40)
    with pytest.raises(UserError, match="multiple"):
        module.check(replace_shapes(data), trainer)


def replace_shapes(data):
    data.subjects[0].shapes[0] = (42, 24)
    return data


def test_a_large_folder_of_class_pictures_is_not_decoded_at_the_start(tmp_path, monkeypatch):
    paths = [photograph(tmp_path, f"{n:03d}.jpg", (100, 100)) for n in range(40)]
    decoded = []
    load = Image.Image.load
    jpeg = type(Image.open(paths[0]))
    monkeypatch.setattr(jpeg, "load", lambda self: decoded.append(self.filename) or load(self), raising=False)
    check_images(paths, pixels=50_000)
    assert len(decoded) == 5
    paths[30].write_bytes(b"no picture")
    with pytest.raises(UserError, match=f"image {paths[30]}: cannot be read"):
        check_images(paths, pixels=0)


def test_small_photographs_are_told_by_the_shape_they_are_enlarged_to(tmp_path):
    photograph(tmp_path, "a.png", (30, 20))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        SubjectImages.from_folder(tmp_path, shapes=buckets(32, 8), **OPTIONS)
    assert "the training size of 40 x 24 px are enlarged" in str(caught[0].message)
    assert math.isclose(40 / 24, 30 / 20, rel_tol=0.2)


def test_a_sheet_shows_what_a_run_will_see(tiny_config, tall_and_wide, tmp_path, capsys):
    from scripts.preview_data import main

    for path in tall_and_wide.iterdir():
        shutil.copy(path, tmp_path)
    half_mask((80, 40)).save(tmp_path / "a-mask.png")
    (tmp_path / "b.txt").write_text("[V] dog, tall")
    out = tmp_path / "sheets" / "preview.png"
    out.parent.mkdir()
    words = ["data.params.bucket_step=8", "data.params.unmasked_weight=0.1", "data.params.captions=true"]
    words += ["data.params.flip_probability=0.5", "--out", str(out), "--prior", "2"]
    assert main(["-b", RECIPE, str(tiny_config), "--data_root", str(tmp_path), *words]) == 0
    sheet, cells, _ = read_sheet(out)
    # A strip for each photograph: its crop, its mask where it has one, its mirror image; then the class.
    assert [cell.title for cell in cells] == [
        *("crop", "what counts", "mirrored"),
        *["crop", "mirrored"] * 3,
        *["class: 'a photo of a dog', 2 of 8 prior samples"] * 2,
    ]
    crop, counts = (np.asarray(picture_of(sheet, cell)).astype(int) for cell in cells[:2])
    assert crop.shape == (24, 40, 3)
    assert np.array_equal(crop[:, :16], counts[:, :16])  # the mask's half is as it was
    assert counts[:, 22:].mean() > crop[:, 22:].mean() + 50  # the rest is pale
    assert str(out) in capsys.readouterr().out
    assert (
        main(["-b", RECIPE, str(tiny_config), "--data_root", str(tmp_path / "nowhere"), "--out", str(out)])
        == 2
    )
    assert main(["-b", RECIPE, str(tiny_config), "--out", "/proc/nowhere/preview.png"]) == 2


def test_the_worlds_masks_are_exact():
    world = World()
    picture, mask = world.compose_with_mask("cat-black-fluent", "on the beach", np.random.default_rng(0))
    again = world.compose("cat-black-fluent", "on the beach", np.random.default_rng(0))
    tinted = world.compose("cat-black-fluent", "on the beach", np.random.default_rng(0), "yellow")
    assert np.array_equal(picture, again)
    changed = np.any(picture != tinted, axis=-1)
    assert not changed[mask == 0].any()  # another colour changes nothing outside of the mask
    assert changed[mask == 255].mean() > 0.9
