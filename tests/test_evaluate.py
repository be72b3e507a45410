"""scripts/evaluate.py from the command line, on tiny models: honest, repeatable, resumable, one-line errors."""

import csv
import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from ldm.concepts import PLACEHOLDER
from ldm.config import load_settings
from ldm.data.images import image_files
from ldm.data.png import png_text
from ldm.errors import UserError
from ldm.evaluation.evaluate import RESULTS
from ldm.evaluation.protocol import fill_in, plan, prompt_set, without_identifier
from ldm.evaluation.settings import EvaluationSettings
from ldm.evaluation.settings_file import keep_to
from scripts import txt2img
from scripts.evaluate import CONFIG, main
from tests.tiny_features import tiny_features

PROJECT = Path(__file__).resolve().parents[1]
DOG = PROJECT / "assets" / "subject" / "dog"


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> list[str]:
    """Overrides that make an evaluation tiny."""
    clip, dino = tiny_features(tmp_path_factory.mktemp("features"))
    return [
        f"networks.clip={clip}",
        f"networks.dino={dino}",
        "sampling.steps=2",
        "sampling.images_per_prompt=2",
        "sampling.class_images=6",
    ]


@pytest.fixture
def evaluate(networks, tmp_path):
    """`evaluate("--ckpt", ..., out="a")` runs the script in this process; returns the result and its folder."""

    def run(*words, out: str = "out", expect: int = 0):
        folder = tmp_path / out
        assert main([*map(str, words), "--device", "cpu", "--outdir", str(folder), *networks]) == expect
        return json.loads((folder / "metrics.json").read_text()) if expect == 0 else None, folder

    run.networks = networks
    return run


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "images.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_is_measured_twice_with_the_same_numbers(train, evaluate, capsys):
    run = train("data.params.hold_out=2", "lightning.trainer.max_steps=2", name="measured")
    result, folder = evaluate("--ckpt", run)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    evaluate("--ckpt", run, "sampling.seed=3", expect=2)
    assert "out has an evaluation of other settings (sampling.seed was 0, now 3)" in capsys.readouterr().err
    evaluate("--ckpt", run, "--precision", "bf16", expect=2)
    assert "(precision was torch.float32, now torch.bfloat16)" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again, elsewhere = evaluate("--ckpt", run, out="again")
    assert result == again
    assert (folder / "images.csv").read_text() == (elsewhere / "images.csv").read_text()

    rows = rows_of(folder)
    subject = [row for row in rows if row["kind"] == "subject"]
    assert (len(subject), len(rows)) == (50, 56)
    for key in ("dino", "clip_i", "clip_t", "div"):
        mean = sum(float(row[key]) for row in subject) / len(subject)
        assert result["metrics"][key]["value"] == pytest.approx(mean)
        assert result["metrics"][key]["low"] <= mean <= result["metrics"][key]["high"]
    assert result["metrics"]["pres"]["count"] == 6
    assert all("[V]" not in row["text"] and "sks" not in row["text"] for row in rows)

    # Training images do not test themselves: scores use the two held-out images.
    names = [path.name for path in image_files(DOG)]
    assert result["about"]["real_images"] == {"held_out": names[-2:], "training": names[:-2]}
    assert result["metrics"]["dino"]["value"] == result["against"]["held_out"]["dino"]
    assert "not used in training" in result["about"]["note"]

    # An interrupted evaluation continues: existing images are kept, a missing one is drawn again identically.
    kept, lost = folder / "subject" / "00-0.png", folder / "subject" / "00-1.png"
    before, age = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    evaluate(
        "--ckpt", run, "--class_word", "dog", "sampling.batch_size=3"
    )  # what it was, and what changes nothing
    assert (lost.read_bytes(), kept.stat().st_mtime_ns) == (before, age)

    # The written images score the same as images made elsewhere.
    words = ("--images", folder, "--real", DOG, "--class_word", "dog")
    given, _ = evaluate(*words, out="given")
    for key in ("clip_t", "div", "class_clip_t"):
        assert given["metrics"][key] == result["metrics"][key]
    assert given["about"]["real_images"] == {"given": names}


def test_several_subjects_are_measured_alone_against_each_other_and_together(train, evaluate, capsys):
    subjects = [
        {"data_root": "assets/benchmark/cat", "class_word": "cat", "identifier": "sks"},
        {"data_root": "assets/subject/dog", "class_word": "dog", "identifier": "vup", "placeholder": "[rex]"},
    ]
    words = (f"data.params.concepts={json.dumps(subjects)}", "data.params.hold_out=2")
    run = train(*words, "lightning.trainer.max_steps=2", name="measured")
    assert main([*map(str, ("--ckpt", run, "--device", "cpu")), *evaluate.networks]) == 0
    told, out = capsys.readouterr().out, run / "evaluation"
    result = json.loads((out / "concepts.json").read_text())
    assert [one["placeholder"] for one in result["subjects"]] == ["[V1]", "[rex]"]
    for place, name in enumerate(("v1", "rex")):
        own = json.loads((out / name / "metrics.json").read_text())
        assert result["subjects"][place]["metrics"] == own["metrics"]
        assert result["photographs"][place][place] == pytest.approx(own["real"]["dino"]["value"])
        assert result["confusion"][place][place] == pytest.approx(own["metrics"]["dino"]["value"])
    assert len({value for row in result["confusion"] for value in row}) == 4
    assert result["photographs"][0][1] == pytest.approx(result["photographs"][1][0])
    for name, shares in zip(("v1", "rex"), result["nearest"], strict=True):
        pictures = len(list((out / name / "subject").glob("*.png")))
        assert sum(shares) == pytest.approx(1)
        assert all(share * pictures == pytest.approx(round(share * pictures)) for share in shares)
    (pair,) = result["pairs"]
    assert pair["dino_lower"] <= min(pair["dino"])
    drawn = {png_text(out / name)["prompt"] for name in pair["images"]}
    assert "a photo of sks cat and vup dog on the beach" in drawn
    assert len(pair["images"]) == 6
    assert "[rex] dog" in told
    assert (out / "report.html").read_text().count("<table") == 4
    alone, folder = evaluate("--ckpt", run, "--concept", "[rex]", out="alone")
    assert alone["metrics"] == result["subjects"][1]["metrics"]
    assert alone["about"]["real_images"]["held_out"] == ["03.png", "04.png"]
    assert {png_text(path)["prompt"] for path in (folder / "subject").iterdir()} == {
        png_text(path)["prompt"] for path in (out / "rex" / "subject").iterdir()
    }
    # By default a single subject is measured where all of them have it, and nothing is drawn again.
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    report = (out / "report.html").read_bytes()
    assert (
        main([*map(str, ("--ckpt", run, "--concept", "[rex]", "--device", "cpu")), *evaluate.networks]) == 0
    )
    assert (out / "report.html").read_bytes() == report
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert json.loads((out / "rex" / "metrics.json").read_text())["metrics"] == alone["metrics"]
    evaluate("--ckpt", run, "--concept", "[V2]", expect=2)
    assert "the model has no such subject; it has [V1], [rex]" in capsys.readouterr().err
    evaluate("--ckpt", run, "--real", DOG, expect=2)
    assert "--real is of one subject" in capsys.readouterr().err
    evaluate("--ckpt", run, "--class_word", "dog", expect=2)
    assert "--class_word is of one subject" in capsys.readouterr().err


def test_without_hold_out_the_result_warns(train, evaluate):
    run = train("lightning.trainer.max_steps=1", "model.params.prior_loss_weight=0", name="memorized")
    result, _ = evaluate("--ckpt", run / "checkpoints" / "last.ckpt")
    assert list(result["about"]["real_images"]) == ["training"]
    assert "memorization" in result["about"]["note"]


def test_a_base_gets_the_prompts_without_the_identifier(tiny, evaluate):
    result, folder = evaluate("--ckpt", tiny, "--real", DOG, "--class_word", "dog")
    assert all(row["prompt"] == row["text"] for row in rows_of(folder))
    assert result["about"]["identifier"] is None


def test_images_made_elsewhere_in_folders_named_by_prompt(evaluate, tmp_path):
    for name in ("a_sks_dog_in_the_snow", "sks_dog"):
        shutil.copytree(DOG, tmp_path / "made" / name)
    words = ("--images", tmp_path / "made", "--real", DOG, "--class_word", "dog", "--identifier", "sks")
    result, folder = evaluate(*words)
    assert {row["text"] for row in rows_of(folder)} == {"a dog in the snow", "dog"}
    assert result["metrics"]["pres"]["value"] is None
    result, _ = evaluate(*words, "--class_images", DOG, out="with_class")
    assert result["metrics"]["pres"]["value"] > 0


def test_images_made_elsewhere_with_a_list(evaluate, tmp_path):
    shutil.copytree(DOG, tmp_path / "made")
    lines = [{"file_name": path.name, "text": "a dog"} for path in image_files(DOG)]
    (tmp_path / "made" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    _, folder = evaluate("--images", tmp_path / "made", "--real", DOG, "--class_word", "dog")
    assert {row["prompt"] for row in rows_of(folder)} == {"a dog"}


def test_every_picture_can_be_drawn_again_and_says_how_its_base_was_read(tiny, evaluate, tmp_path):
    words = ("--ckpt", tiny, "--real", DOG, "--class_word", "dog")
    _, plain = evaluate(*words, out="plain")
    _, folder = evaluate(*words, "--prediction_type", "v_prediction")
    picture = folder / "subject" / "03-1.png"
    assert png_text(picture)["prediction_type"] == "v_prediction"
    assert pixels(picture) != pixels(plain / "subject" / "03-1.png")
    again = tmp_path / "again"
    assert txt2img.main(["--from-image", str(picture), "--outdir", str(again)]) == 0
    ours, theirs = pixels(again / "samples" / "00000.png"), pixels(picture)
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) <= 1


def pixels(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_pictures_that_are_not_finite_are_not_scored(tiny, evaluate, monkeypatch, capsys):
    monkeypatch.setattr(
        AutoencoderKL, "decode", lambda vae, latents: SimpleNamespace(sample=latents[:, :3] * torch.inf)
    )
    _, folder = evaluate("--ckpt", tiny, "--real", DOG, "--class_word", "dog", expect=2)
    assert "not finite" in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "metrics.json").exists()


def test_a_disk_that_fills_up_keeps_what_was_drawn(tiny, evaluate, monkeypatch, capsys):
    real, calls = Image.Image.save, []

    def save(image, path, **options):
        calls.append(path)
        if len(calls) > 13:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(image, path, **options)

    words = ("--ckpt", tiny, "--real", DOG, "--class_word", "dog")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        _, folder = evaluate(*words, expect=2)
    assert "(No space left on device): free some space" in capsys.readouterr().err.splitlines()[-1]
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    assert len(kept) == 13
    evaluate(*words)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("place", ["file", "link", "/proc/nowhere", "half"])
def test_a_folder_that_takes_nothing_is_told_first(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("link").symlink_to("gone")
    Path("half").mkdir()
    Path("half", "subject").write_text("mine")
    assert main(["--ckpt", "nowhere", "--outdir", place]) == 2
    assert f"error: {place}" in (said := capsys.readouterr().err)
    assert "cannot be written to" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", DOG, "--real", DOG, "--class_word", "dog"], "no prompt for it"),
        (["--images", "nowhere", "--real", DOG, "--class_word", "dog"], "no such folder"),
        (["--images", DOG, "--class_word", "dog"], "--real"),
        (["--images", DOG, "--real", DOG], "--class_word"),
        (["--images", DOG, "sampling.step=3"], "steps"),
        (["--images", DOG, "--real", DOG, "--class_word", "dog", "--hold_out", "5"], "some must remain"),
        (["--ckpt", "nowhere", "--real", DOG, "--class_word", "dog"], "nowhere"),
        (["--images", DOG, "--real", DOG, "--class_word", "dog", "networks.diversity=lpip"], "dino or clip"),
    ],
)
def test_mistakes_end_with_one_line(evaluate, capsys, words, says):
    evaluate(*words, expect=2)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--images", DOG, "--hold_out", "2"], "--hold_out is for --real"),
        (["--ckpt", "assets/base", "--class_images", DOG], "--class_images is for --images"),
    ],
)
def test_options_that_mean_nothing_end_in_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as end:
        main([*map(str, words)])
    assert end.value.code == 2
    assert says in capsys.readouterr().err


def test_a_folder_without_settings_is_left_alone(tmp_path):
    (tmp_path / "subject").mkdir()
    (tmp_path / "subject" / "00-0.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"an evaluation of an earlier version: choose another --outdir"):
        keep_to({"a": 1}, tmp_path, RESULTS, "an evaluation")
    (tmp_path / "subject" / "00-0.png").unlink()
    keep_to({"a": 1}, tmp_path, RESULTS, "an evaluation")
    keep_to({"a": 2}, tmp_path, RESULTS, "an evaluation")  # there is no result yet
    (tmp_path / "metrics.json").write_text("{}")
    keep_to({"a": 2, "b": None}, tmp_path, RESULTS, "an evaluation")
    (tmp_path / "settings.json").write_text('{"a": 2}')
    with pytest.raises(UserError, match="an evaluation of an earlier version"):
        keep_to({"a": 2}, tmp_path, RESULTS, "an evaluation")
    for text in ("[1]", "{"):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(UserError, match="settings.json is damaged"):
            keep_to({"a": 2}, tmp_path, RESULTS, "an evaluation")


def test_the_papers_prompts():
    config = load_settings(
        [CONFIG, PROJECT / "configs" / "stable-diffusion" / "evaluation.yaml"], EvaluationSettings
    )
    sizes = {name: len(prompts) for name, prompts in config["prompt_sets"].items()}
    assert sizes == {**dict.fromkeys(("embedded", "object", "live"), 25), "own": 1}
    assert prompt_set(config, "cat") == "live"
    assert prompt_set(config, "stuffed animal") == "object"
    items = plan(config, "teapot", Path("out"))
    assert len([item for item in items if item.kind == "subject"]) == 100
    assert len({item.path for item in items}) == len(items)
    assert items[0].prompt == "a [V] teapot in the jungle"
    assert items[0].text == "a teapot in the jungle"
    assert [item.seed for item in items[:5]] == [0, 1, 2, 3, 0]


def test_the_class_noun_ablation_changes_what_is_drawn_from_alone():
    config = load_settings([CONFIG], EvaluationSettings)
    item = plan(config, "dog", Path("out"), noun="")[0]
    assert (item.prompt, item.text) == ("a photo of [V] in the snow", "a photo of a dog in the snow")


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a [V] owl", "an owl"),
        ("an [V] dog", "a dog"),
        ("a red [V] owl", "a red owl"),
        ("a photo of [V] owl at night", "a photo of an owl at night"),
        ("a painting of a [V] dog", "a painting of a dog"),
        ("[V] dog", "dog"),
        ("a photo of [V], in oil", "a photo, in oil"),
        ("a photo of a [V]", "a photo"),
        ("[V], a dog at night", "a dog at night"),
        ("a dog, [V], at night", "a dog, at night"),
        ("a photo of [V]'s dog", "a photo of a dog"),
    ],
)
def test_the_identifier_is_dropped_with_its_article_mended(prompt, text):
    assert without_identifier(prompt) == text


@pytest.mark.parametrize("identifier", ["sks", "olis zz", "Sks", "s.s"])
def test_every_spelling_of_an_identifier_leaves_the_text(identifier):
    said = identifier.lower()
    for prompt, text in (
        ("a {} owl", "an owl"),
        ("a photo of {}, a dog, in the snow", "a photo, a dog, in the snow"),
        ("a {} dog.", "a dog."),
        ("{}", ""),
    ):
        assert without_identifier(prompt.format(said), identifier) == text
    assert without_identifier(f"a x{said} dog", identifier) == f"a x{said} dog"  # another word


def test_articles_of_nouns():
    assert fill_in("a photo of a {class}", "owl") == "a photo of an owl"
    assert fill_in("a [V] {class}", "teddy bear") == f"a {PLACEHOLDER} teddy bear"
