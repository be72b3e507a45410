"""Measures the embedded feature networks: retrieval, nouns and scenes, and distinguishing members of a class."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.concepts import with_article
from ldm.console import counted
from ldm.data.images import to_tensor
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.metrics import auc, cosine
from ldm.randomness import generator
from ldm.world.drawing import World

LOOKS = 8
"""Pictures of each individual, each on another scene."""

Look = tuple[str, str, Image.Image]
"""Member, scene, picture."""

Features = Callable[[list[Image.Image]], Tensor]
"""Features [B, D] of B pictures."""


@torch.no_grad()
def judge_features(world: World, clip: Clip, dino: Dino, count: int) -> dict[str, object]:
    """All figures, in [0, 1] except for "megabytes". count: unseen pictures for retrieval."""
    known = [world.picture(0, i, "judge features") for i in counted(range(count), "drawing", "picture")]
    looks = individuals(world)
    withheld = {name for names in world.withheld.values() for name in names}
    hidden = [(name, scene, image) for name, scene, image in looks if name in withheld]
    return {
        "retrieval": retrieval(
            clip, [Image.fromarray(p) for p, _, _ in known], [words for _, words, _ in known]
        ),
        "known": zero_shot(
            clip, world, [(f.noun, f.scene, Image.fromarray(p)) for p, _, f in known if f.colour is None]
        ),
        "withheld": zero_shot(
            clip, world, [(world.members[n].noun, scene, image) for n, scene, image in hidden]
        ),
        "individuals": {
            kind: individuals_auc(world, looks, withheld, features)
            for kind, features in (("dino", dino.images), ("clip", clip.images), ("pixels", raw_pixels))
        },
        "megabytes": {
            kind: sum(path.stat().st_size for path in network.folder.iterdir()) / 1e6
            for kind, network in (("clip", clip), ("dino", dino))
        },
    }


def raw_pixels(images: list[Image.Image]) -> Tensor:
    """The pixels themselves as features, [B, 3 * H * W]: a baseline."""
    return torch.stack([to_tensor(image).flatten() for image in images])


def individuals(world: World) -> list[Look]:
    """LOOKS pictures of every member of the world in its own colours."""
    looks = []
    for number, name in enumerate(counted(sorted(world.members), "drawing", "individual")):
        rng = np.random.default_rng(generator(0, "judge individuals", number).initial_seed())
        for scene in rng.permutation(world.scenes)[:LOOKS]:
            looks.append((name, str(scene), Image.fromarray(world.compose(name, str(scene), rng))))
    return looks


def retrieval(clip: Clip, images: list[Image.Image], captions: Sequence[str]) -> dict[str, float]:
    """How often the nearest of all captions is the picture's own, and the nearest picture the caption's."""
    different = list(dict.fromkeys(captions))
    own = torch.tensor([different.index(caption) for caption in captions])
    similar = cosine(clip.images(images), clip.texts(different))
    rank = (similar > similar.gather(1, own[:, None])).sum(dim=1)
    best_image = similar.argmax(dim=0)
    return {
        "image_to_text_at_1": float((rank < 1).float().mean()),
        "image_to_text_at_5": float((rank < 5).float().mean()),
        "text_to_image_at_1": float((own[best_image] == torch.arange(len(different))).float().mean()),
        "captions": len(different),
    }


def zero_shot(clip: Clip, world: World, pictures: Sequence[tuple[str, str, Image.Image]]) -> dict[str, float]:
    """How often the nearest text is that of the right noun, and of the right scene.

    pictures: noun, scene, picture.
    """
    every = [f"a photo of {with_article(noun)} {scene}" for noun in world.nouns for scene in world.scenes]
    texts = clip.texts(every).unflatten(0, (len(world.nouns), len(world.scenes)))
    noun = torch.tensor([world.nouns.index(noun) for noun, _, _ in pictures])
    scene = torch.tensor([world.scenes.index(scene) for _, scene, _ in pictures])
    features = clip.images([image for _, _, image in pictures])
    by_noun = torch.stack([cosine(f[None], texts[:, s])[0] for f, s in zip(features, scene, strict=True)])
    by_scene = torch.stack([cosine(f[None], texts[n])[0] for f, n in zip(features, noun, strict=True)])
    return {
        "noun": float((by_noun.argmax(dim=1) == noun).float().mean()),
        "scene": float((by_scene.argmax(dim=1) == scene).float().mean()),
    }


def individuals_auc(world: World, looks: Sequence[Look], withheld: set[str], features: Features) -> float:
    """AUC over pairs of pictures, same individual against another of its class, averaged over withheld members."""
    names = [name for name, _, _ in looks]
    similar = cosine(*[features([image for _, _, image in looks])] * 2)
    found = []
    for name in sorted(withheld):
        noun = world.members[name].noun
        mine = torch.tensor([other == name for other in names])
        kin = torch.tensor([other != name and world.members[other].noun == noun for other in names])
        if kin.any():
            pairs = torch.ones(int(mine.sum()), int(mine.sum()), dtype=torch.bool).triu(1)
            found.append(auc(similar[mine][:, mine][pairs], similar[mine][:, kin].flatten()))
    return sum(found) / len(found)


def table(figures: Mapping[str, Any]) -> str:
    """The figures of `judge_features` as Markdown, in percent except for the AUC."""
    found, known, withheld = figures["retrieval"], figures["known"], figures["withheld"]
    same, size = figures["individuals"], figures["megabytes"]
    return "\n".join(
        [
            "| | CLIP | DINO | raw pixels |",
            "|---|---:|---:|---:|",
            f"| right caption among {found['captions']}, first / first five | {found['image_to_text_at_1']:.1%} / "
            f"{found['image_to_text_at_5']:.1%} | | |",
            f"| right picture for a caption, first | {found['text_to_image_at_1']:.1%} | | |",
            f"| noun / scene, known members | {known['noun']:.1%} / {known['scene']:.1%} | | |",
            f"| noun / scene, withheld members | {withheld['noun']:.1%} / {withheld['scene']:.1%} | | |",
            f"| AUC, withheld individual or another of its class | {same['clip']:.3f} | {same['dino']:.3f} | "
            f"{same['pixels']:.3f} |",
            f"| MB | {size['clip']:.1f} | {size['dino']:.1f} | |",
        ]
    )
