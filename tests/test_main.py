"""The command line of main.py: options, hints, and running from any folder."""

import json
import shutil
import subprocess
import sys

import pytest
import yaml

from ldm.early import keywords
from ldm.targets import get_class, signature
from main import main, parse
from tests.conftest import PROJECT
from tests.runs import QUICK, resume

ESCAPES = "\x1b]0;owned\x07\x1b[2J"


@pytest.fixture
def refused(capsys):
    """`refused(*words)` expects exit code 2 from parsing, and returns the one line on stderr."""

    def read(*words: str) -> str:
        with pytest.raises(SystemExit) as stop:
            parse(words)
        assert stop.value.code == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert told.count("\n") == 1
        return told

    return read


def test_without_arguments_it_says_what_is_missing(capsys):
    from main import main

    try:
        code = main([])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert "no config given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("--max_steps", "800"), "use lightning.trainer.max_steps=800"),
        (("--max_steps=800",), "use lightning.trainer.max_steps=800"),
        (("--max_steps",), "use lightning.trainer.max_steps=VALUE"),
        (("--accelerator", "ddp", "-t"), "use lightning.trainer.accelerator=ddp"),
        (("--precision", "16"), "use lightning.trainer.precision=16-mixed"),
        (("--max_epochs", "4"), "use lightning.trainer.max_steps=4; runs are measured in optimizer steps"),
        (("-p", "project"), "use --logdir or --name"),
        (("--init_word", "dog"), "use --class_word"),
        (("--placeholder_string", "*"), "use model.params.identifier=WORD"),
        (("--scale_lr", "false"), "switches such as --scale_lr take no value; omit them for false"),
        (("--clas_word", "dog"), "unknown option --clas_word; did you mean --class_word?"),
        (("--instance_data_dir=x",), "docs/migrating.md has for --instance_data_dir: --data_root"),
        (
            ("--network_dim", "8"),
            "--network_alpha (1): configs/lora.yaml: r and lora_alpha (8) in the params",
        ),
        (("-t", "maybe"), "'maybe' is neither true nor false"),
        (("--seed",), "argument -s/--seed: expected one argument"),
        (
            ("learning_rate",),
            "'learning_rate' is neither an option nor an override of a config key, key.sub=value",
        ),
        ((f"--{ESCAPES}",), r"unknown option --\x1b]0;owned\x07\x1b[2J"),
    ],
)
def test_options_that_are_not_taken(refused, words, hint):
    assert hint in refused(*words, "-b", "configs/dreambooth.yaml")


def test_overrides_may_stand_anywhere():
    options = parse(
        ["a.b=1", "-b", "configs/dreambooth.yaml", "c=2", "-t", "false", "--scale_lr", "d.e=[1, 2]"]
    )
    assert options.base == ["configs/dreambooth.yaml"]
    assert options.overrides == ["c=2", "a.b=1", "d.e=[1, 2]"]
    assert options.scale_lr
    assert not options.train


@pytest.mark.parametrize("words", [("--data_root", ESCAPES), ("-b", ESCAPES), ("--resume", ESCAPES)])
def test_names_of_files_do_not_reach_the_terminal_as_they_are(tiny_config, capsys, words):
    base = () if "--resume" in words else ("-b", "configs/dreambooth.yaml", str(tiny_config))
    assert main([*base, *words]) == 2
    told = capsys.readouterr().err
    assert r"\x1b[2J" in told
    assert "\x1b" not in told
    assert told.count("\n") == 1


def test_from_any_folder(tiny_config, tmp_path, monkeypatch):
    """Configs and images relative to the project or the working folder, also on a resume."""
    place, other = tmp_path / "place", tmp_path / "other"
    place.mkdir()
    other.mkdir()
    monkeypatch.chdir(place)
    words = ["-b", "configs/dreambooth.yaml", str(tiny_config), "-n", "a", *QUICK]
    words += ["lightning.callbacks.validation=null", "lightning.trainer.max_steps=1"]
    assert main([*words, "-t", "false"]) == 0  # the project's images
    shutil.copytree(PROJECT / "assets" / "subject" / "dog", place / "photos")
    assert main([*words, "--data_root", "photos"]) == 0
    run = next((place / "logs").iterdir())
    data = yaml.safe_load((run / "configs" / "config.yaml").read_text())["data"]["params"]
    assert data["data_root"] == str(place / "photos")
    monkeypatch.chdir(other)
    assert resume(run, "lightning.trainer.max_steps=2") == 0
    assert not list(other.iterdir())


EARLY = [
    (["-b", "configs/dreamboth.yaml"], "config configs/dreamboth.yaml: no such file"),
    (["-b", "configs/dreambooth.yaml", "lightning.trainr.max_steps=3"], "unknown key 'lightning.trainr'"),
    (
        ["-b", "configs/dreambooth.yaml", "model.params.learning_rat=1"],
        "unknown key 'model.params.learning_rat'; did you mean 'learning_rate'?",
    ),
    (
        ["-b", "configs/dreambooth.yaml", "lightning.callbacks.samples.params.stpes=3"],
        "did you mean 'steps'?",
    ),
    (["-b", "configs/dreambooth.yaml", "--data_root", "nowhere"], "image folder nowhere: no such folder"),
    (["--resume", "logs/nowhere"], "--resume logs/nowhere: no such run folder or checkpoint"),
]


def test_mistakes_are_told_before_the_heavy_imports(tmp_path):
    """All in one process, which afterwards has imported neither PyTorch nor diffusers."""
    code = (
        "import json, sys; from main import main\n"
        "for words in json.loads(sys.argv[1]): assert main(words) == 2, words\n"
        "assert not {'torch', 'diffusers', 'pytorch_lightning'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, json.dumps([words for words, _ in EARLY])]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = done.stderr.splitlines()
    assert len(told) == len(EARLY)
    assert not [(line, words) for line, (_, words) in zip(told, EARLY, strict=True) if words not in line]
    assert not done.stdout


def test_keywords_read_from_the_source_are_those_of_the_class():
    recipe = yaml.safe_load((PROJECT / "configs" / "dreambooth.yaml").read_text())
    nodes = [recipe["model"], recipe["data"], *filter(None, recipe["lightning"]["callbacks"].values())]
    for target in (node["target"] for node in nodes):
        assert list(keywords(target)) == list(signature(get_class(target))), target
