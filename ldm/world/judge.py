"""A classifier of the embedded world's nouns, scenes, colours and members, and its verdicts on pictures.

It is trained on the world's pictures alone; withheld members appear neither in the base's training nor in the
judges'.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.console import counted
from ldm.data.images import pixels_of
from ldm.evaluation.metrics import auc
from ldm.files import replacing
from ldm.randomness import generator
from ldm.world.drawing import World
from ldm.world.pictures import fingerprint

NO_COLOUR = "its own"
"""The answer for the colour if a caption names none."""

UNSEEN = 2000
"""Number of world pictures that samples are compared with."""


class Judge(nn.Module):
    """Five strided convolutions, features [B, 128], one linear head per question."""

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


def known_members(world: World) -> list[str]:
    """The members that are not withheld."""
    return [name for names in world.known.values() for name in names]


def blank_judge(world: World) -> Judge:
    """An untrained judge. It also classifies members, so that its features distinguish individuals."""
    questions = (world.nouns, world.scenes, [*world.colours, NO_COLOUR], known_members(world))
    return Judge([len(answers) for answers in questions])


def exam(world: World, purpose: str, numbers: range) -> tuple[Tensor, Tensor]:
    """Pictures and their right answers [B, 4]: indices of noun, scene, colour and member."""
    known = known_members(world)
    pictures, answers = [], []
    for number in counted(numbers, "drawing", "picture"):
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
    return pixels_of(np.stack(pictures)), torch.tensor(answers)


def trained_judge(world: World, cache: Path, count: int = 20_000, passes: int = 4) -> Judge:
    """A judge trained for `passes` passes over `count` of its own pictures, once, and then read from `cache`."""
    path = cache / f"judge-{len(known_members(world))}-{fingerprint(world)}-{count}x{passes}.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        judge = blank_judge(world)
    if path.is_file():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    pixels, answers = exam(world, "judge", range(count))
    steps = passes * count // 64
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for step in counted(range(steps), "training the judge", "step"):
        draws = generator(0, "judge batch", step)
        chosen = torch.randint(count, (64,), generator=draws)
        # Reconstructions and samples are softer than world pictures, so the judge must not rely on single pixels.
        noisy = pixels[chosen] + 0.05 * torch.randn(64, *pixels.shape[1:], generator=draws)
        errors = [
            F.cross_entropy(scores, answers[chosen, i], label_smoothing=0.05)
            for i, scores in enumerate(judge(noisy))
        ]
        loss = sum(errors, start=torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with replacing(path, sync=False, shared=True) as temporary:
        torch.save(judge.state_dict(), temporary)
    return judge.eval()


@torch.no_grad()
def verdicts(judge: Judge, pixels: Tensor) -> Tensor:
    """The judge's answers for each picture, [B, 4] as indices."""
    parts = [torch.stack([s.argmax(1) for s in judge(part)], 1) for part in pixels.split(200)]
    return torch.cat(parts)


@torch.no_grad()
def features(judge: Judge, pixels: Tensor) -> Tensor:
    """[B, 128], unit length."""
    return F.normalize(torch.cat([judge.features(part) for part in pixels.split(200)]), dim=1)


def members_told_apart(look: Tensor, nouns: Sequence[str], names: Sequence[str]) -> float:
    """AUC over pairs within a noun: how often two pictures of one member are closer than two of different members.

    look: unit features [B, D] of pictures of members `names`, of nouns `nouns`.
    """
    alike = look @ look.T
    same: list[Tensor] = []
    different: list[Tensor] = []
    for i in range(len(names)):
        for j in range(i):
            if nouns[i] == nouns[j]:
                (same if names[i] == names[j] else different).append(alike[i, j])
    return auc(torch.stack(same), torch.stack(different))


def portraits(world: World, per_member: int) -> tuple[Tensor, list[str], list[str]]:
    """Pictures of every member in its own colours on different scenes, with nouns and names."""
    pictures, nouns, names = [], [], []
    for i, (name, member) in enumerate(world.members.items()):
        for k in range(per_member):
            rng = np.random.default_rng(generator(0, "portrait", i, k).initial_seed())
            pictures.append(world.compose(name, world.scenes[(7 * i + 3 * k) % len(world.scenes)], rng))
            nouns.append(member.noun)
            names.append(name)
    return pixels_of(np.stack(pictures)), nouns, names


def spread(look: Tensor) -> float:
    """Mean pairwise distance; look: [B, D]."""
    return float(torch.pdist(look).mean())
