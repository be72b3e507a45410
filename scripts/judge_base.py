"""Judge the embedded base: reconstruction, prompts followed, variety.

    python scripts/judge_base.py --base assets/base

A small classifier of nouns, scenes and colours is trained on the world's pictures alone (a minute or two,
then cached), and its accuracy on unseen pictures is the first row of the table: no figure below it can be
trusted further than that. A second opinion is the embedded CLIP's, which learnt apart from it. Withheld
members appear in no training, neither the base's nor the judges'.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.diffusion.sampling import Sampling  # noqa: E402
from ldm.errors import exit_code_of  # noqa: E402
from ldm.randomness import generator  # noqa: E402
from ldm.world.autoencoder import psnr  # noqa: E402
from ldm.world.drawing import World, with_article  # noqa: E402
from ldm.world.pictures import fingerprint  # noqa: E402

NO_COLOUR = "its own"
SECOND_LOOKS = 8
"""Pictures of each withheld member, in different scenes."""


class Judge(nn.Module):
    """Five strided convolutions, features [B, 128], one linear head a question."""

    def __init__(self, answers: Sequence[int], width: int = 32):
        super().__init__()
        sizes = [3, width, 2 * width, 3 * width, 4 * width, 4 * width]
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * width, 128), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(128, count) for count in answers)

    def features(self, pixels: Tensor) -> Tensor:
        """[B, 128] of pixels [B, 3, 64, 64] in [-1, 1]."""
        return self.body(pixels)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Scores for noun, scene, colour and member."""
        return [head(self.features(pixels)) for head in self.heads]


def to_pixels(pictures: Sequence[NDArray[np.uint8]]) -> Tensor:
    """[B, 3, S, S] in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def known_members(world: World) -> list[str]:
    """Those that are not withheld."""
    return [name for names in world.known.values() for name in names]


def blank_judge(world: World) -> Judge:
    """The question of the member is there for the features: they must tell individuals apart too."""
    questions = (world.nouns, world.scenes, [*world.colours, NO_COLOUR], known_members(world))
    return Judge([len(answers) for answers in questions])


def exam(world: World, purpose: str, numbers: range) -> tuple[Tensor, Tensor]:
    """Pictures and the right answers [B, 4] (noun, scene, colour, member as indices)."""
    known = known_members(world)
    pictures, answers = [], []
    for number in numbers:
        pixels, _, facts = world.picture(0, number, purpose)
        pictures.append(pixels)
        colour = world.colours.index(facts.colour) if facts.colour else len(world.colours)
        answers.append(
            [
                world.nouns.index(facts.noun),
                world.scenes.index(facts.scene),
                colour,
                known.index(facts.member),
            ]
        )
    return to_pixels(pictures), torch.tensor(answers)


def trained_judge(world: World, cache: Path, count: int = 20_000, passes: int = 4) -> Judge:
    """A judge that has seen `count` pictures of its own stream `passes` times."""
    judge = blank_judge(world)
    path = cache / f"judge-{len(known_members(world))}-{fingerprint(world)}-{count}x{passes}.pt"
    if path.is_file():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = blank_judge(world)
    pixels, answers = exam(world, "judge", range(count))
    steps = passes * count // 64
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in range(steps):
        draws = generator(0, "judge batch", step)
        chosen = torch.randint(count, (64,), generator=draws)
        # Reconstructions and samples are softer than the world: the judge must not live on single pixels.
        noisy = pixels[chosen] + 0.05 * torch.randn(64, *pixels.shape[1:], generator=draws)
        loss = sum(
            F.cross_entropy(scores, answers[chosen, i], label_smoothing=0.05)
            for i, scores in enumerate(judge(noisy))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    cache.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pixels: Tensor) -> Tensor:
    """What the judge sees in each picture, [B, 4] as indices."""
    parts = [torch.stack([s.argmax(1) for s in judge(part)], 1) for part in pixels.split(200)]
    return torch.cat(parts)


@torch.no_grad()
def features(judge: Judge, pixels: Tensor) -> Tensor:
    """[B, 128], unit length."""
    return F.normalize(torch.cat([judge.features(part) for part in pixels.split(200)]), dim=1)


@torch.no_grad()
def reconstructed(model, pixels: Tensor) -> Tensor:
    """Through the first stage and back."""
    parts = []
    for part in pixels.split(100):
        height, width = part.shape[-2:]
        noise = torch.zeros(len(part), *model.latent_shape(height, width))
        parts.append(model.decode(model.encode(part, noise)))
    return torch.cat(parts)


def mean_psnr(model, pixels: Tensor) -> float:
    """Of reconstructions, dB."""
    return float(psnr(reconstructed(model, pixels), pixels).mean())


def area_under_curve(same: Tensor, different: Tensor) -> float:
    """Chance that a pair of the same member looks more alike than a pair of two members."""
    return float((same[:, None] > different[None, :]).float().mean())


def members_told_apart(look: Tensor, nouns: Sequence[str], names: Sequence[str]) -> float:
    """AUC over all pairs within a noun; look: unit features [B, D]."""
    alike = look @ look.T
    same, different = [], []
    for i in range(len(names)):
        for j in range(i):
            if nouns[i] == nouns[j]:
                (same if names[i] == names[j] else different).append(alike[i, j])
    return area_under_curve(torch.stack(same), torch.stack(different))


def portraits(world: World, per_member: int) -> tuple[Tensor, list[str], list[str]]:
    """Pictures of every member in its own colours in different scenes, with nouns and names."""
    pictures, nouns, names = [], [], []
    for i, (name, member) in enumerate(world.members.items()):
        for k in range(per_member):
            rng = np.random.default_rng(generator(0, "portrait", i, k).initial_seed())
            pictures.append(world.compose(name, world.scenes[(7 * i + 3 * k) % len(world.scenes)], rng))
            nouns.append(member.noun)
            names.append(name)
    return to_pixels(pictures), nouns, names


def spread(look: Tensor) -> float:
    """Mean pairwise distance; look: [B, D]."""
    return float(torch.pdist(look).mean())


def sampler_of(
    model,
    steps: int,
    guidance_scale: float,
    sampler: str = "dpmpp_2m",
    guidance_interval: Sequence[int] | None = None,
) -> Callable[[list[str], int], Tensor]:
    """`(prompts, first seed) -> pictures [B, 3, S, S]`; picture k has seed `first seed + k`."""
    sampling = Sampling(sampler, steps, guidance_scale, guidance_interval)

    def draw(prompts: list[str], first_seed: int) -> Tensor:
        seeds = range(first_seed, first_seed + len(prompts))
        return model.images(prompts, seeds, sampling, batch_size=40)

    return draw


def second_opinion(
    clip: str, world: World, asked: Sequence[tuple[int, int]], pixels: Tensor
) -> dict[str, float]:
    """How often the CLIP's nearest text has the noun, and the scene, that was asked for (as indices)."""
    from ldm.data.images import to_image
    from ldm.evaluation.features import Clip
    from scripts.judge_features import zero_shot

    pictures = [
        (world.nouns[n], world.scenes[s], to_image(p)) for (n, s), p in zip(asked, pixels, strict=True)
    ]
    return zero_shot(Clip(clip), world, pictures)


def judge_base(
    base: str, art: Path, cache: Path, steps: int, guidance_scale: float, clip: str
) -> dict[str, float]:
    """The quality table: what is measured -> figure."""
    from ldm.models.latent_diffusion import LatentDiffusion

    world = World(art)
    judge = trained_judge(world, cache)
    table: dict[str, float] = {}

    unseen, answers = exam(world, "unseen", range(2000))
    right = (verdicts(judge, unseen) == answers).float().mean(0)
    for question, share in zip(("noun", "scene", "colour", "member"), right.tolist(), strict=True):
        table[f"judge: {question} right on unseen world pictures"] = share

    model = LatentDiffusion.from_base(base).eval()
    hidden = {name for names in world.withheld.values() for name in names}
    pixels, nouns, names = portraits(world, SECOND_LOOKS)
    again = reconstructed(model, pixels)
    withheld = torch.tensor([name in hidden for name in names])
    table["first stage: PSNR on unseen pictures, dB"] = mean_psnr(model, unseen[:400])
    table["first stage: PSNR on withheld members, dB"] = mean_psnr(model, pixels[withheld])
    before = members_told_apart(features(judge, pixels), nouns, names)
    after = members_told_apart(features(judge, again), nouns, names)
    table["first stage: AUC of members told apart, originals"] = before
    table["first stage: AUC after reconstruction, share of originals'"] = after / before

    draw = sampler_of(model, steps, guidance_scale)
    asked = [(n, s) for n in range(len(world.nouns)) for s in range(len(world.scenes))]
    prompts = [f"a photo of {with_article(world.nouns[n])} {world.scenes[s]}" for n, s in asked]
    drawn = draw(prompts, 0)
    seen = verdicts(judge, drawn)
    right = (seen[:, :2] == torch.tensor(asked)).float()
    table["samples: noun as asked"] = float(right[:, 0].mean())
    table["samples: scene as asked"] = float(right[:, 1].mean())
    for question, share in second_opinion(clip, world, asked, drawn).items():
        table[f"samples: {question} as asked, by the CLIP's nearest text"] = share
    for n, noun in enumerate(world.nouns):
        table[f"samples: noun as asked, {noun}"] = float(right[[a[0] == n for a in asked], 0].mean())

    asked = [(n, c) for n in range(len(world.nouns)) for c in range(len(world.colours))]
    prompts = [f"a photo of {with_article(f'{world.colours[c]} {world.nouns[n]}')}" for n, c in asked]
    seen = verdicts(judge, draw(prompts, 10_000))
    table["samples: colour as asked"] = float((seen[:, 2] == torch.tensor(asked)[:, 1]).float().mean())

    ratios = []
    pixels, answers = exam(world, "unseen", range(2000))
    real = features(judge, pixels)
    for n, noun in enumerate(world.nouns):
        plain = (answers[:, 0] == n) & (answers[:, 2] == len(world.colours))
        drawn = features(judge, draw([f"a photo of {with_article(noun)}"] * 16, 20_000 + 100 * n))
        ratios.append(spread(drawn) / spread(real[plain]))
    table["samples: variety within a noun, share of the world's"] = float(np.mean(ratios))
    return table


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default="assets/base", help="a base in diffusers' layout")
    parser.add_argument("--art", type=Path, default=Path("assets/world"))
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the trained judge is kept")
    parser.add_argument("--steps", type=int, default=25, help="sampler steps (DPM-Solver++ 2M)")
    parser.add_argument("--scale", type=float, default=4.0, help="classifier-free guidance")
    parser.add_argument("--clip", default="assets/features/clip", help="for a second opinion")
    parser.add_argument("--out", type=Path, help="also write the table as JSON here")
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Judge; print the table, and write it."""
    table = judge_base(options.base, options.art, options.cache, options.steps, options.scale, options.clip)
    for what, figure in table.items():
        print(f"{what:66s} {figure:7.3f}")
    if options.out:
        options.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
