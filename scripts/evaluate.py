"""Evaluate a learned subject as in the DreamBooth paper: `python scripts/evaluate.py --ckpt logs/<run>`.

Draws the protocol's images (25 prompts x 4, and images of the bare class) from fixed seeds, or uses images
made elsewhere (`--images FOLDER`), and writes metrics.json, images.csv and report.html. Existing images are
not drawn again, so an interrupted evaluation continues.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import (
    PRECISIONS,
    Help,
    Parser,
    add_base_options,
    add_compile,
    add_trust,
    base_options,
    collect_overrides,
)
from ldm.errors import exit_code_of
from ldm.files import PROJECT
from ldm.values import NonNegativeInt, option

CONFIG = PROJECT / "configs" / "evaluation.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(run, parse(sys.argv[1:] if argv is None else argv))


def run(options: argparse.Namespace) -> None:
    """Read the config, evaluate and print the table."""
    from ldm.config import load_settings
    from ldm.evaluation.evaluate import Evaluation
    from ldm.evaluation.settings import EvaluationSettings
    from ldm.evaluation.several import evaluate_all

    evaluation = Evaluation(
        config=load_settings([CONFIG, *options.config], EvaluationSettings, options.overrides),
        ckpt=options.ckpt,
        images=options.images,
        class_images=options.class_images,
        real=options.real,
        hold_out=options.hold_out,
        class_word=options.class_word,
        identifier=options.identifier,
        prompt_noun=options.prompt_noun,
        outdir=options.outdir,
        with_base=not options.no_base,
        precision=options.precision,
        compile=options.compile,
        device=options.device,
        base_options=base_options(options),
        trust=options.trust,
    )
    print(evaluate_all(evaluation, options.concept))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Arguments that are not options are config overrides, `key.sub=value`."""
    parser = Parser(description=__doc__, formatter_class=Help)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", type=Path, help="run folder, .ckpt of a run, exported model, or a plain base")
    what.add_argument(
        "--images", type=Path, help="folder of images made elsewhere; see ldm/evaluation/folder.py"
    )
    parser.add_argument("--class_images", type=Path, help="with --images: folder of images of the bare class")
    parser.add_argument("--real", type=Path, help="folder of the subject's photographs (default: the run's)")
    parser.add_argument(
        "--hold_out",
        type=option(NonNegativeInt),
        default=0,
        help="with --real: use only this many of them, the last ones, as reference; 0: all",
    )
    parser.add_argument("--class_word", help="the subject's class noun (default: the run's)")
    parser.add_argument(
        "--concept", metavar="[V1]", help="of a model with several subjects: this one (default: all)"
    )
    parser.add_argument("--identifier", help="the word or words for the subject (default: the run's)")
    parser.add_argument(
        "--prompt_noun", help="noun in the prompts for drawing, '' for none (class-noun ablation)"
    )
    parser.add_argument(
        "--config", type=Path, nargs="*", default=[], metavar="YAML", help=f"overlays for {CONFIG.name}"
    )
    parser.add_argument(
        "--no_base", action="store_true", help="leave out the row of the run's untrained base: half the time"
    )
    parser.add_argument("--outdir", type=Path, help="default: <run>/evaluation, or outputs/evaluation")
    parser.add_argument("--precision", choices=PRECISIONS, help="as for txt2img.py")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU, if any)")
    add_compile(parser)
    add_base_options(parser)
    add_trust(parser)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="config keys to change"
    )
    options = parser.parse_with_overrides(argv)
    collect_overrides(options, "config")
    for name, needed in (("hold_out", "real"), ("class_images", "images")):
        if getattr(options, name) and getattr(options, needed) is None:
            parser.error(f"--{name} is for --{needed}, which is not given")
    return options


if __name__ == "__main__":
    sys.exit(main())
