"""Judge the embedded base: reconstruction, prompt fidelity, variety.

    python scripts/judge_base.py --base assets/base

A small classifier of nouns, scenes and colours is trained on the world's pictures (a minute or two, then cached).
Its accuracy on unseen pictures is the table's first row and limits the reliability of the others. The embedded
CLIP, trained separately, gives a second opinion. Withheld members appear in the training of neither the base nor
the judges. The classifier accepts blurred and garish pictures too, so distances between the distributions of samples
and of the world's pictures follow, beside the distance between two sets of real pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.files import check_writable_file, write_json
from ldm.samplers import SAMPLERS
from ldm.values import Count, NonNegativeFloat, NonNegativeInt, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="assets/base", help="a base in diffusers' layout")
    parser.add_argument("--art", type=Path, default=Path("assets/world"), help="folder of the world's art")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for the trained judge")
    parser.add_argument("--sampler", choices=SAMPLERS, help="default: what the base advises")
    parser.add_argument("--steps", type=option(Count), help="sampler steps (default: what the base advises)")
    parser.add_argument(
        "--scale", type=option(NonNegativeFloat), help="classifier-free guidance (default: the base's)"
    )
    parser.add_argument(
        "--distances",
        type=option(NonNegativeInt),
        default=400,
        metavar="N",
        help="pictures on each side of the distances to the world; 0 leaves these out",
    )
    parser.add_argument(
        "--beside",
        nargs="*",
        default=[],
        metavar="SAMPLER/STEPS/SCALE",
        help="other ways of drawing, whose distances are told too, as in euler_a/25/2",
    )
    parser.add_argument("--clip", default="assets/features/clip", help="for a second opinion")
    parser.add_argument("--dino", default="assets/features/dino", help="for the distances")
    parser.add_argument("--out", type=Path, help="also write the table as JSON here")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Judge; print the table, and write it."""
    if options.out:
        check_writable_file(options.out)
    from ldm.formats.knowledge import advised_sampling
    from ldm.world.base_judge import judge_base
    from ldm.world.distances import judge_distances, lines, read_way
    from ldm.world.drawing import World

    sampling = advised_sampling(options.base, options.sampler, options.steps, options.scale)
    ways = [sampling, *map(read_way, options.beside)]
    world = World(options.art)
    table: dict[str, object] = {**judge_base(options.base, world, options.cache, sampling, options.clip)}
    for what, figure in table.items():
        print(f"{what:66s} {figure:7.3f}")
    if options.distances:
        found = judge_distances(options.base, world, options.cache, options.dino, ways, options.distances)
        print("\n".join(lines(found)))
        table["distances"] = found
    if options.out:
        write_json(options.out, table)


if __name__ == "__main__":
    sys.exit(main())
