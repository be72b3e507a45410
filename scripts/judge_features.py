"""Judge the embedded feature networks: retrieval, nouns and scenes, and distinguishing members of a class.

    python scripts/judge_features.py --clip assets/features/clip --dino assets/features/dino

The world's pictures are unseen; withheld members occur in no training. The AUC measures the paper's use of DINO:
the probability that a picture of the same individual on another scene is closer than one of another individual of
its class (1: always; 0.5: chance). Raw pixels are a baseline.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Parser
from ldm.errors import exit_code_of
from ldm.files import check_writable_file, write_json
from ldm.values import Count, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", default="assets/features/clip", help="folder of the CLIP")
    parser.add_argument("--dino", default="assets/features/dino", help="folder of the ViT")
    parser.add_argument("--art", type=Path, default=Path("assets/world"), help="folder of the world's art")
    parser.add_argument("--count", type=option(Count), default=500, help="unseen pictures for retrieval")
    parser.add_argument("--out", type=Path, help="write the figures there, as JSON")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Judge, then print the table and write the figures."""
    if options.out:
        check_writable_file(options.out)
    from ldm.evaluation.features import Clip, Dino
    from ldm.world.drawing import World
    from ldm.world.feature_judge import judge_features, table

    figures = judge_features(World(options.art), Clip(options.clip), Dino(options.dino), options.count)
    print(table(figures))
    if options.out:
        write_json(options.out, figures)


if __name__ == "__main__":
    sys.exit(main())
