"""The images to draw and score: the paper's prompts, filled in for one subject (section 4, "dataset")."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.concepts import PLACEHOLDER, article, with_article
from ldm.errors import UserError


@dataclass(frozen=True)
class Item:
    """One image of the protocol. kind: of the subject, or of the bare class (for PRES).

    prompt: for drawing, perhaps with [V]. text: for CLIP-T, the prompt without the identifier.
    """

    kind: Literal["subject", "class"]
    prompt: str
    text: str
    seed: int | None
    path: Path


def prompt_set(config: Mapping[str, Any], class_word: str) -> str:
    """The name of the prompt set for this class: the setting `prompts`; "auto" chooses by class."""
    name: str = config["prompts"]
    if name == "auto":
        return "live" if class_word in config["live_classes"] else "object"
    if name not in config["prompt_sets"]:
        raise UserError(f"config prompts: no set '{name}'; choose auto, {', '.join(config['prompt_sets'])}")
    return name


def fill_in(template: str, noun: str) -> str:
    """`template` with {class} replaced by `noun`, or removed if that is empty (class-noun ablation)."""
    fitting = re.sub(r"\ban? \{class\}", f"{article(noun)} {{class}}", template)
    return " ".join(fitting.replace("{class}", noun).split())


def without_identifier(prompt: str, identifier: str | None = None) -> str:
    """`prompt` in words CLIP knows: "a [V] owl" becomes "an owl", "a photo of [V] dog" "a photo of a dog".

    identifier: also removed like [V], in any case. Without a following noun, "of [V]" is removed too: "a photo of
    [V], in oil" becomes "a photo, in oil".
    """
    if identifier and identifier.strip():
        words = r"\s+".join(map(re.escape, identifier.split()))
        prompt = re.sub(rf"(?<!\w){words}(?!\w)", PLACEHOLDER, prompt, flags=re.IGNORECASE)
    prompt = prompt.replace(f"{PLACEHOLDER}'s", PLACEHOLDER)
    prompt = re.sub(r",?\s*(?:\bof\s+)?(?:\ban?\s+)?\[V\]\s*(?=[,.;:!?]|$)", "", prompt)
    prompt = re.sub(r"\bof \[V\] ", "of a [V] ", prompt)
    prompt = re.sub(r"\ban? \[V\] (\w)", lambda match: with_article(match[1]), prompt)
    return " ".join(prompt.replace(PLACEHOLDER, "").split()).lstrip(", ")


def plan(
    config: Mapping[str, Any], class_word: str, folder: Path, noun: str | None = None, learned: bool = True
) -> list[Item]:
    """All images of the protocol for one subject, with their paths in `folder`.

    noun: replaces {class} in the prompts for drawing; None for the class word. learned: whether the model knows [V];
    for a base, prompts have no [V].
    """
    sampling = config["sampling"]
    templates = config["prompt_sets"][prompt_set(config, class_word)]
    items = []
    for number, template in enumerate(templates):
        prompt = fill_in(template, class_word if noun is None else noun)
        text = without_identifier(fill_in(template, class_word))
        for k in range(sampling["images_per_prompt"]):
            path = folder / "subject" / f"{number:02d}-{k}.png"
            drawn_from = prompt if learned else text
            items.append(Item("subject", drawn_from, text, sampling["seed"] + k, path))
    bare = without_identifier(fill_in(config["class_prompt"], class_word))
    for k in range(sampling["class_images"]):
        items.append(Item("class", bare, bare, sampling["seed"] + k, folder / "class" / f"{k:03d}.png"))
    return items


def groups(items: Sequence[Item], class_group: int) -> list[list[int]]:
    """Indices of the images that DIV compares: those of one prompt, and class images `class_group` at a time.

    Class images all have the same prompt; in groups of the usual size they cost no more.
    """
    found: dict[tuple[str, str, int], list[int]] = {}
    number = 0
    for index, item in enumerate(items):
        part = 0
        if item.kind == "class":
            part, number = number // max(class_group, 2), number + 1
        found.setdefault((item.kind, item.prompt, part), []).append(index)
    return list(found.values())
