"""Compare runs on one page: `python scripts/compare.py logs/a logs/b`.

The page has their curves over each other, the settings that differ, the same prompts and seeds side by side, and
the metrics of those that scripts/evaluate.py has measured. Without runs it lists those there are.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser
from ldm.errors import UserError, exit_code_of, printable
from ldm.files import check_writable_file, replacing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("runs", type=Path, nargs="*", help="run folders")
    parser.add_argument("--out", type=Path, help="the page (default: compare.html beside the first run)")
    parser.add_argument(
        "-l", "--logdir", type=Path, default=Path("logs"), help="folder of runs, to list them"
    )
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Write the page and print where it is, or list the runs."""
    for folder in options.runs:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such run folder")
    from ldm.training.compare import comparison, listing

    if not options.runs:
        print(listing(options.logdir))
        return
    out = options.out or options.runs[0].resolve().parent / "compare.html"
    check_writable_file(out)
    page = comparison(options.runs)
    with replacing(out, sync=False) as temporary:
        temporary.write_text(page, encoding="utf-8")
    print(printable(str(out)))


if __name__ == "__main__":
    sys.exit(main())
