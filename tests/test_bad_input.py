"""Users' mistakes, one by one: one line that says what, where and how to fix it, exit code 2, nothing written."""

import fcntl
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from PIL import Image

from ldm.config import load_config
from ldm.training import run_folder
from main import main
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, resume
from tests.tiny import SIDE, tiny_base


@pytest.fixture
def mistake(tiny_config, tmp_path, monkeypatch, capsys):
    """`mistake(*words)` runs main, expects exit code 2 and one error line, and returns it; nothing may be written."""
    monkeypatch.chdir(PROJECT)

    def run(*words: str, logs=tmp_path / "logs") -> str:
        assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *words]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert [line for line in lines if not line.startswith("warning: ")] == lines[-1:]
        assert lines[-1].startswith("error: ")
        assert not (tmp_path / "logs").exists()
        return lines[-1]

    return run


@pytest.fixture
def photos(tmp_path):
    """A folder with three good photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.effect_noise((SIDE, SIDE), 60).convert("RGB").save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("key", ["data_root", "reg_data_root"])
def test_no_such_folder(mistake, key):
    assert "image folder nowhere: no such folder" in mistake(f"--{key}", "nowhere")


@pytest.mark.parametrize("key", ["data_root", "reg_data_root"])
def test_a_folder_without_images(mistake, tmp_path, key):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no picture")
    told = mistake(f"--{key}", str(tmp_path / "empty"))
    assert "no images in it" in told
    assert ".png" in told


@pytest.mark.parametrize("key", ["data_root", "reg_data_root"])
def test_one_unreadable_image_among_good_ones_is_named(mistake, photos, key):
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:200])
    told = mistake(f"--{key}", str(photos))
    assert str(photos / "1.png") in told
    assert "replace or remove it" in told


def test_small_images_are_a_warning_with_their_sizes(photos, tiny_config, tmp_path, capsys):
    Image.new("RGB", (20, 30)).save(photos / "small.png")
    logs = tmp_path / "logs"
    assert (
        main(["-b", RECIPE, str(tiny_config), "-l", str(logs), "--data_root", str(photos), "-t", "false"])
        == 0
    )
    assert "warning: images smaller than the training size of 32 px" in (told := capsys.readouterr().err)
    assert "small.png (20 x 30)" in told


def test_prompts(mistake):
    assert "prompt 'a photo of a dog' of the subject's images: write [V]" in mistake(
        "data.params.prompt=a photo of a dog"
    )
    assert "data.params.prompt is null: it must be text that is not empty" in mistake("data.params.prompt=")
    assert "remove [V] from it" in mistake("data.params.prior_prompt=a photo of [V] dog")


@pytest.mark.parametrize("word", ["", "   "])
def test_an_empty_class_word(mistake, word):
    assert f"class_word is '{word}': it must be a noun such as dog" in mistake("--class_word", word)


def test_identifiers(mistake, tiny_config, tmp_path, capsys):
    told = mistake("model.params.identifier=xqz wvu jkp mnb")
    assert "use 1 to 3" in told
    assert "identifier" in mistake("model.params.identifier=''")
    words = [
        "-b",
        RECIPE,
        str(tiny_config),
        "-l",
        str(tmp_path),
        "-t",
        "false",
        "model.params.identifier=teapot",
    ]
    assert main(words) == 0
    assert "warning: identifier 'teapot' looks like a word" in capsys.readouterr().err


def test_a_size_that_the_first_stage_cannot_encode(mistake):
    told = mistake("data.params.size=30")
    assert "multiple of 4" in told
    assert "nearest" in told
    mistake("data.params.size=0")


def test_bases(mistake, tmp_path):
    assert "base model nowhere not found" in mistake("--actual_resume", "nowhere")
    (tmp_path / "photo.ckpt").write_bytes(b"GIF89a" + bytes(100))
    assert "photo.ckpt" in mistake("--actual_resume", str(tmp_path / "photo.ckpt"))
    (tmp_path / "folder").mkdir()
    assert str(tmp_path / "folder") in mistake("--actual_resume", str(tmp_path / "folder"))
    broken = tiny_base(tmp_path / "broken")
    shutil.rmtree(broken / "unet")
    assert "unet" in mistake("--actual_resume", str(broken))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lightning.trainer.max_steps=abc", "max_steps is 'abc': it must be a whole number of at least 1"),
        ("lightning.trainer.max_steps=1.5", "max_steps is 1.5: it must be a whole number of at least 1"),
        ("lightning.trainer.max_steps=0", "max_steps is 0: it must be"),
        ("lightning.trainer.gradient_clip_val=-1", "gradient_clip_val is -1: it must be"),
        ("lightning.trainer.callbacks=[]", "unknown key 'lightning.trainer.callbacks'"),
        ("lightning.callbacks=null", "'lightning.callbacks' is missing"),
        ("lightning.callbacks.samples=5", "lightning.callbacks.samples is 5: it must have a target"),
        ("lightning.callbacks.samples=false", "or be null to leave it out"),
        ("lightning.callbacks.samples.params.per_prompt=0", "per_prompt is 0: it must be"),
        ("lightning.callbacks.samples.params.sampler=dpmp", "did you mean 'ddpm'?"),
        ("lightning.callbacks.progress.params.log_every_steps=0", "log_every_steps is 0: it must be"),
        ("lightning.callbacks.validation.params.monitor=foo", "one of subject_loss, drift, score, or null"),
        ("lightning.callbacks.validation.params.num_timesteps=0", "num_timesteps is 0: it must be"),
        ("lightning.callbacks.checkpoint.params.keep=-1", "keep is -1: it must be"),
        (
            "lightning.callbacks.progress.target=ldm.data.datamodule.DreamBoothData",
            "is not a kind of Callback",
        ),
        (
            "model.params.learning_rate=nan",
            "learning_rate is 'nan': it must be a finite number of at least 0",
        ),
        ("model.params.learning_rate=.nan", "learning_rate is nan: it must be a finite number of at least 0"),
        ("model.params.learning_rate=-1", "learning_rate is -1: it must be"),
        ("model.params.prior_loss_weight=-1", "prior_loss_weight is -1: it must be"),
        ("model.params.lr_schedule=cosin", "did you mean 'cosine'?"),
        ("model.params.lr_schedule=piecewise_constant", "lr_schedule is 'piecewise_constant'"),
        ("model.params.lr_warmup_steps=5", "constant has no warm-up: set constant_with_warmup"),
        ("model.params.learning_rate=0", "nothing would train"),
        (
            "model.params.tuning.target=ldm.methods.adapter.Adapter",
            "model.params.tuning.params: missing a required argument",
        ),
        (
            "model.params={lr_schedule: polynomial, learning_rate: 1.0e-7, text_encoder_learning_rate: null}",
            "polynomial ends at 1e-07",
        ),
        ("model.params.clip_skip=0", "clip_skip is 0: it must be a whole number of at least 1"),
        ("model.params.clip_skip=3", "clip_skip is 3: the text encoder of"),
        ("model.params.optimizer.params.betas=[0.9, 1.5]", "torch.optim.AdamW says: Invalid beta parameter"),
        ("model.params.optimizer.params.lr=abc", "lr is 'abc'"),
        ("model.params.optimizer.target=ldm.data.images.Path", "is not a class of this project"),
        ("model.params.optimizer.target=ldm.values.Must", "is not a kind of Optimizer"),
        ("lightning.trainer.inference_mode=abc", "inference_mode is 'abc'"),
        (
            "lightning.trainer.limit_train_batches=3",
            "'lightning.trainer.limit_train_batches' is fixed here to None",
        ),
        (f"lightning.trainer.max_steps={10**400}", "max_steps is a whole number with more than 63 bits"),
        ("model.params.optimizer=5", "optimizer is 5: it must be a target with its params"),
        (
            "model.params.seed={target: torch.optim.SGD}",
            "model.params.seed is a target: it must be a whole number",
        ),
        ("model.params=5", "model.params is 5: it must be keys and values"),
        ("seed=abc", "seed is 'abc': it must be a whole number from 0"),
        ("data.params.size=[64]", "size is [64]: it must be"),
        ("data.params.class_word={x}", "class_word is {'x': None}: it must be a noun"),
        ("data.params.hold_out=-1", "hold_out is -1: it must be"),
        ("data.params.flip_probability=7", "flip_probability is 7: it must be a number from 0 to 1"),
        ("data.params.prior.guidance_interval=[800, 200]", "two increasing timesteps, as in [200, 800]"),
        ("data.params.prior.steps=-1", "steps is -1: it must be"),
        ("data.params.prior=5", "data.params.prior is 5: it must be keys and values"),
    ],
)
def test_values_that_cannot_be(mistake, word, message):
    assert message in mistake(word, "-t", "false")


def test_options_that_cannot_be(mistake):
    assert "class_word is '{x}': it must be a noun" in mistake("--class_word", "{x}")
    for train in ("false", "true"):
        for option in ("--name", "--postfix"):
            told = mistake(option, "n" * 300, "-t", train)
            assert (
                "it must be a plain folder name: no slashes, not '..', 255 bytes at most; choose another"
                in told
            )


def test_an_option_is_text_as_it_was_typed(tmp_path, tiny_config, capsys):
    """Folders and words that look like numbers, dates, booleans or YAML."""
    for word in ("2024", "007", "1e3", "no", "a: b", "#1", "2024-01-01"):
        options = ["-b", RECIPE, str(tiny_config), "-t", "false"]
        assert main([*options, "--data_root", word]) == 2
        assert f"image folder {word}: no such folder" in capsys.readouterr().err
        assert main([*options, "--class_word", word]) == 0
    for word in ("2024", "007", "1e3", "no"):
        config = load_config([RECIPE], [f"data.params.class_word={word}", f"model.params.identifier={word}"])
        assert config["data"]["params"]["class_word"] == config["model"]["params"]["identifier"] == word


def test_a_run_that_saves_nothing_says_so(tiny_config, capsys):
    assert main(["-b", RECIPE, str(tiny_config), "-t", "false", "lightning.callbacks.checkpoint=null"]) == 0
    assert "warning: no callback saves checkpoints" in capsys.readouterr().err


def test_devices_that_are_not_there(mistake):
    assert "lightning.trainer" in mistake("--gpus", "0,")
    assert "lightning.trainer" in mistake("lightning.trainer.devices=0")
    assert "write '0,' for the first GPU" in mistake("--gpus", "0")


def test_keys_and_values_that_are_none(mistake):
    assert "did you mean 'learning_rate'" in mistake("model.params.learning_rat=1")
    assert "lightning.trainer" in mistake("lightning.trainer.precision=17-mixed")
    assert "no such file" in mistake("-b", "configs/nowhere.yaml")


def test_a_log_folder_that_cannot_be_written(mistake, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "logs", "/proc/logs"):
        assert "cannot be created" in (told := mistake(logs=place))
        assert "choose another --logdir" in told


def test_a_run_that_exists_is_never_written_over(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "run_name", lambda *_: "same")
    run = train(*QUICK)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    train(*QUICK, expect=2)
    assert "exists: choose another --name, or continue it with --resume" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_two_processes_on_one_run_folder(train, capsys):
    run = train(*QUICK)
    hold = (
        "import sys, time; from pathlib import Path; from ldm.training.run_folder import lock;"
        "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(run)], stdout=subprocess.PIPE, cwd=PROJECT)
    try:
        assert other.stdout.readline() == b"held\n"
        capsys.readouterr()
        assert resume(run) == 2
        assert f"is in use by process {other.pid} on " in capsys.readouterr().err
    finally:
        other.kill()
        other.wait()
    time.sleep(0.1)
    assert resume(run) == 0  # a lock never outlives its process


def test_resuming_what_is_no_run(train, tmp_path, capsys):
    def told(*words) -> str:
        capsys.readouterr()
        assert main(list(words)) == 2
        return capsys.readouterr().err

    assert "no such run folder or checkpoint" in told("--resume", str(tmp_path / "nowhere"))
    assert "is not a run folder" in told("--resume", "configs")
    run = train(*QUICK)
    assert "leave --base out" in told("--resume", str(run), "--base", RECIPE)
    (run / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "none of its 1 checkpoints can be loaded" in told("--resume", str(run))
    assert "is damaged" in told("--resume", str(run / "checkpoints" / "last.ckpt"))


def test_the_config_of_a_run_stays_as_it_is_when_a_resume_is_refused(train, capsys):
    run = train(*QUICK)
    before = sorted(path.name for path in (run / "configs").iterdir())
    assert resume(run, "model.params.learning_rate=1", "lightning.trainer.max_steps=20") == 2
    assert sorted(path.name for path in (run / "configs").iterdir()) == before
    assert (
        yaml.safe_load((run / "configs" / "config.yaml").read_text())["lightning"]["trainer"]["max_steps"]
        == 10
    )
    with open(run / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # and nothing holds it any more
