"""scripts/benchmark_quality.py: the dataset's layout, shared claims, resuming, the table of means."""

import csv
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.config import load_config
from ldm.data.images import image_files
from ldm.errors import UserError
from ldm.evaluation import benchmark_run, benchmark_tasks
from ldm.evaluation.benchmark import means
from ldm.evaluation.datasets import read_dataset, wrong_noun
from ldm.world.drawing import World
from scripts.benchmark_quality import RECIPE, main
from tests.browser import assert_sound, chromium
from tests.test_report import Page
from tests.tiny_features import tiny_features

__all__ = ["chromium"]  # a fixture

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT / "assets" / "benchmark"


def measured(value: float, real: float = 0.9) -> dict:
    """The content of a metrics.json with the same value for all metrics."""
    keys = ("dino", "clip_i", "clip_t", "pres", "div", "class_clip_t", "class_div")
    one = {"value": value, "low": value, "high": value, "count": 1}
    networks = {"div": "a distance"}
    return {
        "metrics": dict.fromkeys(keys, one),
        "real": {key: {**one, "value": real} for key in keys[:2]},
        "networks": networks,
        "prompts": [
            {"kind": "subject", "prompt": f"[V] {k}", **dict.fromkeys(keys, value + k / 100)}
            for k in range(3)
        ],
    }


@pytest.fixture
def pretend(monkeypatch):
    """Child processes that only write their result, each 0.1 more; returns their commands."""
    commands = []

    def child(script, words, task, claimed):
        commands.append([script, *map(str, words)])
        if script == "main.py":
            run = task.folder / "run" / "one"
            for name in ("configs/config.yaml", "model/dreambooth.json", "checkpoints/last.ckpt"):
                (run / name).parent.mkdir(parents=True, exist_ok=True)
                (run / name).write_text("")
        else:
            task.result.parent.mkdir(parents=True)
            task.result.write_text(json.dumps(measured(0.1 * len(commands))))
        return True

    monkeypatch.setattr(benchmark_tasks, "child", child)
    monkeypatch.setattr(benchmark_run, "stop_on_signals", lambda: None)
    return commands


def test_the_embedded_dataset_is_of_withheld_subjects():
    subjects = read_dataset(DATA)
    assert len(subjects) == 6
    assert {subject.class_word for subject in subjects} <= set(World(PROJECT / "assets" / "world").nouns)
    assert all(3 <= len(image_files(subject.folder)) <= 5 for subject in subjects)


def test_the_papers_layout_with_subjects_left_out(tmp_path):
    text = "Classes\n\nsubject_name,class\nbackpack,backpack\ncat2,cat\nteapot,teapot\n\nPrompts\n\nObject Prompts\n"
    (tmp_path / "prompts_and_classes.txt").write_text(text)
    for name in ("cat2", "teapot"):
        shutil.copytree(DATA / "cat", tmp_path / name)
    subjects = read_dataset(tmp_path)
    assert [(s.name, s.class_word) for s in subjects] == [("cat2", "cat"), ("teapot", "teapot")]
    assert [wrong_noun(s, subjects) for s in subjects] == ["teapot", "cat"]


def test_means_are_over_subjects():
    mean = means({("cat", 0): measured(0.2), ("dog", 0): measured(0.6)})
    assert mean["metrics"]["pres"]["value"] == pytest.approx(0.4)
    assert (mean["metrics"]["dino"]["count"], mean["subjects"]) == (2, ["cat", "dog"])


def test_every_variant_of_every_subject_then_nothing_twice(pretend, tmp_path, capsys):
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "vase", "--class_noun_ablation"]
    assert main(words) == 0
    trained = [command for command in pretend if command[0] == "main.py"]
    assert len(trained) == 2 * 4
    assert sum("model.params.prior_loss_weight=0" in command for command in trained) == 2 * 2
    nouns = [
        next(word for word in command if "class_word" in word)
        for command in trained
        if command[command.index("--name") + 1] in ("prior", "wrong_noun")
        and any("/vase" in word for word in command)
    ]
    assert nouns == ["data.params.class_word=vase", "data.params.class_word=car"]
    assert not list(tmp_path.rglob("last.ckpt"))  # weights go once they are scored

    table = (tmp_path / "table.md").read_text()
    assert "| DreamBooth (2 subjects) |" in table
    assert "a distance; the paper's: LPIPS" in table
    assert "Paper, table 4" in table
    page = (tmp_path / "benchmark.html").read_text()
    assert "http:" not in page
    assert "https:" not in page
    assert "Paper, table 1" in " ".join(Page(page).text)
    assert "a distance" in " ".join(Page(page).text)
    assert "all are done" in capsys.readouterr().out

    before = len(pretend)
    assert main(words) == 0
    assert len(pretend) == before


def test_seeds_repeat_every_task_with_seeds_of_its_own(pretend, tmp_path):
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "vase", "--variants", "base", "prior"]
    assert main(words) == 0
    once = len(pretend)
    assert main([*words, "--seeds", "2"]) == 0  # a finished benchmark goes on with more
    again = pretend[once:]
    assert len(again) == once
    for command in again:
        if command[0] == "main.py":
            assert "seed=24" in command  # the recipe's 23, and one
        else:
            assert "sampling.seed=64" in command  # behind the 64 class images of the first
    assert not any("seed=24" in command or "sampling.seed=64" in command for command in pretend[:once])
    assert (tmp_path / "prior" / "cat" / "seed-1" / "evaluation" / "metrics.json").is_file()
    found = json.loads((tmp_path / "benchmark.json").read_text())
    assert found["variants"]["prior"]["metrics"]["dino"]["count"] == 4
    assert found["reference"] == "prior"
    (difference,) = found["differences"].values()
    assert difference["dino"]["value"] == pytest.approx(-0.2)  # each child's value is 0.1 above the last's
    rows = list(csv.DictReader((tmp_path / "prompts.csv").read_text().splitlines()))
    assert [(row["variant"], row["number"], row["count"]) for row in rows] == [
        (variant, str(number), "4") for variant in ("base", "prior") for number in range(3)
    ]
    cells = [json.loads(path.read_text()) for path in (tmp_path / "prior").rglob("metrics.json")]
    assert rows[4]["prompt"] == cells[0]["prompts"][1]["prompt"]
    assert float(rows[4]["dino"]) == pytest.approx(sum(cell["prompts"][1]["dino"] for cell in cells) / 4)
    table = (tmp_path / "table.md").read_text()
    assert "Differences from: DreamBooth, paired by subject and seed" in table
    assert "DIV, class |" in table
    assert "prior/cat/seed-1/evaluation/report.html" in (tmp_path / "benchmark.html").read_text()


def test_the_page_in_a_browser(pretend, tmp_path, chromium):
    assert main(["--outdir", str(tmp_path), "--subjects", "cat", "vase", "--seeds", "2"]) == 0
    assert_sound(chromium, tmp_path / "benchmark.html")


def test_another_processs_task_is_left_to_it(pretend, tmp_path, capsys):
    folder = tmp_path / "prior" / "cat"
    folder.mkdir(parents=True)
    with open(folder / ".claim", "w") as theirs:
        fcntl.flock(theirs, fcntl.LOCK_EX)
        assert main(["--outdir", str(tmp_path), "--subjects", "cat"]) == 0
    assert not (folder / "evaluation").exists()
    assert (tmp_path / "no_prior" / "cat" / "evaluation" / "metrics.json").is_file()
    assert "1 of 3 tasks are not finished" in capsys.readouterr().err
    assert main(["--outdir", str(tmp_path), "--subjects", "cat"]) == 0
    assert (folder / "evaluation" / "metrics.json").is_file()


def test_other_settings_take_another_folder(pretend, tmp_path, capsys):
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "--variants", "base"]
    assert main(words) == 0
    assert main([*words, "lightning.trainer.max_steps=7"]) == 2
    told = "a benchmark of other settings (training.lightning.trainer.max_steps was 300, now 7)"
    assert told in capsys.readouterr().err
    unimportant = ["lightning.trainer.max_time=00:01:00:00", "data.params.num_workers=2"]
    assert main([*words, *unimportant, "--evaluation", "sampling.batch_size=2"]) == 0
    # What counts is what configs say, not what they are called.
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("lightning: {trainer: {max_steps: 8}}")
    words = [*words[:1], str(tmp_path / "other"), *words[2:], "--base", str(RECIPE), str(overlay)]
    assert main(words) == 0
    overlay.write_text("lightning: {trainer: {max_steps: 9}}")
    assert main(words) == 2
    assert "max_steps was 8, now 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "row"),
    [
        ("model.params.prior_loss_weight=0.5", "DreamBooth without prior loss"),
        ("data.params.class_word=dog", "DreamBooth"),
        ("data.params={}", "DreamBooth"),
    ],
)
def test_a_row_is_what_its_title_says(pretend, tmp_path, capsys, word, row):
    assert main(["--outdir", str(tmp_path), "--subjects", "cat", word]) == 2
    assert f"error: {word}: the row '{row}' sets" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_row_without_a_noun_has_the_recipes_prompt_without_it_and_seeds_count_from_the_overridden_one(
    pretend, tmp_path
):
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "--variants", "no_noun", "--seeds", "2"]
    assert main([*words, "seed=5", "data.params.prompt=a [V] {class_word}, indoors"]) == 0
    first, second = (
        load_config([RECIPE], [word for word in command if re.match(r"(seed|(data|model)\.\S+)=", word)])
        for command in pretend
        if command[0] == "main.py"
    )
    assert first["data"]["params"]["prompt"] == second["data"]["params"]["prompt"] == "a [V], indoors"
    assert [config["model"]["params"]["prior_loss_weight"] for config in (first, second)] == [0, 0]
    assert (first["seed"], second["seed"]) == (5, 6)


def test_a_wrong_setting_of_the_evaluation_is_told_before_any_training(pretend, tmp_path, capsys):
    assert main(["--outdir", str(tmp_path), "--evaluation", "model.params.learning_rate=1"]) == 2
    assert "unknown key 'model'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_base_is_measured_as_the_trainings_read_it(pretend, tmp_path):
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "--variants", "base", "--trust", "my_package"]
    words += ["data.params.hold_out=2", "model.params.use_ema=false", "model.params.vae=some/vae"]
    words += ["model.params.zero_terminal_snr=true", "model.params.clip_skip=2"]
    assert main(words) == 0
    said = " ".join(pretend[0])
    parts = ("--hold_out 2", "--no_ema", "--vae some/vae", "--trust my_package", "--ckpt assets/base")
    for part in (*parts, "--zero_terminal_snr", "--clip_skip 2"):
        assert part in said


def test_a_dataset_without_its_list_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"prompts_and_classes\.txt"):
        read_dataset(tmp_path)


def test_a_failure_is_told_with_its_reason_and_the_others_go_on(pretend, monkeypatch, tmp_path, capsys):
    works = benchmark_tasks.child

    def child(script, words, task, claimed):
        if script == "main.py" and task.subject.name == "cat":
            (task.folder / "log.txt").write_text("training:  3%\rerror: base nowhere: no such folder\n\n")
            return False
        return works(script, words, task, claimed)

    monkeypatch.setattr(benchmark_tasks, "child", child)
    assert main(["--outdir", str(tmp_path), "--subjects", "cat", "vase", "--variants", "prior"]) == 1
    assert "failed: cat, DreamBooth: error: base nowhere: no such folder" in capsys.readouterr().err
    assert "| DreamBooth (1 subject) |" in (tmp_path / "table.md").read_text()


def test_two_tasks_of_an_array_share_the_list(tiny_config, tmp_path):
    """The job of docs/cluster.md on one machine, for real: each process takes what the other leaves it."""
    clip, dino = tiny_features(tmp_path / "features")
    words = ["--subjects", "cat", "vase", "--variants", "prior"]
    words += ["--base", PROJECT / "configs" / "dreambooth.yaml", tiny_config]
    words += ["lightning.trainer.max_steps=2", "--outdir", tmp_path / "out"]
    words += ["--evaluation", f"networks.clip={clip}", f"networks.dino={dino}"]
    words += ["sampling.steps=2", "sampling.images_per_prompt=2", "sampling.class_images=4"]
    script = re.search(
        r"scripts/\w+\.py", (PROJECT / "docs" / "cluster.md").read_text().partition("exec python")[2]
    )
    processes = [
        subprocess.Popen(
            [sys.executable, script.group(), *map(str, words)],
            cwd=PROJECT,
            env=os.environ
            | {"SLURM_JOB_ID": f"{4711 + task}", "SLURM_JOB_NAME": "dreambooth", "SLURM_NTASKS": "1"}
            | {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": f"{task}", "SLURM_PROCID": "0"}
            | {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "XDG_CACHE_HOME": str(tmp_path / "cache")},
            stderr=subprocess.STDOUT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for task in range(2)
    ]
    told = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    for noun in ("cat", "vase"):
        (metrics,) = (tmp_path / "out" / "prior" / noun).rglob("metrics.json")
        about = json.loads(metrics.read_text())["about"]
        assert (about["step"], about["class_word"]) == (2, noun)
        assert sum(f"{noun}, DreamBooth" in line for one in told for line in one.splitlines()) >= 1
    assert "| DreamBooth" in (tmp_path / "out" / "table.md").read_text()
