"""Runs the tasks of a quality benchmark and writes its tables; several processes may share the tasks."""

import json
import signal
import time
from collections.abc import Mapping, Sequence
from types import FrameType

from ldm.config import load_settings
from ldm.errors import StoppedError, say
from ldm.evaluation.benchmark import Cell, Means, differences, markdown, means, prompts_csv, table_rows
from ldm.evaluation.benchmark_methods import cost_table, fidelity_plot, read_cost, typical_costs
from ldm.evaluation.benchmark_page import Content, benchmark_page
from ldm.evaluation.benchmark_tasks import (
    ABLATION,
    Benchmark,
    Task,
    claim,
    evaluation_settings,
    last_line,
    plan,
    refuse_overrides_of_variants,
    run_task,
    training_settings,
)
from ldm.evaluation.scores import Result
from ldm.evaluation.settings import EvaluationSettings
from ldm.evaluation.settings_file import keep_to_both, of_evaluation, of_training
from ldm.files import PROJECT, replacing

SAVED = "*/*/run/*/checkpoints/*.ckpt"
EVALUATED = ("*/*/evaluation/*/*.png", "*/*/evaluation/metrics.json")
"""What is there once a run has saved, and once something was drawn or measured."""

REFERENCE = "prior"
"""The variant to compare the others with, if measured; else the first."""


def run(benchmark: Benchmark, only_table: bool = False) -> int:
    """Run tasks until none is free, and write the table after each; returns the exit code.

    only_table: only write the table of the results so far.
    Raises StoppedError if a signal ended it, with everything saved.
    """
    tasks = plan(benchmark)
    failed: list[str] = []
    if not only_table:
        check_settings(tasks, benchmark)
        stop_on_signals()
        failed = work_through(tasks, benchmark)
    for name in failed:
        say(f"failed: {name}")
    missing = [task for task in tasks if not task.result.is_file()]
    if len(missing) < len(tasks):
        print(write_table(tasks, benchmark))
        print(benchmark.outdir / "benchmark.html")
    if missing:
        say(f"{len(missing)} of {len(tasks)} tasks are not finished, or in progress in other processes")
    return 1 if failed else 0


def check_settings(tasks: Sequence[Task], benchmark: Benchmark) -> None:
    """Raise UserError if the folder has results of other settings, which must not share a table.

    Or if settings are wrong, which would otherwise be noticed after the first training.
    """
    refuse_overrides_of_variants(tasks, benchmark)
    training = of_training(training_settings(benchmark))
    methods = {
        name: {key: value for key, value in own.items() if training.get(key) != value}
        for name, method in benchmark.methods.items()
        if (own := of_training(training_settings(benchmark, method)))
    }
    settings = {"data": str(benchmark.data.resolve()), "training": training, "methods": methods}
    evaluation = of_evaluation(evaluation_settings(benchmark))
    keep_to_both(settings, evaluation, benchmark.outdir, SAVED, EVALUATED, "a benchmark")


def work_through(tasks: Sequence[Task], benchmark: Benchmark) -> list[str]:
    """Run every task that is neither done nor claimed by another process; returns a line for each that failed.

    Repeats until none is left, since a task that another process abandoned is free again.
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
                if task.result.is_file():  # done since the check above
                    continue
                found, start = True, time.monotonic()
                print(f"[{number}/{len(tasks)}] {task.name}", flush=True)
                if not run_task(task, benchmark, claimed):
                    failed[task] = f"{task.name}: {last_line(task.log)} ({task.log})"
                    continue
            seconds.append(time.monotonic() - start)
            write_table(tasks, benchmark)
            print(f"    {seconds[-1]:.0f} s; {estimate(tasks, seconds)}", flush=True)
    return list(failed.values())


def estimate(tasks: Sequence[Task], seconds: Sequence[float]) -> str:
    """How many tasks are left, and how long they take at this pace with the current number of processes."""
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


def stop_on_signals() -> None:
    """Make SIGTERM and Ctrl-C end this process after the running child has saved its state."""

    def stop(number: int, frame: FrameType | None) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)  # a second signal ends it at once
        raise StoppedError("stopped; the same command continues")

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, stop)


def write_table(tasks: Sequence[Task], benchmark: Benchmark) -> str:
    """Write the tables and the page of the results so far; returns the main table as Markdown."""
    done: dict[str, dict[Cell, Result]] = {variant: {} for variant in benchmark.every_variant}
    for task in tasks:
        if task.result.is_file():
            done[task.variant][task.subject.name, task.seed] = json.loads(task.result.read_text())
    published = load_settings([PROJECT / "configs" / "evaluation.yaml"], EvaluationSettings)["published"]
    if not set(ABLATION) & set(benchmark.variants):
        published = [row for row in published if row["table"] != 4]
    variants = {variant: means(results) for variant, results in done.items()}
    rows, titles = table_rows(variants, benchmark.titles, published), benchmark.titles
    div = next(result["networks"]["div"] for results in done.values() for result in results.values())
    reference = REFERENCE if done.get(REFERENCE) else next(name for name in done if done[name])
    against = {
        titles[name]: differences(results, done[reference])
        for name, results in done.items()
        if name != reference and set(results) & set(done[reference])
    }
    content: Content = {"variants": variants, "reference": reference, "differences": against}
    texts = {
        "benchmark.json": json.dumps(content, indent=1) + "\n",
        "table.md": markdown(rows, div, against, titles[reference]),
        "benchmark.html": benchmark_page(rows, done, titles, content),
        "prompts.csv": prompts_csv(done),
    }
    if benchmark.methods:
        texts |= methods_texts(tasks, benchmark, variants)
    for name, text in texts.items():
        # Several processes may write at once.
        with replacing(benchmark.outdir / name, sync=False, shared=True) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return texts["table.md"] + texts.get("costs.md", "")


def methods_texts(
    tasks: Sequence[Task], benchmark: Benchmark, variants: Mapping[str, Means]
) -> dict[str, str]:
    """Further files of a comparison of methods: costs.md, costs.json and fidelity.svg."""
    costs = {}
    for variant, method in benchmark.methods.items():
        own = [task for task in tasks if task.variant == variant and task.result.is_file()]
        if found := [cost for task in own if (cost := read_cost(task.folder))]:
            costs[method.title] = typical_costs(found)
    measured = {name: variant for name, variant in variants.items() if variant["subjects"]}
    texts = {"costs.md": cost_table(costs), "costs.json": json.dumps(costs, indent=1) + "\n"}
    plot = fidelity_plot(measured, benchmark.methods)
    return texts if plot is None else texts | {"fidelity.svg": plot}
