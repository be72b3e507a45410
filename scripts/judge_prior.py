"""Ways to draw class-prior samples, by what comes out: python scripts/judge_prior.py

16 pictures of every bare noun, seen by the classifier of scripts/judge_base.py. Variety: mean pairwise distance
within a noun, against the world's own. Shift: how far a noun's mean look lies from the world's, in units of the
world's mean pairwise distance. Time goes with the number of UNet passes.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_code_of  # noqa: E402

WAYS: tuple[dict[str, Any], ...] = (
    {"sampler": "ddpm", "steps": 50, "guidance_scale": 3.0},
    {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance_scale": 3.0},
    {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance_scale": 3.0, "guidance_interval": [200, 800]},
    {"sampler": "dpmpp_2m_sde", "steps": 10, "guidance_scale": 3.0},
    {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance_scale": 1.5},
    {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance_scale": 1.5, "guidance_interval": [200, 800]},
    {"sampler": "dpmpp_2m_sde", "steps": 10, "guidance_scale": 1.5},
    {"sampler": "dpmpp_2m_sde", "steps": 20, "guidance_scale": 1.0},
)
"""Settings as data.params.prior has them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="assets/base", help="a base of the embedded world")
    parser.add_argument("--art", type=Path, default=Path("assets/world"))
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the trained judge is kept")
    parser.add_argument("--per_noun", type=int, default=16, help="pictures")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Draw, judge, and print a row a way."""
    from ldm.models.latent_diffusion import LatentDiffusion
    from ldm.world.drawing import World
    from scripts.judge_base import exam, features, trained_judge

    world = World(options.art)
    judge = trained_judge(world, options.cache)
    model = LatentDiffusion.from_base(options.base).eval()
    pixels, answers = exam(world, "unseen", range(2000))
    own_colours = answers[:, 2] == len(world.colours)
    real = [features(judge, pixels[(answers[:, 0] == n) & own_colours]) for n in range(len(world.nouns))]
    print("| sampler | steps | guidance | guided timesteps | UNet passes an image | noun | variety | shift |")
    print("|---|---|---|---|---|---|---|---|")
    for way in WAYS:
        print(row(way, judged(way, model, judge, world, real, options.per_noun)), flush=True)


def judged(
    way: dict[str, Any], model: Any, judge: Any, world: Any, real: list[Any], count: int
) -> dict[str, float]:
    """Means over nouns. real: the judge's features of world pictures, a noun each."""
    from ldm.world.drawing import with_article
    from scripts.judge_base import features, sampler_of, spread, verdicts

    draw, found = sampler_of(model, **way), {"noun": [], "variety": [], "shift": []}
    with counted_passes(model.unet) as passes:
        for n, noun in enumerate(world.nouns):
            drawn = draw([f"a photo of {with_article(noun)}"] * count, 50_000 + 100 * n)
            look = features(judge, drawn)
            found["noun"].append(float((verdicts(judge, drawn)[:, 0] == n).float().mean()))
            found["variety"].append(spread(look) / spread(real[n]))
            found["shift"].append(float((look.mean(0) - real[n].mean(0)).norm()) / spread(real[n]))
    figures = {name: sum(values) / len(values) for name, values in found.items()}
    return {**figures, "passes": sum(passes) / (count * len(world.nouns))}


@contextmanager
def counted_passes(unet: Any) -> Iterator[list[int]]:
    """The number of samples in each of the UNet's passes inside."""
    passes: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        yield passes
    finally:
        hook.remove()


def row(way: dict[str, Any], figures: dict[str, float]) -> str:
    """A row of the table, as Markdown."""
    interval = way.get("guidance_interval")
    guided = "none" if way["guidance_scale"] == 1 else "{} to {}".format(*interval) if interval else "all"
    cells = [way["sampler"], way["steps"], way["guidance_scale"], guided, f"{figures['passes']:.0f}"]
    cells += [f"{figures['noun']:.1%}", f"{figures['variety']:.2f}", f"{figures['shift']:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    sys.exit(main())
