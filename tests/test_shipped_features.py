"""The networks in assets/features distinguish what evaluation needs. Full figures: scripts/judge_features.py."""

import json

import torch
from PIL import Image

from ldm.data.images import image_files
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.metrics import cosine
from scripts.evaluate import main
from tests.conftest import PROJECT

FEATURES = PROJECT / "assets" / "features"
SUBJECT_SCENES = [
    "on green grass",
    "on top of a wooden floor",
    "on the beach",
    "on a yellow background",
    "with a mountain in the background",
]
"""Of the sample subject's five pictures, in order."""


def pictures(folder):
    return [Image.open(path).convert("RGB") for path in image_files(folder)]


def test_dino_knows_an_individual_on_other_scenes():
    names = ["backpack", "boot", "car", "cat", "teddy_bear", "vase"]
    images = [image for name in names for image in pictures(PROJECT / "assets" / "benchmark" / name)]
    features = Dino(str(FEATURES / "dino")).images(images)
    own = torch.arange(len(images)) // 5
    similar = cosine(features, features)
    same = own[:, None] == own[None, :]
    off_diagonal = ~torch.eye(len(images), dtype=torch.bool)
    assert similar[same & off_diagonal].mean() > similar[~same].mean() + 0.2


def test_clip_reads_the_scene():
    clip = Clip(str(FEATURES / "clip"))
    images = clip.images(pictures(PROJECT / "assets" / "subject" / "dog"))
    texts = clip.texts([f"a photo of a dog {scene}" for scene in SUBJECT_SCENES])
    assert cosine(images, texts).argmax(dim=1).tolist() == list(range(5))


def test_they_are_small():
    size = sum(path.stat().st_size for path in FEATURES.rglob("*") if path.is_file())
    assert size < 15e6


def test_evaluation_takes_them_by_itself(tiny, tmp_path):
    words = ["--ckpt", tiny, "--real", PROJECT / "assets" / "subject" / "dog", "--class_word", "dog"]
    small = ["sampling.steps=1", "sampling.images_per_prompt=1", "sampling.class_images=2"]
    assert main([*map(str, words), "--device", "cpu", "--outdir", str(tmp_path), *small]) == 0
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert [result["networks"][name]["network"] for name in ("dino", "clip")] == [
        "assets/features/dino",
        "assets/features/clip",
    ]
