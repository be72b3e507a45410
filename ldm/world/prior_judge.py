"""Compares ways of drawing class-prior samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn
from tqdm import tqdm

from ldm.concepts import with_article
from ldm.console import progress_bar
from ldm.diffusion.sampling import Sampling
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.world.base_judge import samples
from ldm.world.drawing import World
from ldm.world.judge import UNSEEN, Judge, exam, features, spread, trained_judge, verdicts

WAYS = (
    Sampling("ddpm", 50, 3.0),
    Sampling("dpmpp_2m_sde", 20, 3.0),
    Sampling("dpmpp_2m_sde", 20, 3.0, (200, 800)),
    Sampling("dpmpp_2m_sde", 10, 3.0),
    Sampling("dpmpp_2m_sde", 20, 1.5),
    Sampling("dpmpp_2m_sde", 20, 1.5, (200, 800)),
    Sampling("dpmpp_2m_sde", 10, 1.5),
    Sampling("dpmpp_2m_sde", 20, 1.0),
)
"""The ways to compare."""

HEADER = (
    "| sampler | steps | guidance | guided timesteps | UNet passes per image | noun | variety | shift |",
    "|---|---|---|---|---|---|---|---|",
)


def judge_prior(base: str, world: World, cache: Path, per_noun: int) -> Iterator[str]:
    """Lines of a Markdown table, one for each of WAYS as soon as it is measured; a progress bar counts nouns.

    per_noun: pictures of each bare noun, at least 2.
    """
    judge, model = trained_judge(world, cache), LatentDiffusion.from_base(base).eval()
    pixels, answers = exam(world, "unseen", range(UNSEEN))
    own_colours = answers[:, 2] == len(world.colours)
    real = [features(judge, pixels[(answers[:, 0] == n) & own_colours]) for n in range(len(world.nouns))]
    yield from HEADER
    with progress_bar(len(WAYS) * len(world.nouns), "drawing", "noun") as bar:
        for way in WAYS:
            yield row(way, judged(way, model, judge, world, real, per_noun, bar))


def judged(
    way: Sampling,
    model: LatentDiffusion,
    judge: Judge,
    world: World,
    real: list[Tensor],
    count: int,
    bar: tqdm,
) -> dict[str, float]:
    """Means over nouns of `count` pictures each. real: the judge's features of world pictures, [N, D] per noun.

    noun: share of pictures of the noun. variety: mean pairwise distance, relative to the world's own. shift: distance
    of the mean feature from the world's, in units of the world's mean pairwise distance. passes: UNet passes per image.
    """
    found: dict[str, list[float]] = {"noun": [], "variety": [], "shift": []}
    with counted_passes(model.unet) as passes:
        for n, noun in enumerate(world.nouns):
            drawn = samples(model, [f"a photo of {with_article(noun)}"] * count, 50_000 + 100 * n, way)
            look = features(judge, drawn)
            found["noun"].append(float((verdicts(judge, drawn)[:, 0] == n).float().mean()))
            found["variety"].append(spread(look) / spread(real[n]))
            found["shift"].append(float((look.mean(0) - real[n].mean(0)).norm()) / spread(real[n]))
            bar.update()
    figures = {name: sum(values) / len(values) for name, values in found.items()}
    return {**figures, "passes": sum(passes) / (count * len(world.nouns))}


@contextmanager
def counted_passes(unet: nn.Module) -> Iterator[list[int]]:
    """The number of samples in each of the UNet's passes in the block."""
    passes: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    try:
        yield passes
    finally:
        hook.remove()


def row(way: Sampling, figures: dict[str, float]) -> str:
    """A row of the Markdown table."""
    interval = way.guidance_interval
    guided = "none" if way.guidance_scale == 1 else "{} to {}".format(*interval) if interval else "all"
    cells = [way.sampler, way.steps, way.guidance_scale, guided, f"{figures['passes']:.0f}"]
    cells += [f"{figures['noun']:.1%}", f"{figures['variety']:.2f}", f"{figures['shift']:.2f}"]
    return "| " + " | ".join(map(str, cells)) + " |"
