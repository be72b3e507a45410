"""Write a trained model for other tools: `python scripts/export.py --ckpt logs/<run> --out dog.safetensors`.

`--out` decides the format: a folder in diffusers' layout, or one `.safetensors` or `.ckpt` file in CompVis'
layout for AUTOMATIC1111's web UI and ComfyUI, including the base's VAE. Models of other sizes than Stable
Diffusion's, such as the embedded one, can only be written to a folder. Each comes with a model card: README.md in
a folder, `<name>.safetensors.md` beside a file.

`--form lora` and `--form kohya` write a LoRA instead of a whole model: the one trained with configs/lora.yaml, or else
one extracted from the weights' changes by singular value decomposition.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser, add_base_options, add_part_options, add_trust, base_options
from ldm.errors import UserError, exit_code_of
from ldm.values import Count, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    return exit_code_of(run, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("--ckpt", required=True, help="run folder, .ckpt of a run, or any base model")
    parser.add_argument("--out", required=True, type=Path, help="new folder, or a .safetensors or .ckpt file")
    parser.add_argument(
        "--form",
        choices=("model", "lora", "kohya"),
        default="model",
        help="a whole model (adapters are merged), a LoRA for diffusers (file or folder), or one in kohya's layout for"
        " AUTOMATIC1111's web UI and ComfyUI (file)",
    )
    parser.add_argument(
        "--rank",
        type=option(Count),
        help="rank of a LoRA extracted from a run without one (default: 16)",
    )
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="precision of the weights")
    add_part_options(parser)
    add_base_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Check the target, load, write the model and its card."""
    import diffusers
    import transformers

    from ldm.devices import DTYPES
    from ldm.formats.lora_diffusers import DIFFUSERS
    from ldm.formats.lora_kohya import KOHYA
    from ldm.methods.export import export, refuse_taken
    from ldm.methods.export_lora import export_lora
    from ldm.methods.load import load_for_sampling
    from ldm.methods.parts import Parts, add_parts

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
    if options.rank and options.form == "model":
        raise UserError("--rank is for an extracted LoRA: add --form lora or --form kohya")
    refuse_taken(options.out)
    loaded = load_for_sampling(options.ckpt, base_options=base_options(options), trust=options.trust)
    add_parts(loaded, Parts.of(options))
    if options.form == "model":
        export(loaded, options.out, DTYPES[options.dtype])
        print(options.out)
    else:
        layout = {"lora": DIFFUSERS, "kohya": KOHYA}[options.form]
        print(export_lora(loaded, options.out, DTYPES[options.dtype], layout, options.rank))


if __name__ == "__main__":
    sys.exit(main())
