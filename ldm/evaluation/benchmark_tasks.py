"""Tasks of a quality benchmark: one variant of one subject, trained, sampled and scored by child processes."""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import IO, Any

from ldm.concepts import CLASS_WORD
from ldm.config import load_config, load_settings
from ldm.errors import EXIT_RESUME_ME, StoppedError, UserError
from ldm.evaluation.benchmark_methods import COST_CALLBACK, Method
from ldm.evaluation.datasets import BenchmarkSubject, read_dataset, wrong_noun
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
PROMPT = "data.params.prompt"
UNUSED_CALLBACKS = ("validation", "samples")
"""Callbacks left out of training: images are drawn and scored afterwards."""


@dataclass(frozen=True)
class Benchmark:
    """The settings of a quality benchmark."""

    data: Path
    """The dataset's folder."""
    outdir: Path
    """Folder of all results."""
    base: Sequence[Path]
    """The trainings' configs."""
    overrides: Sequence[str] = ()
    """Overrides of these configs, `key.sub=value`."""
    config: Sequence[Path] = ()
    """Overlays for configs/evaluation.yaml."""
    evaluation: Sequence[str] = ()
    """Overrides of that config."""
    subjects: Sequence[str] = ()
    """Only these subjects of the dataset; empty for all."""
    variants: Sequence[str] = STANDARD
    """Keys of VARIANTS."""
    seeds: int = 1
    """Repetitions of each variant of a subject, each with its own seeds for training and images."""
    keep_weights: bool = False
    """Keep checkpoints and models of scored runs."""
    trust: Sequence[str] = ()
    """Other packages whose classes the configs may build."""
    methods: Mapping[str, Method] = field(default_factory=dict)
    """Further variants, by name."""

    @property
    def titles(self) -> dict[str, str]:
        """Titles of all variants, by name."""
        return {**VARIANTS, **{name: method.title for name, method in self.methods.items()}}

    @property
    def every_variant(self) -> list[str]:
        """The names of the variants that are measured."""
        return [*self.variants, *self.methods]


@dataclass(frozen=True)
class Task:
    """One variant of one subject. noun: in its prompts, '' for none. seed: number of the repetition."""

    variant: str
    subject: BenchmarkSubject
    noun: str
    folder: Path
    seed: int = 0
    title: str = ""

    @property
    def result(self) -> Path:
        """Exists once the task is done."""
        return self.folder / "evaluation" / "metrics.json"

    @property
    def name(self) -> str:
        """For messages."""
        again = f", seed {self.seed}" if self.seed else ""
        return f"{self.subject.name}, {self.title}{again}"

    @property
    def log(self) -> Path:
        """Output of its child processes."""
        return self.folder / "log.txt"


def plan(benchmark: Benchmark) -> list[Task]:
    """All tasks, ordered by seed, then subject, so that an unfinished table compares variants of the same subjects.

    With more seeds, a finished benchmark continues. The first seed's folder is the same as without seeds.
    """
    if unknown := set(benchmark.variants) - VARIANTS.keys():
        raise UserError(f"--variants {unknown.pop()}: must be one of {', '.join(VARIANTS)}")
    every = read_dataset(benchmark.data)
    names = [subject.name for subject in every]
    if unknown := set(benchmark.subjects) - set(names):
        raise UserError(f"--subjects {unknown.pop()}: not in {benchmark.data}; it has {', '.join(names)}")
    tasks = []
    chosen = [subject for subject in every if not benchmark.subjects or subject.name in benchmark.subjects]
    for seed, subject, variant in product(range(benchmark.seeds), chosen, benchmark.every_variant):
        method = benchmark.methods.get(variant)
        without_noun = variant == "no_noun" or (method and not method.class_noun)
        noun = "" if without_noun else subject.class_word
        if variant == "wrong_noun":
            noun = wrong_noun(subject, every)
        folder = benchmark.outdir / variant / subject.name
        folder = folder / f"seed-{seed}" if seed else folder
        tasks.append(Task(variant, subject, noun, folder, seed, benchmark.titles[variant]))
    return tasks


def claim(task: Task) -> IO[str] | None:
    """Claim the task until the file is closed or this process and its child end; None if another process has it."""
    task.folder.mkdir(parents=True, exist_ok=True)
    file = open(task.folder / ".claim", "a+")  # noqa: SIM115 - open for the duration of the task
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def in_a_folder(subject: BenchmarkSubject, outdir: Path) -> BenchmarkSubject:
    """A subject whose only photograph shares a folder with others' gets its own folder in `outdir`."""
    if subject.folder.is_dir():
        return subject
    own = outdir / "photographs" / subject.name
    own.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(subject.folder, own / subject.folder.name)
    return replace(subject, folder=own)


def prompt_overrides(task: Task) -> list[str]:
    """Arguments for evaluate.py to use the dataset's own prompts, if it has any."""
    if not task.subject.prompts:
        return []
    return [f"prompt_sets.own={json.dumps(task.subject.prompts)}", "prompts=own"]


def run_task(task: Task, benchmark: Benchmark, claimed: IO[str]) -> bool:
    """Train, if the variant trains, then sample and score; returns whether both succeeded."""
    task = replace(task, subject=in_a_folder(task.subject, benchmark.outdir))
    run_folder, trust = None, [word for package in benchmark.trust for word in ("--trust", package)]
    if task.variant == "base":
        source = base_arguments(task, benchmark)
    else:
        run_folder = trained_run(task, benchmark, claimed)
        if run_folder is None:
            return False
        source = ["--ckpt", run_folder, "--prompt_noun", task.noun]
    arguments = [*source, "--class_word", task.subject.class_word, "--outdir", task.folder / "evaluation"]
    arguments += [
        *trust,
        "--no_base",  # a variant of its own
        "--config",
        *benchmark.config,
        *benchmark.evaluation,
        *prompt_overrides(task),
        *seed_overrides(task, benchmark),
    ]
    if not child("scripts/evaluate.py", arguments, task, claimed):
        return False
    if run_folder is not None and not benchmark.keep_weights:
        for large in ("checkpoints", "model", "prior"):
            shutil.rmtree(run_folder / large, ignore_errors=True)
    return True


def seed_overrides(task: Task, benchmark: Benchmark) -> list[str]:
    """Overrides for evaluate.py that give a repetition its own image seeds."""
    if not task.seed:
        return []
    sampling = evaluation_settings(benchmark)["sampling"]
    stride = max(sampling["images_per_prompt"], sampling["class_images"])
    return [f"sampling.seed={sampling['seed'] + task.seed * stride}"]


def evaluation_settings(benchmark: Benchmark) -> dict[str, Any]:
    """The evaluation's config with the benchmark's overlays and overrides. Raises UserError if they are wrong."""
    paths = [PROJECT / "configs" / "evaluation.yaml", *benchmark.config]
    return load_settings(paths, EvaluationSettings, benchmark.evaluation)


def base_arguments(task: Task, benchmark: Benchmark) -> list[object]:
    """Arguments for evaluate.py to measure the base, loaded and compared as the trained models are."""
    config = training_settings(benchmark)
    model, data = config["model"]["params"], config["data"]["params"]
    arguments = [
        "--ckpt",
        model["base"],
        "--real",
        task.subject.folder,
        "--hold_out",
        data.get("hold_out") or 0,
    ]
    for name in ("revision", "variant", "vae", "prediction_type", "clip_skip"):
        if model.get(name) is not None:
            arguments += [f"--{name}", model[name]]
    switches = {
        "--no_ema": not model.get("use_ema", True),
        "--zero_terminal_snr": model.get("zero_terminal_snr"),
    }
    return [*arguments, *(switch for switch, is_on in switches.items() if is_on)]


def trained_run(task: Task, benchmark: Benchmark, claimed: IO[str]) -> Path | None:
    """The task's finished run, which is trained or resumed if needed; None if training failed."""
    runs = task.folder / "run"
    started = sorted(runs.glob("*/configs/config.yaml"))
    folder = started[-1].parents[1] if started else None
    if folder and (folder / "model" / "dreambooth.json").is_file():
        return folder
    if folder and any((folder / "checkpoints").glob("*.ckpt")):
        arguments = ["--resume", folder]
    else:
        shutil.rmtree(runs, ignore_errors=True)  # ended before its first checkpoint
        method = benchmark.methods.get(task.variant)
        overlays = method.configs if method else []
        arguments = ["--base", *benchmark.base, *overlays, "--logdir", runs, "--name", task.variant]
        arguments += ["--data_root", task.subject.folder.resolve()]
        arguments += [f"lightning.callbacks.{name}=null" for name in UNUSED_CALLBACKS]
        arguments += [*benchmark.overrides, *own_overrides(task, benchmark)]
        arguments += [COST_CALLBACK] if method else []
        if task.seed:
            arguments += [f"seed={training_settings(benchmark)['seed'] + task.seed}"]
    arguments += [word for package in benchmark.trust for word in ("--trust", package)]
    if not child("main.py", arguments, task, claimed):
        return None
    return next(runs.glob("*/model/dreambooth.json")).parents[1]


def training_settings(benchmark: Benchmark, method: Method | None = None) -> dict[str, Any]:
    """The trainings' config with the benchmark's overrides, and those of a method. Raises UserError if it is wrong."""
    paths, own = [*benchmark.base, *(method.configs if method else ())], method.overrides if method else ()
    return load_config(paths, [*benchmark.overrides, *own], benchmark.trust)


def own_overrides(task: Task, benchmark: Benchmark) -> list[str]:
    """Overrides of the recipe that make the task's variant what its title says."""
    overrides = [f"data.params.class_word={task.noun or task.subject.class_word}"]
    if task.variant == "no_noun":
        prompt = training_settings(benchmark)["data"]["params"]["prompt"].replace(CLASS_WORD, "")
        prompt = re.sub(r" (?=[,.;])", "", " ".join(prompt.split()))
        overrides.append(f"{PROMPT}={json.dumps(prompt)}")
    if task.variant in ("no_prior", "no_noun"):  # without a noun there is no class to preserve
        overrides.append("model.params.prior_loss_weight=0")
    method = benchmark.methods.get(task.variant)
    return [*overrides, *(method.overrides if method else ())]


def refuse_overrides_of_variants(tasks: Sequence[Task], benchmark: Benchmark) -> None:
    """Raise UserError if an override of the benchmark's would change what a row's title says of it."""
    asked = {word.partition("=")[0]: word for word in benchmark.overrides}
    for task in {task.variant: task for task in tasks if task.variant != "base"}.values():
        own = {word.partition("=")[0]: word for word in own_overrides(task, benchmark)}
        for key, other in product(own, asked):
            if key != PROMPT and (f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")):
                raise UserError(
                    f"{asked[other]}: the row '{task.title}' sets {own[key]} itself, so leave it out"
                )


def child(script: str, arguments: Sequence[object], task: Task, claimed: IO[str]) -> bool:
    """Run one of the project's programs, logging to the task's log.txt; returns whether it succeeded.

    It inherits the claim: if this process is killed, the task remains claimed until the child ends.
    """
    command = [sys.executable, str(PROJECT / script), *map(str, arguments)]
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
    if code == EXIT_RESUME_ME:  # lightning.trainer.max_time, or a signal to the child alone
        raise StoppedError("stopped; the same command continues")
    return code == 0


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, or "no output"."""
    lines = [
        line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()
    ]
    return lines[-1] if lines else "no output"
