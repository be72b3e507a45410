"""Speed and memory: `python scripts/benchmark_speed.py --model toy --out benchmark.json`.

Every variant runs in a process of its own, one after the other, round after round; a ratio is the median over
rounds of first variant / this variant within the round, so that a machine that slows down slows both. sd-v1 and
sd-v2 are the full architectures with random weights, made once under .cache/ without a download.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.files import PROJECT
from ldm.training.speed.jobs import CONFIGS, GROUPS, WITH_BITSANDBYTES, Plan, jobs_of, one_of_each
from ldm.values import Count, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    count = option(Count)
    parser.add_argument("--model", choices=CONFIGS, default="toy")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="what to measure")
    parser.add_argument("--rounds", type=count, default=3, help="of every variant, one after the other")
    parser.add_argument("--repeats", type=count, default=20, help="timed steps, or calls, a round")
    parser.add_argument("--size", type=count, help="px (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="also write every figure there, as JSON")
    parser.add_argument(
        "--profile", metavar="TRACE.json", help="also profile a training step: Chrome trace, and .txt"
    )
    parser.add_argument(
        "--quick", action="store_true", help="see within a minute that it runs: its figures mean little"
    )
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    import torch

    from ldm.training.speed import rounds, summary

    if options.quick:
        options.rounds, options.repeats = 1, 1
    base = base_of(options.model)
    gpu = torch.cuda.is_available()
    plan = Plan(options.model, base, options.size, options.repeats, gpu=gpu, quick=options.quick)
    jobs = [job for group in options.only for job in jobs_of(group, plan)]
    if not find_spec("bitsandbytes"):
        jobs = [job for job in jobs if job.variant not in WITH_BITSANDBYTES]
    turns = [one_of_each(jobs)] if options.quick else [[job] for job in jobs]
    lines = summary.summarize(rounds.rounds_of([turn for turn in turns if turn], options.rounds))
    if options.profile:
        step = next(job for job in jobs_of("step", plan) if job.measure == "training_step")
        rounds.measured([replace(step, trace=str(Path(options.profile).resolve()))])
    print(summary.table(lines, summary.title_of(options.model, options.rounds, options.repeats)))
    if options.out:
        about = {"model": options.model, "date": str(date.today()), "machine": summary.machine_name()}
        options.out.write_text(json.dumps({**about, "rows": lines}, indent=1) + "\n")


def base_of(model: str) -> str:
    """The base to measure on; random weights of the full architecture are made the first time."""
    if model == "toy":
        return "assets/base"
    folder = PROJECT / ".cache" / f"random-{model}"
    if not folder.exists():
        from ldm.formats.random_base import write_random_base

        print(f"writing random weights to {folder}", file=sys.stderr)
        write_random_base(PROJECT / "configs" / "stable-diffusion" / model.removeprefix("sd-"), folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
