"""Draw the README's figure: what DreamBooth learns, and what the prior-preservation loss preserves.

python scripts/figure.py --run logs/<run> --without_prior logs/<run with prior_loss_weight=0>
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
    parser.add_argument("--run", type=Path, required=True, help="a finished run")
    parser.add_argument(
        "--without_prior", type=Path, required=True, help="the same with model.params.prior_loss_weight=0"
    )
    parser.add_argument("--out", default="assets/figure.png")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: what the base advises")
    parser.add_argument("--steps", type=option(Count), help="sampler steps (default: what the base advises)")
    parser.add_argument(
        "--scale", type=option(NonNegativeFloat), help="classifier-free guidance (default: the base's)"
    )
    parser.add_argument("--seed", type=option(Seed), default=0, help="seed of each row's first image")
    parser.add_argument("--zoom", type=option(Count), default=1, help="factor to enlarge each image")
    return exit_code_of(draw, parser.parse_args(argv))


def draw(options: argparse.Namespace) -> None:
    """Draw the figure and save it."""
    from ldm.data.images import save_image
    from ldm.world.figure import figure

    settings = (options.sampler, options.steps, options.scale)
    save_image(figure(options.run, options.without_prior, settings, options.seed, options.zoom), options.out)
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
