"""Measure what several subjects in one model cost each of them, on the embedded world's withheld subjects.

Trains two of one noun, two of different nouns, and six together, and each of them alone, with each seed, and writes
concepts.json and a table. Runs that are there already are not trained again, so an interrupted command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser
from ldm.errors import exit_code_of
from ldm.files import PROJECT
from ldm.values import Count, Seed, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(run, parse(sys.argv[1:] if argv is None else argv))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Words that are no option are config overrides of the runs, `key.sub=value`."""
    recipe = PROJECT / "configs" / "dreambooth.yaml"
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument(
        "-b", "--base", nargs="+", default=[str(recipe)], metavar="YAML", help="the runs' configs"
    )
    parser.add_argument("--outdir", type=Path, default=Path("logs/concepts"), help="where all of it goes")
    parser.add_argument("--groups", nargs="+", choices=("one noun", "two nouns", "six"), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=option(Seed), default=[0, 1, 2])
    parser.add_argument(
        "--steps", type=option(Count), default=300, help="optimizer steps for each subject of a run"
    )
    parser.add_argument(
        "--alone",
        type=Path,
        metavar="OUTDIR",
        help="take the single subjects' results from another comparison, to compare settings of the others alone",
    )
    parser.add_argument(
        "--evaluation",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="overrides of the evaluation's config",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key.sub=value", help="config keys of the runs to change"
    )
    return parser.parse_with_overrides(argv)


def run(options: argparse.Namespace) -> None:
    """Train, measure, write, print."""
    from ldm.config import load_config, load_settings
    from ldm.evaluation.settings import EvaluationSettings
    from ldm.evaluation.settings_file import keep_to_both, of_evaluation, of_training
    from ldm.files import write_json
    from ldm.world.several_subjects import GROUPS, Experiment, compare, markdown
    from main import main as train
    from scripts.evaluate import CONFIG
    from scripts.evaluate import main as evaluate

    experiment = Experiment(
        options.outdir,
        options.base,
        options.overrides,
        options.evaluation,
        options.steps,
        train,
        evaluate,
        options.alone,
    )
    groups = {
        name: those for name, those in GROUPS.items() if options.groups is None or name in options.groups
    }
    experiment.refuse_missing(groups, options.seeds)
    training = {
        "training": of_training(load_config(options.base, options.overrides)),
        "steps": options.steps,
        "alone": options.alone and str(options.alone.resolve()),
    }
    evaluation = of_evaluation(load_settings([CONFIG], EvaluationSettings, options.evaluation))
    saved, drawn = "*/seed-*/runs/*/checkpoints/*.ckpt", ["*/seed-*/evaluation/**/*.png"]
    keep_to_both(training, evaluation, options.outdir, saved, drawn, "a comparison")
    rows = compare(experiment, groups, options.seeds)
    write_json(options.outdir / "concepts.json", rows)
    print(markdown(rows))


if __name__ == "__main__":
    sys.exit(main())
