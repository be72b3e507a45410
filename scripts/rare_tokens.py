"""List rare tokens to use as identifiers: `python scripts/rare_tokens.py --base assets/base`.

Set a run's identifier with `model.params.identifier=<text>`; `auto` takes the first of this list for the run's seed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.values import Count, NonNegativeInt, Seed, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(search, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    clip = PROJECT / "configs" / "stable-diffusion" / "v1"
    parser.add_argument(
        "--base", type=Path, default=clip, help="a diffusers folder, or its tokenizer's folder"
    )
    parser.add_argument("--count", type=option(Count), default=20, help="candidates to list")
    parser.add_argument("--seed", type=option(Seed), default=23, help="seed of the candidates' order")
    parser.add_argument("--length", type=option(Count), default=1, help="tokens in an identifier, 1 to 3")
    parser.add_argument("--max_chars", type=option(Count), default=3, help="maximum letters of a token")
    parser.add_argument(
        "--ids",
        type=option(NonNegativeInt),
        nargs=2,
        metavar=("FIRST", "LAST"),
        help="range to draw from (default: the rarest 9406)",
    )
    return parser.parse_args(argv)


def search(options: argparse.Namespace) -> None:
    """Print one candidate per line: its text and its token ids."""
    from ldm.formats.diffusers_folder import load_tokenizer
    from ldm.models.identifier import search_rare_tokens

    candidates = search_rare_tokens(
        load_tokenizer(options.base),
        options.count,
        options.seed,
        tuple(options.ids) if options.ids else None,
        options.max_chars,
        options.length,
    )
    for candidate in candidates:
        print(f"{candidate.text}\t{' '.join(map(str, candidate.ids))}")


if __name__ == "__main__":
    sys.exit(main())
