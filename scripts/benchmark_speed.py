"""Speed and memory: `python scripts/benchmark_speed.py --model toy --out benchmark.json`.

Every variant runs in its own process. Each round runs all of them; a ratio is the median over rounds of first
variant / this variant within the round, so a machine that slows down affects both. sd-v1 and sd-v2 are the full
architectures with random weights, made once under .cache/ without a download.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import UserError, exit_code_of
from ldm.files import PROJECT, check_writable_file, write_json
from ldm.training.speed.jobs import CONFIGS, GROUPS, WITH_BITSANDBYTES, Plan, jobs_of, one_of_each
from ldm.values import Count, PositiveFloat, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = option(Count)
    parser.add_argument("--model", choices=CONFIGS, default="toy")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="what to measure")
    parser.add_argument("--rounds", type=count, default=3, help="how often every variant is measured")
    parser.add_argument("--repeats", type=count, default=20, help="timed steps, or calls, per round")
    parser.add_argument("--size", type=count, help="side of the images in px (default: the recipe's)")
    parser.add_argument(
        "--gpu_memory",
        type=option(PositiveFloat),
        metavar="GB",
        help="for memory: limit torch to this much of a GPU's, to see what fits; it takes more where there is more",
    )
    parser.add_argument("--out", type=Path, help="also write all figures there, as JSON, after each process")
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="TRACE.json",
        help="also profile training steps of what is measured: a Chrome trace and a .txt table",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="only check within a minute that it runs; the figures mean little",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config overrides of every variant, after --"
    )
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Measure, print the table and write the JSON."""
    for path in filter(None, (options.out, options.profile)):
        check_writable_file(path)
    import torch

    from ldm.training.speed import rounds, summary

    if options.quick:
        options.rounds, options.repeats = 1, 1
    gpu = torch.cuda.is_available()
    if options.model == "sd-xl" and list(options.only) != ["memory"]:
        raise UserError(
            "of --model sd-xl only memory is measured, or counted without a GPU: add --only memory"
        )
    base = base_of(options.model, gpu)
    plan = Plan(
        options.model,
        base,
        options.size,
        options.repeats,
        gpu=gpu,
        quick=options.quick,
        gpu_gigabytes=options.gpu_memory,
        overrides=options.overrides,
    )
    jobs = [job for group in options.only for job in jobs_of(group, plan)]
    if not find_spec("bitsandbytes"):
        jobs = [job for job in jobs if job.variant not in WITH_BITSANDBYTES]
    turns = [one_of_each(jobs)] if options.quick else [[job] for job in jobs]
    about = {"model": options.model, "date": str(date.today()), "machine": summary.machine_name()}
    lines = []
    for rows in rounds.rounds_of([turn for turn in turns if turn], options.rounds):
        lines = summary.summarize(rows)
        if options.out:
            write_json(options.out, {**about, "rows": lines})
    if options.profile:
        steps = (job for job in [*jobs, *jobs_of("step", plan)] if job.measure == "training_step")
        rounds.measured([replace(next(steps), trace=str(options.profile.resolve()))])
    print(summary.table(lines, summary.title_of(options.model, options.rounds, options.repeats)))


def base_of(model: str, gpu: bool) -> str:
    """The base to measure; random weights of the full architecture are written the first time.

    Without a GPU sd-xl has none: what is counted of it needs its configs alone.
    """
    if model == "toy":
        return "assets/base"
    if model == "sd-xl" and not gpu:
        return "configs/stable-diffusion/xl"
    folder = PROJECT / ".cache" / f"random-{model}"
    if not folder.exists():
        import torch

        from ldm.formats.random_base import write_random_base

        print(f"writing random weights to {folder}", file=sys.stderr)
        with torch.device("cuda" if gpu else "cpu"):
            write_random_base(PROJECT / "configs" / "stable-diffusion" / model.removeprefix("sd-"), folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
