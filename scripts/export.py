"""Write a trained model for other tools: `python scripts/export.py --ckpt logs/<run> --out dog.safetensors`.

`--out` decides the form: a folder in diffusers' layout, or one `.safetensors` or `.ckpt` file in CompVis'
layout, as AUTOMATIC1111's web UI and ComfyUI read it, with the base's VAE inside. A model of another size than
Stable Diffusion's, such as the embedded one, has no such file: name a folder. Each comes with a model card:
README.md in a folder, `<name>.safetensors.md` beside a file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import Help, Parser, add_base_options, add_trust, base_options
from ldm.errors import exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    return exit_code_of(run, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("--ckpt", required=True, help="run folder, .ckpt of a run, or any base model")
    parser.add_argument(
        "--out", required=True, type=Path, help="new folder, or file in .safetensors or .ckpt"
    )
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="precision of the weights")
    add_base_options(parser)
    add_trust(parser)
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Check the target, load, write the model and its card."""
    import diffusers
    import transformers

    from ldm.devices import DTYPES
    from ldm.methods.export import export, refuse_taken
    from ldm.methods.load import load_for_sampling

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
    refuse_taken(options.out)
    loaded = load_for_sampling(options.ckpt, base_options=base_options(options), trust=options.trust)
    export(loaded, options.out, DTYPES[options.dtype])
    print(options.out)


if __name__ == "__main__":
    sys.exit(main())
