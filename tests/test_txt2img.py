"""scripts/txt2img.py: each picture is saved once drawn, and can be drawn again from its PNG's facts."""

import errno
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from ldm.data.png import png_text
from ldm.files import PROJECT
from ldm.methods.parts import warn_of_clip_skip
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.samplers import SAMPLERS
from main import main
from scripts import txt2img
from tests.conftest import RECIPE
from tests.runs import QUICK
from tests.tiny import tiny_vae


@pytest.fixture
def draw(tiny, tmp_path):
    """`draw("--steps", 3, ..., out="a")` runs the script in this process; returns the output folder."""

    def run(*words, out: str = "out", ckpt=tiny, expect: int = 0) -> Path:
        given = ["--ckpt", ckpt] if ckpt else []
        assert txt2img.main([str(w) for w in (*given, "--outdir", tmp_path / out, *words)]) == expect
        return tmp_path / out

    return run


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def nearly(one: Path, other: Path) -> bool:
    """Equal pixels except for the last bit: other batch shapes round differently."""
    return pixels(one).shape == pixels(other).shape and abs(pixels(one) - pixels(other)).max() <= 1


@pytest.mark.parametrize(
    "words",
    [
        *(["--sampler", sampler] for sampler in SAMPLERS),
        ["--ddim_eta", 0.7],
        ["--spacing", "base"],
        ["--plms", "--fixed_code", "--n_iter", 2],
        ["--sampler", "euler_a", "--noise_seed", 5],
        ["--H", 48, "--W", 64, "--guidance_interval", "200,800", "--deepcache", 2],
        ["--negative_prompt", "a cat", "--scale", 3],
        ["--precision", "bf16"],
        ["--from-file", "prompts.txt"],
    ],
    ids=lambda words: " ".join(map(str, words)),
)
def test_every_png_is_drawn_again_from_what_it_says(draw, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a red dog\na cat\na red dog\n")
    out = draw(
        "--prompt" if "--from-file" not in words else "--scale", "4", "--steps", 3, "--n_samples", 2, *words
    )
    singles = sorted((out / "samples").iterdir())
    again = draw("--from-image", singles[-1], out="again", ckpt=None)
    assert [p.name for p in again.rglob("*.png")] == ["00000.png"]
    assert nearly(singles[-1], again / "samples" / "00000.png")
    assert png_text(again / "samples" / "00000.png") == png_text(singles[-1])
    sheet = draw("--from-image", out / "grid-0000.png", out="sheet", ckpt=None)
    assert [p.name for p in sheet.rglob("*.png")] == ["grid-0000.png"]
    assert nearly(out / "grid-0000.png", sheet / "grid-0000.png")


def test_the_vae_and_how_a_base_is_read_are_in_the_png(draw, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "vae")
    words = ["--steps", 2, "--n_samples", 1, "--vae", tmp_path / "vae", "--prediction_type", "v_prediction"]
    words += ["--zero_terminal_snr", "--clip_skip", 2]
    picture = draw(*words) / "samples" / "00000.png"
    assert not nearly(picture, draw("--steps", 2, "--n_samples", 1, out="plain") / "samples" / "00000.png")
    again = draw("--from-image", picture, out="again", ckpt=None)
    assert nearly(picture, again / "samples" / "00000.png")
    for place, other in enumerate(([*words[:-3], *words[-2:]], words[:-2])):  # without either of the last two
        assert not nearly(picture, draw(*other, out=f"other-{place}") / "samples" / "00000.png")


def test_a_part_of_a_run_with_another_clip_skip_is_told(tiny, tmp_path, capsys):
    (tmp_path / "dreambooth.json").write_text('{"identifier": "sks", "clip_skip": 2}')
    for skip in (1, 2):
        warn_of_clip_skip(tmp_path, LatentDiffusion.from_base(tiny, skip))
    assert capsys.readouterr().err == (
        f"warning: {tmp_path} was trained with clip_skip 2, and this model has 1: add --clip_skip 2\n"
    )


def test_options_beside_an_image_win(draw, tmp_path):
    picture = draw("--steps", 3, "--n_samples", 1, "--prompt", "a dog") / "samples" / "00000.png"
    other = draw("--from-image", picture, "--prompt", "a cat", "--seed", 3, out="other", ckpt=None)
    facts = {**png_text(picture), "prompt": "a cat", "seed": "3"}
    assert png_text(other / "samples" / "00000.png") == facts


def test_an_image_of_an_earlier_version_is_drawn_as_it_was(draw, tmp_path):
    """Spacings had no names, and ddim used diffusers' default."""
    now = draw("--steps", 3, "--n_samples", 1, "--spacing", "base", "--precision", "full")
    facts = png_text(now / "samples" / "00000.png")
    old = {key: facts[key] for key in ("prompt", "negative_prompt", "seed", "sampler", "steps", "model")}
    info = PngImagePlugin.PngInfo()
    for key, value in {**old, "scale": facts["guidance_scale"]}.items():
        info.add_itxt(key, value)
    Image.new("RGB", (32, 32)).save(tmp_path / "old.png", pnginfo=info)
    again = draw("--from-image", tmp_path / "old.png", out="again", ckpt=None)
    assert nearly(now / "samples" / "00000.png", again / "samples" / "00000.png")


def test_other_weights_under_the_same_name_are_told(draw, tmp_path, capsys, tiny):
    picture = draw("--steps", 1, "--n_samples", 1) / "samples" / "00000.png"
    image = Image.open(picture)
    info = PngImagePlugin.PngInfo()
    for key, value in {**image.text, "weights": "0" * 32}.items():
        info.add_itxt(key, value)
    image.save(tmp_path / "a.png", pnginfo=info)
    draw("--from-image", tmp_path / "a.png", out="again", ckpt=None)
    assert f"drawn with other weights than {tiny} has now" in capsys.readouterr().err


def test_fixed_code_is_one_noise_for_each_place_in_the_batch(draw):
    """As in the ancestor: batches repeat, except with stochastic samplers; the images of a batch differ."""
    names = [f"{k:05d}.png" for k in range(4)]
    words = ["--fixed_code", "--steps", 3, "--n_samples", 2, "--n_iter", 2]
    out = draw(*words)
    plain = [pixels(out / "samples" / name) for name in names]
    assert (plain[0] == plain[2]).all()
    assert (plain[1] == plain[3]).all()
    assert (plain[0] != plain[1]).any()
    out = draw(*words, "--sampler", "euler_a", out="stochastic")
    stochastic = [pixels(out / "samples" / name) for name in names]
    assert (stochastic[0] != stochastic[2]).any()


def test_a_line_that_comes_again_goes_on_with_its_seeds(draw, tmp_path):
    (tmp_path / "prompts.txt").write_text("a dog\na cat\n\na dog\n")
    out = draw("--from-file", tmp_path / "prompts.txt", "--steps", 1, "--n_samples", 2, "--seed", 7)
    said = [png_text(path) for path in sorted((out / "samples").iterdir())]
    assert [(facts["prompt"], facts["seed"]) for facts in said] == [
        *(("a dog", "7"), ("a dog", "8"), ("a cat", "7"), ("a cat", "8"), ("a dog", "9"), ("a dog", "10"))
    ]


@pytest.mark.parametrize(("sampler", "steps"), [("plms", 6), ("heun", 9), ("ddim", 5)])
def test_the_bar_ends_where_the_steps_end(draw, capsys, sampler, steps):
    draw("--sampler", sampler, "--steps", 5, "--n_samples", 2, "--n_iter", 2)
    bar = capsys.readouterr().err.split("sampling 4 images:")[-1]
    assert f" {2 * steps} of {2 * steps}, " in bar


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    """A run of one step."""
    words = ["lightning.trainer.max_steps=1", "model.params.prior_loss_weight=0"]
    words += [*QUICK, "lightning.callbacks.validation=null", "-l", str(tmp_path_factory.mktemp("logs"))]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PROJECT)
        assert main(["--base", RECIPE, str(tiny_config), *words]) == 0
    return next(Path(words[-1]).iterdir())


def test_a_run_is_sampled_from_any_folder(draw, run, tmp_path, tiny, monkeypatch):
    """Its base is relative to the folder where the run was started."""
    home = tmp_path / "home"
    shutil.copytree(tiny, home / "bases" / "tiny")
    run = shutil.copytree(run, home / "logs" / "run")
    path = run / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["base"] = "bases/tiny"
    torch.save(content, path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = draw("--prompt", "a [V] dog", "--steps", 1, "--n_samples", 1, ckpt=run)
    assert len(list((out / "samples").iterdir())) == 1
    draw("--steps", 2, "--n_samples", 1, "--H", 16, "--W", 16, ckpt="assets/base", out="project")


def test_a_runs_vae_can_be_replaced_and_nothing_else_of_its_base(draw, run, tmp_path, capsys):
    tiny_vae().save_pretrained(tmp_path / "vae")
    words = ["--steps", 1, "--n_samples", 1]
    plain, other = draw(*words, ckpt=run), draw(*words, "--vae", tmp_path / "vae", ckpt=run, out="other")
    one, two = (folder / "samples" / "00000.png" for folder in (plain, other))
    assert not nearly(one, two)
    assert png_text(one)["weights"] != png_text(two)["weights"]
    draw(*words, "--no_ema", ckpt=run, out="refused", expect=2)
    assert "leave out --use_ema" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "link", "/proc/nowhere", "samples"])
def test_a_folder_that_takes_nothing_is_told_before_a_model_is_loaded(tmp_path, place, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("link").symlink_to("gone")
    if place == "samples":
        Path("samples").mkdir()
        Path("samples", "samples").write_text("mine")
    assert txt2img.main(["--ckpt", "nowhere", "--outdir", place]) == 2
    said = capsys.readouterr().err.strip()
    assert re.match(rf"error: {place}\S* cannot be written to", said), said
    assert "\n" not in said


def test_a_disk_that_fills_up_keeps_what_was_drawn(draw, capsys, monkeypatch):
    real, calls = Image.Image.save, []

    def save(image, path, **options):
        calls.append(path)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", save)
    out = draw("--steps", 1, "--n_samples", 2, "--n_iter", 4, expect=2)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.match(
        r"error: \S+00005.png cannot be written \(No space left on device\): free some space", last
    )
    assert sorted(p.name for p in (out / "samples").iterdir()) == [f"{k:05d}.png" for k in range(5)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt", "nowhere"], r"nowhere.*not found"),
        (["--prompt", " "], r"prompt is empty"),
        (["--from-file", "nowhere.txt"], r"nowhere.txt: cannot be read"),
        (["--from-image", "nowhere.png"], r"nowhere.png: cannot be read"),
        (
            ["--from-image", str(PROJECT / "assets" / "subject" / "dog" / "01.png")],
            r"does not say its prompt",
        ),
        (["--steps", "1001"], r"1001 steps of ddim"),
        (["--sampler", "plms", "--ddim_eta", "0.5"], r"eta 0.5 is only for the sampler ddim"),
        (["--H", "33"], r"multiple of 4"),
        (["--device", "cuda:77"], r"cuda:77: not available"),
        (["--prompt", "[V] dog"], r"this model has none"),
    ],
)
def test_mistakes_end_in_one_line(tiny, tmp_path, capsys, words, message):
    code = txt2img.main(["--ckpt", str(tiny), "--outdir", str(tmp_path / "out"), *words])
    said = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert re.search(message, said[-1])
    assert said[-1].startswith("error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--steps", "0"], "whole number of at least 1"),
        (["--n_rows", "-3"], "whole number of at least 0"),
        (["--scale", "nan"], "finite number"),
        (["--ddim_eta", "-5"], "from 0 to 1"),
        (["--H", "0"], "whole number of at least 1"),
        (["--seed", str(2**64)], "below 2**63"),
        (["-p", "a dog"], "use --prompt"),
        (["--config", "v1.yaml"], "nothing: the model's own config is read"),
        (["--prompt", "a dog", "--from-file", "x"], "not allowed with"),
        (["--sampler", "ddim", "--plms"], "not allowed with"),
        (["--noise_seed", "1", "--fixed_code"], "not allowed with"),
        (["--use_ema", "--no_ema"], "not allowed with"),
        (["--skip_save", "--skip_grid"], "nothing would be written"),
    ],
)
def test_options_that_mean_nothing_end_in_one_line(capsys, words, says):
    with pytest.raises(SystemExit) as end:
        txt2img.main(words)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert "\n" not in said


def test_settings_without_effect_and_unknown_placeholders_are_told(draw, capsys):
    draw(
        "--steps",
        1,
        "--n_samples",
        1,
        "--scale",
        1,
        "--negative_prompt",
        "a cat",
        "--prompt",
        "a [rex] dog, [2:1]",
    )
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")] == [
        "warning: without guidance (--scale 1), --negative_prompt and --guidance_interval have no effect",
        "warning: [rex] is drawn as plain text: the model's subjects are none",
    ]


def test_pictures_do_not_depend_on_how_many_are_drawn_together(draw, monkeypatch):
    """By --batch_size, or by free memory: here enough for no more than one."""
    asked: list[int] = []
    images = LatentDiffusion.images

    def counted(model, prompts, *args, **kwargs):
        asked.append(len(prompts))
        return images(model, prompts, *args, **kwargs)

    monkeypatch.setattr(LatentDiffusion, "images", counted)
    words = ["--steps", 2, "--n_samples", 3, "--n_iter", 2]
    plain = sorted((draw(*words) / "samples").iterdir())
    five = sorted((draw(*words, "--batch_size", 5, out="five") / "samples").iterdir())
    monkeypatch.setattr("ldm.models.memory.free_bytes", lambda device: 1)
    alone = sorted((draw(*words, "--batch_size", "auto", out="auto") / "samples").iterdir())
    assert asked == [3, 3, 5, 1, *[1] * 6]
    assert all(nearly(a, b) and nearly(a, c) for a, b, c in zip(plain, five, alone, strict=True))


def test_the_unet_is_compiled_when_asked(draw, monkeypatch):
    compiled = []
    monkeypatch.setattr(LatentDiffusion, "compile_blocks", lambda model: compiled.append(model.unet.dtype))
    draw("--steps", 1, "--n_samples", 1, "--compile", "--precision", "bf16")
    draw("--steps", 1, "--n_samples", 1, out="plain")
    assert compiled == [torch.bfloat16]


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--guidance_interval", "800,200"),
        ("--guidance_interval", "200"),
        ("--batch_size", "0"),
        ("--deepcache", "0"),
    ],
)
def test_wrong_settings_of_speed_are_one_line(draw, capsys, option, word):
    with pytest.raises(SystemExit, match="2"):
        draw(option, word)
    assert option in capsys.readouterr().err
