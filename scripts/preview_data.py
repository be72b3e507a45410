"""See what a run would train on: `python scripts/preview_data.py --base configs/dreambooth.yaml --data_root photos`.

Writes one sheet with each photograph as it is cropped, resized and masked, its prompt with the identifier, its size and
what is worth knowing (enlarged, cut off, without a mask), beside some prior samples. It takes all of main.py's options.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser
from ldm.errors import exit_code_of
from ldm.values import NonNegativeInt, option
from main import parse as parse_as_main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(run, *parse(sys.argv[1:] if argv is None else argv))


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, argparse.Namespace]:
    """The options of this script, and those of main.py."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("--out", type=Path, default=Path("preview.png"), help="the sheet, a PNG")
    parser.add_argument(
        "--prior", type=option(NonNegativeInt), default=8, metavar="N", help="prior samples of each class"
    )
    own, rest = parser.parse_known_args(argv)
    return own, parse_as_main(rest)


def run(own: argparse.Namespace, options: argparse.Namespace) -> None:
    """Build the data and the model, and draw the sheet."""
    from ldm.training.preview import preview
    from ldm.training.run_config import read_config

    print(preview(read_config(options), own.out, own.prior, tuple(options.trust)))


if __name__ == "__main__":
    sys.exit(main())
