"""Draw the README's figures: what DreamBooth learns, and what the prior-preservation loss preserves.

    python scripts/figure.py --run logs/<run> --without_prior logs/<run with prior_loss_weight=0>
    python scripts/figure.py --runs logs/<run> logs/<run> ... --out assets/subjects.png

The second draws a row for each run, of one subject or several, under its title if --titles has them.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.samplers import SAMPLERS
from ldm.values import Count, NonNegativeFloat, Seed, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a finished run")
    parser.add_argument("--without_prior", type=Path, help="the same with model.params.prior_loss_weight=0")
    parser.add_argument("--runs", nargs="+", type=Path, help="runs to draw a row each")
    parser.add_argument("--titles", nargs="+", metavar="TEXT", help="a title for each of --runs")
    parser.add_argument("--out", default="assets/figure.png")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: what the base advises")
    parser.add_argument("--steps", type=option(Count), help="sampler steps (default: what the base advises)")
    parser.add_argument(
        "--scale", type=option(NonNegativeFloat), help="classifier-free guidance (default: the base's)"
    )
    parser.add_argument("--seed", type=option(Seed), default=0, help="seed of each row's first image")
    parser.add_argument("--zoom", type=option(Count), default=2, help="factor to enlarge each image")
    parser.add_argument("--dino", default="assets/features/dino", help="tells the likest pictures")
    options = parser.parse_args(argv)
    if (options.runs is None) == (options.run is None or options.without_prior is None):
        parser.error("give --run and --without_prior, or else --runs")
    if options.titles and len(options.titles) != len(options.runs or ()):
        parser.error(
            f"--titles has {len(options.titles)}: give one for each of the {len(options.runs or ())} --runs"
        )
    return exit_code_of(draw, options)


def draw(options: argparse.Namespace) -> None:
    """Draw the figure and save it."""
    from ldm.data.images import save_image
    from ldm.world.figure import figure, figure_of_runs

    settings = (options.sampler, options.steps, options.scale)
    common = (settings, options.seed, options.zoom)
    if options.runs:
        drawn = figure_of_runs(options.runs, options.titles, *common)
    else:
        drawn = figure(options.run, options.without_prior, *common, options.dino)
    save_image(drawn, options.out)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
