"""Tasks of a quality benchmark: one variant of one subject, trained, sampled and scored by child processes."""

import fcntl
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any

from ldm.config import load_config, load_settings
from ldm.errors import StoppedError, UserError
from ldm.evaluation.benchmark import BenchmarkSubject, read_dataset, wrong_noun
from ldm.evaluation.settings import EvaluationSettings
from ldm.files import PROJECT

VARIANTS = {
    "base": "The base itself, without training",
    "prior": "DreamBooth",
    "no_prior": "DreamBooth without prior loss",
    "no_noun": "DreamBooth, no class noun",
    "wrong_noun": "DreamBooth, wrong class noun",
}
STANDARD, ABLATION = ("base", "prior", "no_prior"), ("no_noun", "wrong_noun")
NOT_WHILE_MEASURING = ("validation", "samples")
"""Callbacks that the trainings leave out: their pictures are drawn, and scored, afterwards."""


@dataclass(frozen=True)
class Benchmark:
    """What is to be done, and where."""

    data: Path
    """The dataset's folder."""
    outdir: Path
    """Folder of all results."""
    base: Sequence[Path]
    """The trainings' configs."""
    overrides: Sequence[str] = ()
    """Changes to them, `key.sub=value`."""
    config: Sequence[Path] = ()
    """Overlays over configs/evaluation.yaml."""
    evaluation: Sequence[str] = ()
    """Changes to that config."""
    subjects: Sequence[str] = ()
    """Only these of the dataset; all where it is empty."""
    variants: Sequence[str] = STANDARD
    """Keys of VARIANTS."""
    seeds: int = 1
    """How often each variant of a subject is repeated, each time with other seeds of training and of images."""
    keep_weights: bool = False
    """Keep checkpoints and models of scored runs."""
    trust: Sequence[str] = ()
    """Packages whose classes the configs may build."""


@dataclass(frozen=True)
class Task:
    """One variant of one subject. `noun` stands in its prompts ('' for none). seed: number of the repetition."""

    variant: str
    subject: BenchmarkSubject
    noun: str
    folder: Path
    seed: int = 0

    @property
    def result(self) -> Path:
        """Is there when the task is done."""
        return self.folder / "evaluation" / "metrics.json"

    @property
    def name(self) -> str:
        """For the reader of the terminal."""
        again = f", seed {self.seed}" if self.seed else ""
        return f"{self.subject.name}, {VARIANTS[self.variant]}{again}"

    @property
    def log(self) -> Path:
        """What its child processes say."""
        return self.folder / "log.txt"


def plan(benchmark: Benchmark) -> list[Task]:
    """All tasks, a subject's variants together, so that an unfinished table compares the same subjects.

    Seed after seed: with more of them, a finished benchmark goes on. The first lies where it does without seeds.
    """
    if unknown := set(benchmark.variants) - VARIANTS.keys():
        raise UserError(f"--variants {unknown.pop()}: one of {', '.join(VARIANTS)}")
    every = read_dataset(benchmark.data)
    names = [subject.name for subject in every]
    if unknown := set(benchmark.subjects) - set(names):
        raise UserError(f"--subjects {unknown.pop()}: not in {benchmark.data}; it has {', '.join(names)}")
    tasks = []
    chosen = [subject for subject in every if not benchmark.subjects or subject.name in benchmark.subjects]
    for seed, subject, variant in product(range(benchmark.seeds), chosen, benchmark.variants):
        noun = "" if variant == "no_noun" else subject.class_word
        if variant == "wrong_noun":
            noun = wrong_noun(subject, every)
        folder = benchmark.outdir / variant / subject.name
        tasks.append(Task(variant, subject, noun, folder / f"seed-{seed}" if seed else folder, seed))
    return tasks


def claim(task: Task) -> IO[str] | None:
    """The task's claim, held until it is closed or this process and its child end; None where another has it."""
    task.folder.mkdir(parents=True, exist_ok=True)
    file = open(task.folder / ".claim", "a+")  # noqa: SIM115 - held for as long as the task takes
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def do(task: Task, benchmark: Benchmark, claimed: IO[str]) -> bool:
    """Train, if the variant trains, then sample and score; returns whether both succeeded."""
    run_folder, trust = None, [word for package in benchmark.trust for word in ("--trust", package)]
    if task.variant == "base":
        what = base_words(task, benchmark)
    else:
        run_folder = trained_run(task, benchmark, claimed)
        if run_folder is None:
            return False
        what = ["--ckpt", run_folder, "--prompt_noun", task.noun]
    words = [*what, "--class_word", task.subject.class_word, "--outdir", task.folder / "evaluation"]
    words += [*trust, "--config", *benchmark.config, *benchmark.evaluation, *other_images(task, benchmark)]
    if not child("scripts/evaluate.py", words, task, claimed):
        return False
    if run_folder is not None and not benchmark.keep_weights:
        for heavy in ("checkpoints", "model", "prior"):
            shutil.rmtree(run_folder / heavy, ignore_errors=True)
    return True


def other_images(task: Task, benchmark: Benchmark) -> list[str]:
    """Words for evaluate.py that let a repetition draw its images from seeds of its own."""
    if not task.seed:
        return []
    paths = [PROJECT / "configs" / "evaluation.yaml", *benchmark.config]
    sampling = load_settings(paths, EvaluationSettings, benchmark.evaluation)["sampling"]
    stride = max(sampling["images_per_prompt"], sampling["class_images"])
    return [f"sampling.seed={sampling['seed'] + task.seed * stride}"]


def base_words(task: Task, benchmark: Benchmark) -> list[Any]:
    """Words for evaluate.py that measure the trainings' base, read and held against what theirs are."""
    config = load_config(benchmark.base, benchmark.overrides, benchmark.trust)
    model, data = config["model"]["params"], config["data"]["params"]
    words = ["--ckpt", model["base"], "--real", task.subject.folder, "--hold_out", data.get("hold_out") or 0]
    for name in ("revision", "variant", "vae", "prediction_type"):
        if model.get(name) is not None:
            words += [f"--{name}", model[name]]
    return words if model.get("use_ema", True) else [*words, "--no_ema"]


def trained_run(task: Task, benchmark: Benchmark, claimed: IO[str]) -> Path | None:
    """The task's finished run: found, resumed, or made; None where training failed."""
    runs = task.folder / "run"
    started = sorted(runs.glob("*/configs/config.yaml"))
    folder = started[-1].parents[1] if started else None
    if folder and (folder / "model" / "dreambooth.json").is_file():
        return folder
    if folder and any((folder / "checkpoints").glob("*.ckpt")):
        words = ["--resume", folder]
    else:
        shutil.rmtree(runs, ignore_errors=True)  # ended before its first checkpoint
        words = ["--base", *benchmark.base, "--logdir", runs, "--name", task.variant]
        words += ["--data_root", task.subject.folder.resolve(), *variant_words(task)]
        words += [f"lightning.callbacks.{name}=null" for name in NOT_WHILE_MEASURING]
        words += benchmark.overrides
        if task.seed:
            seed = load_config(benchmark.base, benchmark.overrides, benchmark.trust)["seed"]
            words += ["--seed", seed + task.seed]
    words += [word for package in benchmark.trust for word in ("--trust", package)]
    if not child("main.py", words, task, claimed):
        return None
    return next(runs.glob("*/model/dreambooth.json")).parents[1]


def variant_words(task: Task) -> list[str]:
    """Overrides that make the variant."""
    if task.variant == "no_noun":  # without a noun there is no class to preserve
        words = ["data.params.prompt=a photo of [V]", "model.params.prior_loss_weight=0"]
        return [*words, f"data.params.class_word={task.subject.class_word}"]
    words = [f"data.params.class_word={task.noun}"]
    return words + (["model.params.prior_loss_weight=0"] if task.variant == "no_prior" else [])


def child(script: str, words: Sequence[Any], task: Task, claimed: IO[str]) -> bool:
    """Run one of the project's commands with its output in the task's log.txt; returns whether it succeeded.

    It inherits the claim: if this process is killed, the task stays claimed until the child has ended.
    """
    command = [sys.executable, str(PROJECT / script), *map(str, words)]
    with open(task.log, "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=[claimed.fileno()], start_new_session=True
        )
        try:
            code = process.wait()
        except StoppedError:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return code == 0


def last_line(log: Path) -> str:
    """The last line of a log that is not empty, or that there is none."""
    lines = [
        line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()
    ]
    return lines[-1] if lines else "no output"
