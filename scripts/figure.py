"""Draw the README's figures: what DreamBooth learns, and what the prior-preservation loss preserves.

    python scripts/figure.py --run logs/<run> --without_prior logs/<run with prior_loss_weight=0>
    python scripts/figure.py --runs logs/<run> logs/<run> ... --out assets/subjects.png
    python scripts/figure.py --evaluations logs/<run>/evaluation ... --prompts 0 1 20 --out assets/methods.png

The second draws a row for each run, the third one for each evaluation, of pictures that are there already.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.files import check_writable_file
from ldm.samplers import SAMPLERS
from ldm.values import Count, NonNegativeFloat, NonNegativeInt, Seed, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--without_prior", type=Path, help="the same with model.params.prior_loss_weight=0")
    parser.add_argument("--runs", nargs="+", type=Path, help="runs to draw a row each")
    parser.add_argument(
        "--titles", nargs="+", metavar="TEXT", help="a title for each of --runs or --evaluations"
    )
    parser.add_argument(
        "--evaluations", nargs="+", type=Path, help="folders of scripts/evaluate.py, a row each"
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        type=option(NonNegativeInt),
        default=range(8),
        help="of --evaluations, numbers from 0",
    )
    parser.add_argument("--out", type=Path, default=Path("assets/figure.png"))
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: what the base advises")
    parser.add_argument("--steps", type=option(Count), help="sampler steps (default: what the base advises)")
    parser.add_argument(
        "--scale", type=option(NonNegativeFloat), help="classifier-free guidance (default: the base's)"
    )
    parser.add_argument("--seed", type=option(Seed), default=0, help="seed of each row's first image")
    parser.add_argument("--zoom", type=option(Count), default=2, help="factor to enlarge each image")
    parser.add_argument("--dino", default="assets/features/dino", help="tells the likest pictures")
    options = parser.parse_args(argv)
    pair = options.run and options.without_prior
    rows = options.runs or options.evaluations
    if sum(map(bool, (pair, options.runs, options.evaluations))) != 1:
        parser.error("give --run and --without_prior, or --runs, or --evaluations")
    if options.titles and len(options.titles) != len(rows or ()):
        parser.error(f"--titles has {len(options.titles)}: give one for each of the {len(rows or ())} rows")
    return exit_code_of(draw, options)


def draw(options: argparse.Namespace) -> None:
    """Draw the figure and save it."""
    check_writable_file(options.out)
    from ldm.data.images import save_image
    from ldm.world.figure import figure, figure_of_evaluations, figure_of_runs

    settings = (options.sampler, options.steps, options.scale)
    common = (settings, options.seed, options.zoom)
    if options.evaluations:
        drawn = figure_of_evaluations(options.evaluations, options.titles, options.prompts, options.zoom)
    elif options.runs:
        drawn = figure_of_runs(options.runs, options.titles, *common)
    else:
        drawn = figure(options.run, options.without_prior, *common, options.dino)
    save_image(drawn, options.out)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
