"""Sample images from text: `python scripts/txt2img.py --ckpt logs/<run> --prompt "a photo of [V] dog"`.

Image k of a prompt is drawn from seed + k alone, whatever the batch size, so any image can be drawn again.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.diffusion.samplers import SAMPLERS, SPACINGS
from ldm.errors import UserError, exit_code_of


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    return exit_code_of(run, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; `--plms` and `--ddim_steps` are the ancestor's words for --sampler and --steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ckpt", default="assets/base", help="run folder, .ckpt of a run, or base model")
    parser.add_argument("--prompt", default="a photo of a dog", help="[V] stands for the learned subject")
    parser.add_argument("--from-file", metavar="FILE", help="prompts, one a line, in place of --prompt")
    parser.add_argument("--negative_prompt", default="", help="what guidance leads away from")
    parser.add_argument(
        "--outdir", default="outputs/txt2img", help="images are added here, none is overwritten"
    )
    parser.add_argument("--sampler", choices=SAMPLERS, default="ddim")
    parser.add_argument(
        "--plms", action="store_const", const="plms", dest="sampler", help="same as --sampler plms"
    )
    parser.add_argument("--steps", "--ddim_steps", type=int, default=50, help="sampler steps")
    parser.add_argument(
        "--spacing",
        choices=SPACINGS,
        default="",
        help="which timesteps are visited; leading: diffusers' own with Stable Diffusion (default: the sampler's)",
    )
    parser.add_argument("--ddim_eta", type=float, default=0.0, help="stochasticity of ddim, 0 to 1")
    parser.add_argument("--scale", type=float, default=7.5, help="classifier-free guidance; 1 for none")
    parser.add_argument(
        "--seed", type=int, default=42, help="of a prompt's first image; the next has seed + 1"
    )
    parser.add_argument("--n_iter", type=int, default=1, help="batches a prompt")
    parser.add_argument("--n_samples", type=int, default=4, help="images a batch")
    parser.add_argument(
        "--n_rows", type=int, default=0, help="images in a row of the grid (default: n_samples)"
    )
    parser.add_argument("--H", type=int, help="height, px (default: the model's)")
    parser.add_argument("--W", type=int, help="width, px (default: the model's)")
    parser.add_argument(
        "--fixed_code", action="store_true", help="start all images from the first one's noise"
    )
    parser.add_argument("--skip_grid", action="store_true", help="write no grid")
    parser.add_argument("--skip_save", action="store_true", help="write no single images")
    parser.add_argument(
        "--precision",
        choices=("full", "autocast", "fp32", "fp16", "bf16"),
        help="full: fp32; autocast: fp16 on a GPU (default: autocast on a GPU, else full)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> None:
    """Load, sample batch by batch, save."""
    from tqdm import tqdm

    from ldm.data.images import grid, save_image, to_image
    from ldm.devices import choose_device, choose_dtype
    from ldm.diffusion.sampling import Sampling
    from ldm.methods.load import load_for_sampling

    prompts = read_prompts(options)
    for name in ("steps", "n_iter", "n_samples"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    device = choose_device(options.device)
    loaded = load_for_sampling(options.ckpt, device)
    model = loaded.model.for_sampling(device, choose_dtype(options.precision, device))
    height, width = options.H or model.native_size, options.W or model.native_size
    model.latent_shape(height, width)
    texts = {prompt: loaded.with_identifier(prompt) for prompt in prompts}
    negative = loaded.with_identifier(options.negative_prompt)
    sampling = Sampling(
        options.sampler,
        options.steps,
        options.scale,
        negative_prompt=negative,
        eta=options.ddim_eta,
        spacing=options.spacing,
    )
    wanted = [
        (prompt, options.seed + k) for prompt in prompts for k in range(options.n_iter * options.n_samples)
    ]
    images = []
    with tqdm(total=len(wanted), desc="sampling", unit="image", file=sys.stderr) as bar:
        for batch in batches(wanted, options.n_samples):
            pixels = model.images(
                [texts[prompt] for prompt, _ in batch],
                [seed for _, seed in batch],
                sampling,
                height,
                width,
                noise_seeds=[options.seed] * len(batch) if options.fixed_code else None,
                on_step=partial(bar.update, len(batch) / options.steps),
            )
            pictures = [to_image(picture) for picture in pixels]
            images += pictures
            if not options.skip_save:
                for (prompt, seed), picture in zip(batch, pictures, strict=True):
                    metadata = describe(options, texts[prompt], negative, seed)
                    save_image(
                        picture, next_path(Path(options.outdir, "samples"), "{:05d}.png"), pnginfo=metadata
                    )
    if not options.skip_grid:
        sheet = grid(images, columns=options.n_rows or options.n_samples)
        path = next_path(Path(options.outdir), "grid-{:04d}.png")
        save_image(sheet, path, pnginfo=describe(options, " | ".join(texts.values()), negative, options.seed))
        print(path)
    if not options.skip_save:
        print(f"{len(images)} images in {Path(options.outdir, 'samples')}")


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Prompts of --from-file, or the one of --prompt."""
    if options.from_file is None:
        prompts = [options.prompt]
    else:
        try:
            prompts = Path(options.from_file).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--from-file {options.from_file}: cannot be read ({error})") from error
    prompts = list(dict.fromkeys(prompt.strip() for prompt in prompts if prompt.strip()))
    if not prompts:
        raise UserError(
            "the prompt is empty: describe a picture with --prompt, or name a file with one prompt a line"
        )
    return prompts


def describe(options: argparse.Namespace, prompt: str, negative: str, seed: int) -> Any:
    """What it takes to draw an image again, as PNG text."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    facts = {
        "prompt": prompt,
        "negative_prompt": negative,
        "seed": seed,
        "sampler": options.sampler,
        "steps": options.steps,
        "scale": options.scale,
        "model": options.ckpt,
    }
    for key, value in facts.items():
        info.add_itxt(key, str(value))
    return info


def next_path(folder: Path, pattern: str) -> Path:
    """The first path in `folder` whose number is above all that exist."""
    head, tail = pattern.split("{", 1)[0], pattern.rsplit("}", 1)[1]
    names = [path.name for path in folder.glob(f"{head}*{tail}")]
    numbers = [int(n) for name in names if (n := name[len(head) : len(name) - len(tail)]).isdigit()]
    return folder / pattern.format(max(numbers, default=-1) + 1)


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """`items` in groups of `size`; the last may be shorter."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


if __name__ == "__main__":
    sys.exit(main())
