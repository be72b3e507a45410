"""Compare ways to draw class-prior samples: python scripts/judge_prior.py

16 pictures per bare noun, judged by the classifier of scripts/judge_base.py. Variety: mean pairwise distance within
a noun, relative to the world's. Shift: distance of a noun's mean from the world's, in units of the world's mean
pairwise distance. Time is proportional to the number of UNet passes.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.values import option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="assets/base", help="a base of the embedded world")
    parser.add_argument("--art", type=Path, default=Path("assets/world"), help="folder of the world's art")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for the trained judge")
    several = option(Annotated[int, Ge(2)])  # a distance needs two
    parser.add_argument("--per_noun", type=several, default=16, help="pictures of each noun")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Draw, judge and print one row per way."""
    from tqdm import tqdm

    from ldm.world.drawing import World
    from ldm.world.prior_judge import judge_prior

    for line in judge_prior(options.base, World(options.art), options.cache, options.per_noun):
        tqdm.write(line)


if __name__ == "__main__":
    sys.exit(main())
