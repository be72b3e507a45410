"""Train, sample and score every subject of a dataset, and write the paper's table with rows for us.

    python scripts/benchmark_quality.py --data assets/benchmark --outdir logs/benchmark

The dataset has the layout of the DreamBooth dataset (prompts_and_classes.txt and a folder a subject). Stop it
at any time and start it again; start it several times, on one machine or on several that share a disk, and
the processes share the list (one GPU each: CUDA_VISIBLE_DEVICES=1 python ...). Words key.sub=value change the
trainings, those right after --evaluation the measuring. A run's weights are removed once it is scored, unless
--keep_weights is given.
"""

import argparse
import fcntl
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import add_trust  # noqa: E402
from ldm.errors import EXIT_RESUME_ME, EXIT_USER_ERROR, UserError

PROJECT = Path(__file__).resolve().parents[1]
RECIPE = PROJECT / "configs" / "dreambooth.yaml"
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
class Task:
    """One variant of one subject. `noun` stands in its prompts ('' for none)."""

    variant: str
    subject: Any
    noun: str
    folder: Path

    @property
    def result(self) -> Path:
        return self.folder / "evaluation" / "metrics.json"

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {VARIANTS[self.variant]}"


class StopError(Exception):
    """A signal asked to stop, and the running child has saved its state."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    options = parse(argv)
    try:
        return run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except StopError:
        print("stopped; the same command continues", file=sys.stderr)
        return EXIT_RESUME_ME


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Words that are not options override the trainings' config."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, default=PROJECT / "assets" / "benchmark", help="the dataset's folder"
    )
    parser.add_argument(
        "--outdir", type=Path, default=Path("logs", "benchmark"), help="folder of all results"
    )
    parser.add_argument(
        "--base", type=Path, nargs="*", default=[RECIPE], help="the trainings' configs, as main.py's"
    )
    parser.add_argument(
        "--config", type=Path, nargs="*", default=[], help="overlays over configs/evaluation.yaml"
    )
    parser.add_argument(
        "--evaluation", nargs="*", default=[], metavar="key.sub=value", help="changes to that config"
    )
    parser.add_argument("--subjects", nargs="*", help="only these of the dataset")
    parser.add_argument("--variants", nargs="*", default=list(STANDARD), help=f"of {', '.join(VARIANTS)}")
    parser.add_argument(
        "--class_noun_ablation", action="store_true", help="add the rows of the paper's table 4"
    )
    parser.add_argument(
        "--keep_weights", action="store_true", help="keep checkpoints and models of scored runs"
    )
    add_trust(parser)
    parser.add_argument("--table", action="store_true", help="only write the table of the results so far")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value")
    options, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    options.overrides = [*options.overrides, *rest]
    for name in ("base", "config", "subjects", "variants"):  # argparse gives a list all words that follow it
        words = getattr(options, name) or []
        options.overrides += [str(word) for word in words if "=" in str(word)]
        setattr(options, name, [word for word in words if "=" not in str(word)])
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"--variants {unknown[0]}: one of {', '.join(VARIANTS)}")
    if options.class_noun_ablation:
        options.variants = [*options.variants, *(v for v in ABLATION if v not in options.variants)]
    return options


def run(options: argparse.Namespace) -> int:
    """Work through the list until nothing on it is free; write the table after every task."""
    tasks = plan(options)
    failed = []
    if not options.table:
        check_settings(options)
        listen()
        failed = work_through(tasks, options)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    missing = [task for task in tasks if not task.result.is_file()]
    if len(missing) < len(tasks):
        print(write_table(tasks, options))
        print(options.outdir / "benchmark.html")
    if missing:
        print(
            f"{len(missing)} of {len(tasks)} are still to do, or in work by other processes", file=sys.stderr
        )
    return 1 if failed else 0


def plan(options: argparse.Namespace) -> list[Task]:
    """All tasks, a subject's variants together, so that an unfinished table compares the same subjects."""
    from ldm.evaluation.benchmark import read_dataset, wrong_noun

    every = read_dataset(options.data)
    names = [subject.name for subject in every]
    if unknown := set(options.subjects or ()) - set(names):
        raise UserError(f"--subjects {unknown.pop()}: not in {options.data}; it has {', '.join(names)}")
    tasks = []
    for subject in every:
        if options.subjects and subject.name not in options.subjects:
            continue
        for variant in options.variants:
            noun = {"no_noun": lambda s: "", "wrong_noun": lambda s: wrong_noun(s, every)}.get(variant)
            word = noun(subject) if noun else subject.class_word
            tasks.append(Task(variant, subject, word, options.outdir / variant / subject.name))
    return tasks


def check_settings(options: argparse.Namespace) -> None:
    """One folder holds one benchmark: results of other settings must not end up in one table."""
    from ldm.files import replacing

    settings = {
        "data": str(options.data.resolve()),
        "base": [str(path.resolve()) for path in options.base],
        "config": [str(path.resolve()) for path in options.config],
        "evaluation": options.evaluation,
        "overrides": options.overrides,
    }
    path = options.outdir / "settings.json"
    if path.is_file():
        if (before := json.loads(path.read_text())) != settings:
            key = next(key for key in settings if before.get(key) != settings[key])
            raise UserError(f"{options.outdir} holds a benchmark with another {key}: give another --outdir")
        return
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1))


def work_through(tasks: Sequence[Task], options: argparse.Namespace) -> list[str]:
    """Do every task that is neither done nor claimed by another process; returns a line for each that failed.

    Goes over the list until nothing is left to do: a task that another process gave up is free again.
    """
    failed: dict[Task, str] = {}
    seconds: list[float] = []
    found = True
    while found:
        found = False
        for number, task in enumerate(tasks, start=1):
            if task in failed or task.result.is_file() or (claimed := claim(task)) is None:
                continue
            with claimed:
                if task.result.is_file():  # done between the two looks
                    continue
                found, start = True, time.monotonic()
                print(f"[{number}/{len(tasks)}] {task.name}", flush=True)
                if not do(task, options, claimed):
                    log = task.folder / "log.txt"
                    failed[task] = f"{task.name}: {last_line(log)} ({log})"
                    continue
            seconds.append(time.monotonic() - start)
            write_table(tasks, options)
            print(f"    {seconds[-1]:.0f} s; {estimate(tasks, seconds)}", flush=True)
    return list(failed.values())


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


def estimate(tasks: Sequence[Task], seconds: Sequence[float]) -> str:
    """How many tasks are left, and how long they take at this pace with the present number of processes."""
    left = [task for task in tasks if not task.result.is_file()]
    if not left:
        return "all are done"
    taken = 0
    for task in left:
        if (probe := claim(task)) is None:
            taken += 1
        else:
            probe.close()
    minutes = len(left) * sum(seconds) / len(seconds) / (taken + 1) / 60
    return f"{len(left)} left, about {minutes:.0f} min with {taken + 1} process{'es' if taken else ''}"


def do(task: Task, options: argparse.Namespace, claimed: IO[str]) -> bool:
    """Train, if the variant trains, then sample and score; returns whether both succeeded."""
    run_folder = None
    if task.variant == "base":
        from ldm.config import load_config

        model = load_config(options.base, options.overrides, options.trust)["model"]["params"]["base"]
        hold_out = [
            word.split("=")[1] for word in options.overrides if word.startswith("data.params.hold_out=")
        ]
        what = ["--ckpt", model, "--real", task.subject.folder, "--hold_out", (hold_out or ["0"])[-1]]
    else:
        run_folder = trained_run(task, options, claimed)
        if run_folder is None:
            return False
        what = ["--ckpt", run_folder, "--prompt_noun", task.noun]
    words = [*what, "--class_word", task.subject.class_word, "--outdir", task.folder / "evaluation"]
    words += ["--config", *options.config, *options.evaluation]
    if not child("scripts/evaluate.py", words, task, claimed):
        return False
    if run_folder is not None and not options.keep_weights:
        for heavy in ("checkpoints", "model", "prior"):
            shutil.rmtree(run_folder / heavy, ignore_errors=True)
    return True


def trained_run(task: Task, options: argparse.Namespace, claimed: IO[str]) -> Path | None:
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
        words = ["--base", *options.base, "--logdir", runs, "--name", task.variant]
        words += ["--data_root", task.subject.folder.resolve(), *variant_words(task)]
        words += [f"lightning.callbacks.{name}=null" for name in NOT_WHILE_MEASURING] + options.overrides
    words += [word for package in options.trust for word in ("--trust", package)]
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
    with open(task.folder / "log.txt", "a") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=[claimed.fileno()], start_new_session=True
        )
        try:
            code = process.wait()
        except StopError:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise
    return code == 0


def listen() -> None:
    """SIGTERM and Ctrl-C let the running child save itself, then end this process."""

    def stop(number: int, frame: Any) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)  # the second one ends it at once
        raise StopError

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


def last_line(log: Path) -> str:
    """The last line of a log that is not empty."""
    lines = [
        line for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()
    ]
    return lines[-1] if lines else "no output"


def write_table(tasks: Sequence[Task], options: argparse.Namespace) -> str:
    """Write benchmark.json, table.md and benchmark.html of the results so far; returns the table as Markdown."""
    from ldm.config import load_settings
    from ldm.evaluation.benchmark import markdown, means, table_rows
    from ldm.evaluation.benchmark_page import benchmark_page
    from ldm.evaluation.settings import EvaluationSettings
    from ldm.files import replacing

    done: dict[str, dict[str, Any]] = {variant: {} for variant in options.variants}
    for task in tasks:
        if task.result.is_file():
            done[task.variant][task.subject.name] = json.loads(task.result.read_text())
    published = load_settings([PROJECT / "configs" / "evaluation.yaml"], EvaluationSettings)["published"]
    if not set(ABLATION) & set(options.variants):
        published = [row for row in published if row["table"] != 4]
    variants = {variant: means(results) for variant, results in done.items()}
    rows = table_rows(variants, VARIANTS, published)
    div = next(result["networks"]["div"] for results in done.values() for result in results.values())
    texts = {
        "benchmark.json": json.dumps({"variants": variants}, indent=1) + "\n",
        "table.md": markdown(rows, div),
        "benchmark.html": benchmark_page(options.outdir, rows, done, VARIANTS, variants),
    }
    for name, text in texts.items():
        # Several processes may end at once.
        with replacing(options.outdir / name, sync=False, shared=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return texts["table.md"]


if __name__ == "__main__":
    sys.exit(main())
