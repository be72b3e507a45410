"""Make the embedded world's art, tokenizer, sample subject and benchmark.

The art is in the repository; only `art` needs the three packages it comes from:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python scripts/make_world.py art --packages .
    python scripts/make_world.py tokenizer
    python scripts/make_world.py subject
    python scripts/make_world.py benchmark
    python scripts/make_world.py tuning --out .cache/tuning
    python scripts/make_world.py sheet --out world.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.files import PROJECT, check_writable, check_writable_file

PLACES = {
    "art": PROJECT / "assets" / "world",
    "tokenizer": PROJECT / "assets" / "base" / "tokenizer",
    "subject": PROJECT / "assets" / "subject" / "dog",
    "benchmark": PROJECT / "assets" / "benchmark",
    "tuning": Path(".cache/tuning"),
    "sheet": Path("world.png"),
}
"""What can be made, and its default place."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=PLACES)
    parser.add_argument("--packages", type=Path, default=Path("."), help="folder with the three npm packages")
    parser.add_argument("--art", type=Path, default=PLACES["art"], help="folder of the world's art")
    parser.add_argument("--out", type=Path, help="default: its place in the repository")
    return exit_code_of(make, parser.parse_args(argv))


def make(options: argparse.Namespace) -> None:
    """Make `options.what`, and print its path."""
    out = options.out or PLACES[options.what]
    (check_writable_file if options.what == "sheet" else check_writable)(out)
    if options.what == "art":
        from ldm.world.art import make_art

        make_art(options.packages, out)
    elif options.what == "tokenizer":
        from ldm.world.tokenizer import make_tokenizer

        print(f"{len(make_tokenizer(out))} tokens")
    else:
        from ldm.world import datasets
        from ldm.world.drawing import World

        world = World(options.art)
        if options.what == "subject":
            datasets.make_subject(world, out)
        elif options.what == "benchmark":
            datasets.make_dataset(world, out, datasets.BENCHMARK, "evaluation")
        elif options.what == "tuning":
            datasets.make_dataset(world, out, datasets.TUNING, "tuning")
        else:
            print("\n".join(datasets.make_sheet(world, out)))
    print(f"done: {options.what} is in {out}")


if __name__ == "__main__":
    sys.exit(main())
