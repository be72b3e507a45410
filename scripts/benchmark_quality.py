"""Train, sample and score every subject of a dataset, and write the paper's table with our rows.

    python scripts/benchmark_quality.py --data assets/benchmark --outdir logs/benchmark

The dataset has the layout of the DreamBooth dataset (prompts_and_classes.txt and a folder per subject). It can be
stopped and restarted at any time. Several processes, on one machine or on several that share a disk, divide the
tasks (one GPU each: CUDA_VISIBLE_DEVICES=1 python ...). Arguments key.sub=value override the training config, those
after --evaluation the evaluation config. A run's weights are deleted once it is scored, unless --keep_weights is
given.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser, add_trust, collect_overrides
from ldm.errors import exit_code_of
from ldm.files import PROJECT
from ldm.values import Count, option

RECIPE = PROJECT / "configs" / "dreambooth.yaml"
METHODS = PROJECT / "configs" / "benchmark" / "methods.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(start, parse(sys.argv[1:] if argv is None else argv))


def start(options: argparse.Namespace) -> int:
    """Run the benchmark with `options`."""
    from ldm.evaluation import benchmark_run
    from ldm.evaluation.benchmark_methods import read_methods
    from ldm.evaluation.benchmark_tasks import ABLATION, STANDARD, Benchmark

    variants = options.variants or (["base"] if options.methods else STANDARD)
    if options.class_noun_ablation:
        variants = [*variants, *(v for v in ABLATION if v not in variants)]
    benchmark = Benchmark(
        data=options.data,
        outdir=options.outdir,
        base=options.base,
        overrides=options.overrides,
        config=options.config,
        evaluation=options.evaluation,
        subjects=options.subjects,
        variants=variants,
        seeds=options.seeds,
        keep_weights=options.keep_weights,
        trust=options.trust,
        methods=read_methods(options.methods) if options.methods else {},
    )
    return benchmark_run.run(benchmark, options.table)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Arguments that are not options override the training config."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "--data", type=Path, default=PROJECT / "assets" / "benchmark", help="the dataset's folder"
    )
    parser.add_argument(
        "--outdir", type=Path, default=Path("logs", "benchmark"), help="folder of all results"
    )
    parser.add_argument(
        "--base", type=Path, nargs="*", default=[RECIPE], help="training configs, as for main.py"
    )
    parser.add_argument(
        "--config", type=Path, nargs="*", default=[], help="overlays for configs/evaluation.yaml"
    )
    parser.add_argument(
        "--evaluation", nargs="*", default=[], metavar="key.sub=value", help="overrides of that config"
    )
    parser.add_argument("--subjects", nargs="*", default=[], help="only these subjects of the dataset")
    parser.add_argument(
        "--variants",
        nargs="*",
        default=[],
        help="of base, prior, no_prior, no_noun, wrong_noun (default: the first three; with --methods: base)",
    )
    parser.add_argument(
        "--seeds",
        type=option(Count),
        default=1,
        help="repetitions with other seeds; for a single subject, intervals need several",
    )
    parser.add_argument(
        "--methods",
        type=Path,
        nargs="?",
        const=METHODS,
        metavar="YAML",
        help="compare methods of fine-tuning, each at its own rate (default: configs/benchmark/methods.yaml)",
    )
    parser.add_argument(
        "--class_noun_ablation", action="store_true", help="add the rows of the paper's table 4"
    )
    parser.add_argument(
        "--keep_weights", action="store_true", help="keep checkpoints and models of scored runs"
    )
    add_trust(parser)
    parser.add_argument("--table", action="store_true", help="only write the table of the results so far")
    parser.add_argument("overrides", nargs="*", default=[], metavar="key.sub=value")
    options = parser.parse_with_overrides(argv)
    collect_overrides(options, "base", "config", "subjects", "variants")
    return options


if __name__ == "__main__":
    sys.exit(main())
