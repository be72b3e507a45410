"""The settings of `configs/evaluation.yaml` and its overlays; that file explains each key."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ldm.values import Count, Must, NonNegativeFloat, Prompts, SamplerName, Seed, Text, TimestepInterval

PairPrompts = Annotated[
    Prompts,
    Must(
        lambda prompts: all(prompt.count("{}") == 2 == prompt.count("{") for prompt in prompts),
        "a list of prompts with {} twice, for the two subjects",
    ),
]


@dataclass(frozen=True)
class NetworkSettings:
    """The feature networks."""

    dino: Text
    dino_revision: Text | None
    clip: Text
    clip_revision: Text | None
    lpips: Literal["alex", "vgg", "squeeze"] | None
    others: Mapping[str, Text]
    diversity: Literal["dino", "clip"]
    batch_size: Count


@dataclass(frozen=True)
class SamplingSettings:
    """How the evaluated images are drawn."""

    images_per_prompt: Count
    class_images: Count
    seed: Seed
    sampler: SamplerName | None
    steps: Count | None
    guidance_scale: NonNegativeFloat | None
    batch_size: Count | Literal["auto"]
    guidance_interval: TimestepInterval | None = None
    deepcache: Count | None = None


@dataclass(frozen=True)
class EvaluationSettings:
    """The whole file."""

    networks: NetworkSettings
    sampling: SamplingSettings
    class_prompt: Text
    prompts: Text
    live_classes: Sequence[Text]
    prompt_sets: Mapping[str, Prompts]
    pair_prompts: PairPrompts
    published: Sequence[Mapping[str, object]]
