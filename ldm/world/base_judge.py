"""Measures the embedded base: reconstruction, agreement with prompts, variety."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ldm.concepts import with_article
from ldm.data.images import to_image
from ldm.diffusion.sampling import Sampling
from ldm.evaluation.features import Clip
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.world.autoencoder import psnr
from ldm.world.drawing import NAMES, World
from ldm.world.feature_judge import zero_shot
from ldm.world.judge import (
    UNSEEN,
    Judge,
    exam,
    features,
    known_members,
    members_told_apart,
    portraits,
    spread,
    trained_judge,
    verdicts,
)

SECOND_LOOKS = 8
"""Pictures of each withheld member, in different scenes."""


@torch.no_grad()
def reconstructed(model: LatentDiffusion, pixels: Tensor) -> Tensor:
    """Pictures [B, 3, S, S] through the VAE and back."""
    parts = []
    for part in pixels.split(100):
        height, width = part.shape[-2:]
        noise = torch.zeros(len(part), *model.latent_shape(height, width))
        parts.append(model.decode(model.encode(part, noise)))
    return torch.cat(parts)


def mean_psnr(model: LatentDiffusion, pixels: Tensor) -> float:
    """PSNR of the reconstructions of `pixels` [B, 3, S, S], dB."""
    return float(psnr(reconstructed(model, pixels), pixels).mean())


def samples(model: LatentDiffusion, prompts: Sequence[str], first_seed: int, sampling: Sampling) -> Tensor:
    """Pictures [B, 3, S, S]; picture k has seed `first_seed + k`."""
    seeds = range(first_seed, first_seed + len(prompts))
    return model.images(prompts, seeds, sampling, batch_size=40)


def judge_base(base: str, world: World, cache: Path, sampling: Sampling, clip: str) -> dict[str, float]:
    """The quality table: measure -> figure.

    base: a base of the embedded world. cache: folder of the trained judge. clip: folder of a feature network,
    for a second opinion.
    """
    judge, model = trained_judge(world, cache), LatentDiffusion.from_base(base).eval()
    pixels, answers = exam(world, "unseen", range(UNSEEN))
    table = judged_judge(judge, pixels, answers)
    table |= judged_vae(model, judge, world, pixels[:400])
    table |= judged_scenes(model, judge, world, sampling, Clip(clip))
    table |= judged_colours(model, judge, world, sampling)
    table |= judged_names(model, judge, world, sampling)
    return table | judged_variety(model, judge, world, sampling, pixels, answers)


def judged_judge(judge: Judge, pixels: Tensor, answers: Tensor) -> dict[str, float]:
    """The judge's accuracy on unseen pictures, which limits the reliability of its other figures."""
    right = (verdicts(judge, pixels) == answers).float().mean(0).tolist()
    questions = ("noun", "scene", "colour", "member")
    return {
        f"judge: {question} right on unseen world pictures": share
        for question, share in zip(questions, right, strict=True)
    }


def judged_vae(model: LatentDiffusion, judge: Judge, world: World, unseen: Tensor) -> dict[str, float]:
    """How well the VAE preserves pictures, withheld members, and differences between members."""
    hidden = {name for names in world.withheld.values() for name in names}
    pixels, nouns, names = portraits(world, SECOND_LOOKS)
    withheld = torch.tensor([name in hidden for name in names])
    again = reconstructed(model, pixels)
    before = members_told_apart(features(judge, pixels), nouns, names)
    after = members_told_apart(features(judge, again), nouns, names)
    return {
        "VAE: PSNR on unseen pictures, dB": mean_psnr(model, unseen),
        "VAE: PSNR on withheld members, dB": mean_psnr(model, pixels[withheld]),
        "VAE: AUC of members told apart, originals": before,
        "VAE: AUC after reconstruction, share of originals'": after / before,
    }


def judged_scenes(
    model: LatentDiffusion, judge: Judge, world: World, sampling: Sampling, clip: Clip
) -> dict[str, float]:
    """Every noun in every scene: the judge's answer, and the nearest text in the separately trained CLIP."""
    asked = [(n, s) for n in range(len(world.nouns)) for s in range(len(world.scenes))]
    prompts = [f"a photo of {with_article(world.nouns[n])} {world.scenes[s]}" for n, s in asked]
    drawn = samples(model, prompts, 0, sampling)
    right = (verdicts(judge, drawn)[:, :2] == torch.tensor(asked)).float()
    table = {"samples: noun as asked": float(right[:, 0].mean())}
    table["samples: scene as asked"] = float(right[:, 1].mean())
    pictures = [
        (world.nouns[n], world.scenes[s], to_image(p)) for (n, s), p in zip(asked, drawn, strict=True)
    ]
    for question, share in zero_shot(clip, world, pictures).items():
        table[f"samples: {question} as asked, by the CLIP's nearest text"] = share
    for n, noun in enumerate(world.nouns):
        table[f"samples: noun as asked, {noun}"] = float(right[[a[0] == n for a in asked], 0].mean())
    return table


def judged_colours(
    model: LatentDiffusion, judge: Judge, world: World, sampling: Sampling
) -> dict[str, float]:
    """Every noun in every colour."""
    asked = [(n, c) for n in range(len(world.nouns)) for c in range(len(world.colours))]
    prompts = [f"a photo of {with_article(f'{world.colours[c]} {world.nouns[n]}')}" for n, c in asked]
    seen = verdicts(judge, samples(model, prompts, 10_000, sampling))[:, 2]
    return {"samples: colour as asked": float((seen == torch.tensor(asked)[:, 1]).float().mean())}


def judged_names(model: LatentDiffusion, judge: Judge, world: World, sampling: Sampling) -> dict[str, float]:
    """Every individual that has a name in captions, twice; chance is one over the number of individuals of its noun."""
    known = known_members(world)
    named = [
        (noun, NAMES[place], known.index(member), len(members))
        for noun, members in world.known.items()
        for place, member in enumerate(members[: len(NAMES)])
        for _ in range(2)
    ]
    prompts = [f"a photo of {with_article(f'{name} {noun}')}" for noun, name, _, _ in named]
    seen = verdicts(judge, samples(model, prompts, 30_000, sampling))[:, 3]
    right = (seen == torch.tensor([member for _, _, member, _ in named])).float()
    return {
        "samples: individual as named": float(right.mean()),
        "samples: individual as named, by chance": float(np.mean([1 / count for *_, count in named])),
    }


def judged_variety(
    model: LatentDiffusion, judge: Judge, world: World, sampling: Sampling, pixels: Tensor, answers: Tensor
) -> dict[str, float]:
    """Spread of samples of a bare noun relative to the world's pictures `pixels` of it, averaged over nouns."""
    ratios, real = [], features(judge, pixels)
    for n, noun in enumerate(world.nouns):
        plain = (answers[:, 0] == n) & (answers[:, 2] == len(world.colours))
        prompts = [f"a photo of {with_article(noun)}"] * 16
        drawn = features(judge, samples(model, prompts, 20_000 + 100 * n, sampling))
        ratios.append(spread(drawn) / spread(real[plain]))
    return {"samples: variety within a noun, share of the world's": float(np.mean(ratios))}
