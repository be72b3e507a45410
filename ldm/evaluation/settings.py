"""The settings of `configs/evaluation.yaml` and its overlays; that file explains each key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ldm.values import Count, NonNegativeFloat, Prompts, SamplerName, Seed, Text


@dataclass(frozen=True)
class NetworkSettings:
    """The feature networks."""

    dino: Text
    dino_revision: Text | None
    clip: Text
    clip_revision: Text | None
    lpips: Literal["alex", "vgg", "squeeze"] | None
    diversity: Literal["dino", "clip"]
    batch_size: Count


@dataclass(frozen=True)
class SamplingSettings:
    """How the evaluated images are drawn."""

    images_per_prompt: Count
    class_images: Count
    seed: Seed
    sampler: SamplerName
    steps: Count
    guidance_scale: NonNegativeFloat
    batch_size: Count


@dataclass(frozen=True)
class EvaluationSettings:
    """The whole file."""

    networks: NetworkSettings
    sampling: SamplingSettings
    class_prompt: Text
    prompts: Text
    live_classes: Sequence[Text]
    prompt_sets: Mapping[str, Prompts]
    published: Sequence[Mapping[str, Any]]
