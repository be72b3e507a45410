"""Sample images from text: `python scripts/txt2img.py --ckpt logs/<run> --prompt "a photo of [V] dog"`.

Image k of a prompt depends only on seed + k, whatever the batch size. Each PNG contains everything needed to draw
it again: `python scripts/txt2img.py --from-image PNG`; other options override its settings.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import (
    PRECISIONS,
    Help,
    Parser,
    add_base_options,
    add_compile,
    add_part_options,
    add_trust,
    base_options,
    interval,
)
from ldm.errors import exit_code_of
from ldm.samplers import SAMPLERS, SPACINGS
from ldm.values import Count, NonNegativeInt, Probability, Seed, option

HINTS = {
    "-p": "--prompt",
    "--config": "nothing: the model's own config is read",
    "--C": "nothing: the model defines the number of latent channels",
    "--f": "nothing: the model defines the size of the latents",
    "--laion400m": "--ckpt",
    "--embedding_path": "--embeds FILE, and its token in the prompt",
    "--klms": "--sampler euler",
    "--n_prompts": "--from-file",
}
"""Options of other tools, and what to use here instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    return exit_code_of(run, argv)


def run(argv: list[str]) -> None:
    """Parse, draw and print the images' paths."""
    options = parse(argv)
    from ldm.methods.txt2img import settings_of, txt2img  # heavy, so imported after parsing

    if options.from_image:
        options = parse(argv, **settings_of(options.from_image))
    for line in txt2img(options, base_options(options)):
        print(line)


def parse(argv: Sequence[str], **defaults: object) -> argparse.Namespace:
    """Parse the command line, with `defaults` replacing the options' own.

    `--plms`, `--ddim_steps`, `--fixed_code` and others are the ancestor's options.
    """
    parser = Parser(description=__doc__, formatter_class=Help)
    parser.add_argument("--ckpt", default="assets/base", help="run folder, .ckpt of a run, or base model")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", help="[V] is the learned subject (default: a photo of a dog)")
    what.add_argument(
        "--from-file",
        metavar="FILE",
        help="prompts, one per line; a repeated prompt continues its seeds",
    )
    parser.add_argument("--from-image", metavar="PNG", type=Path, help="draw this image or grid again")
    parser.add_argument("--negative_prompt", default="", help="prompt that guidance leads away from")
    parser.add_argument(
        "--outdir", type=Path, default="outputs/txt2img", help="folder for images; none is overwritten"
    )
    sampler = parser.add_mutually_exclusive_group()
    sampler.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="default: what the base advises, as the embedded one does, else ddim",
    )
    sampler.add_argument(
        "--plms", action="store_const", const="plms", dest="sampler", help="same as --sampler plms"
    )
    parser.add_argument(
        "--steps", "--ddim_steps", type=option(Count), help="sampler steps (default: the base's, else 50)"
    )
    parser.add_argument(
        "--spacing",
        choices=SPACINGS,
        default="",
        help="how timesteps are chosen; base: as in diffusers' pipelines (default: the sampler's own)",
    )
    parser.add_argument(
        "--ddim_eta", type=option(Probability), default=0.0, help="stochasticity of ddim, 0 to 1"
    )
    parser.add_argument(
        "--scale",
        type=option(float),
        help="classifier-free guidance; 1 for none (default: the base's, else 7.5)",
    )
    parser.add_argument(
        "--guidance_interval",
        type=interval,
        metavar="FROM,TO",
        help="timesteps with guidance, from the first to below the second, such as 200,800 (default: all)",
    )
    parser.add_argument(
        "--deepcache",
        type=option(Count),
        metavar="N",
        help="compute the UNet's deep features in one pass of N and reuse them between: faster, less exact"
        " (default: in every pass)",
    )
    parser.add_argument(
        "--seed", type=option(Seed), default=42, help="seed of a prompt's first image; the next has seed + 1"
    )
    parser.add_argument("--n_iter", type=option(Count), default=1, help="batches per prompt")
    parser.add_argument("--n_samples", type=option(Count), default=4, help="images per row, or batch")
    parser.add_argument(
        "--batch_size",
        type=option(Count | Literal["auto"]),
        metavar="N",
        help="images drawn together, or auto: as many as memory holds (default: n_samples, on a GPU auto)",
    )
    parser.add_argument(
        "--n_rows", type=option(NonNegativeInt), default=0, help="images per row of the grid; 0: n_samples"
    )
    add_trust(parser)
    parser.add_argument("--H", type=option(Count), help="height, px (default: the model's)")
    parser.add_argument("--W", type=option(Count), help="width, px (default: the model's)")
    noise = parser.add_mutually_exclusive_group()
    noise.add_argument(
        "--noise_seed", type=option(Seed), help="start image k of each batch from the noise of this seed + k"
    )
    noise.add_argument(
        "--fixed_code", action="store_true", help="the same noise for every batch: --noise_seed SEED"
    )
    parser.add_argument("--skip_grid", action="store_true", help="write no grid")
    parser.add_argument("--skip_save", action="store_true", help="write no single images")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="full: fp32; autocast: fp16 on a GPU (default: autocast on a GPU, else full)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the GPU, if any)")
    add_compile(parser)
    add_part_options(parser)
    add_base_options(parser)
    other_defaults = {"prompts": ["a photo of a dog"], "drawn_with": (None, None), "drawn_parts": None}
    parser.set_defaults(**{**other_defaults, **defaults})
    parser.refuse(argv, HINTS)
    options = parser.parse_args(argv)
    if options.skip_grid and options.skip_save:
        parser.error("--skip_grid and --skip_save: nothing would be written")
    return options


if __name__ == "__main__":
    sys.exit(main())
