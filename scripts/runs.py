"""List the runs of a folder: `python scripts/runs.py`.

Name, subject, state (running, resumable at a step, finished, damaged), last validation loss and drift, and size on
disk, the oldest first. A checkpoint counts as sound where it can be opened; --check reads every byte.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser
from ldm.errors import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("logdir", type=Path, nargs="?", default=Path("logs"), help="folder of runs")
    parser.add_argument("--check", action="store_true", help="read checkpoints whole, to be sure of them")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Print the list."""
    from ldm.training.compare import listing

    print(listing(options.logdir, options.check))


if __name__ == "__main__":
    sys.exit(main())
