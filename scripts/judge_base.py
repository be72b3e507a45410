"""Judge the embedded base: reconstruction, prompt fidelity, variety.

    python scripts/judge_base.py --base assets/base

A small classifier of nouns, scenes and colours is trained on the world's pictures (a minute or two, then cached).
Its accuracy on unseen pictures is the table's first row and limits the reliability of the others. The embedded
CLIP, trained separately, gives a second opinion. Withheld members appear in the training of neither the base nor
the judges.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.values import Count, NonNegativeFloat, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="assets/base", help="a base in diffusers' layout")
    parser.add_argument("--art", type=Path, default=Path("assets/world"), help="folder of the world's art")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for the trained judge")
    parser.add_argument("--steps", type=option(Count), default=25, help="sampler steps (DPM-Solver++ 2M)")
    parser.add_argument(
        "--scale", type=option(NonNegativeFloat), default=4.0, help="classifier-free guidance"
    )
    parser.add_argument("--clip", default="assets/features/clip", help="CLIP for a second opinion")
    parser.add_argument("--out", type=Path, help="also write the table as JSON here")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Judge, then print and write the table."""
    from ldm.diffusion.sampling import Sampling
    from ldm.world.base_judge import judge_base
    from ldm.world.drawing import World

    sampling = Sampling("dpmpp_2m", options.steps, options.scale)
    table = judge_base(options.base, World(options.art), options.cache, sampling, options.clip)
    for what, figure in table.items():
        print(f"{what:66s} {figure:7.3f}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
