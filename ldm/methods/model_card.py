"""The card of an exported model: what it is, how to prompt it, how it was made."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ldm.concepts import CLASS_WORD, PLACEHOLDER, Learned, fill_in_identifiers
from ldm.formats.checkpoint_files import CONFIG
from ldm.methods.load import LoadedModel
from ldm.models.latent_diffusion import LatentDiffusion

LEFT_OUT = ("base", "data_root", "reg_data_root", "vae", "cache", "cache_gigabytes")
"""Settings that are paths on the training machine, or elsewhere in the card."""


def card_of(loaded: LoadedModel) -> str:
    """The card of a loaded model, for its export."""
    model = loaded.model
    return model_card(
        model.source, loaded.subjects, loaded.step, model.clip_skip, loaded.config, loaded.added
    )


def card_of_run(run: Path, model: LatentDiffusion, subjects: Sequence[Learned], step: int) -> str:
    """The card of the model that a run exports at its end."""
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    return model_card(model.source, subjects, step, model.clip_skip, config)


def model_card(
    base: str,
    subjects: Sequence[Learned],
    step: int | None = None,
    clip_skip: int = 1,
    config: Mapping[str, object] | None = None,
    added: Sequence[str] = (),
) -> str:
    """Markdown with front matter for the hub.

    base: the base model. subjects: the learned subjects. config: the run's config, whose settings are listed.
    added: parts that were added to the model.
    """
    base = Path(base).name if Path(base).is_absolute() else base
    phrases = [subject.phrase for subject in subjects]
    prompt = trained_prompt(subjects[0], config or {}) if subjects else None
    parts = [front_matter(base, prompt), f"# {', '.join(phrases) or base}"]
    if subjects:
        parts += introduction(subjects)
    parts.append(facts(base, subjects, step, clip_skip, added))
    if config:
        parts += ["## Settings", fenced(settings(config), "yaml")]
    return "\n\n".join(parts) + "\n"


def trained_prompt(subject: Learned, config: Mapping[str, Any]) -> str:
    """The prompt that a run with `config` trained `subject` with."""
    params = (config.get("data") or {}).get("params") or {}
    concepts = params.get("concepts") or []
    own: Mapping[str, Any] = next(
        (one for one in concepts if one.get("class_word") == subject.class_word), {}
    )
    template = own.get("prompt") or params.get("prompt") or f"a photo of {PLACEHOLDER} {CLASS_WORD}"
    filled = fill_in_identifiers(template.replace(CLASS_WORD, subject.class_word or ""), [subject])
    return " ".join(filled.split())


def front_matter(base: str, prompt: str | None) -> str:
    """The block of facts for the Hugging Face hub. prompt: with the subject."""
    entries: dict[str, object] = {
        "base_model": base,
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["dreambooth", "stable-diffusion", "text-to-image"],
    }
    if prompt:
        entries["instance_prompt"] = prompt
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---"


def introduction(subjects: Sequence[Learned]) -> list[str]:
    """What the model draws, and how to prompt it."""
    method = "A latent diffusion model fine-tuned with DreamBooth (Ruiz et al., arXiv 2208.12242) to draw"
    prompts = fenced("\n".join(f"a photo of {subject.phrase} on the beach" for subject in subjects))
    first = subjects[0]
    if len(subjects) == 1:
        what = f"one subject, a {first.class_word or 'thing'}. Its identifier is `{first.identifier}`:"
        return [f"{method} {what}", prompts, "Without the identifier it draws the class."]
    what = f"{len(subjects)} subjects, each with its own identifier:"
    return [f"{method} {what}", prompts, "Without the identifiers it draws the classes."]


def facts(
    base: str, subjects: Sequence[Learned], step: int | None, clip_skip: int, added: Sequence[str]
) -> str:
    """A table of facts about the model."""
    rows: dict[str, object] = {"Base model": base}
    for subject in subjects:
        of_it = f" of {subject.placeholder}" if len(subjects) > 1 else ""
        rows |= {f"Subject class{of_it}": subject.class_word, f"Identifier{of_it}": subject.identifier}
    rows["Optimizer steps"] = step
    if added:
        rows["Added to it"] = ", ".join(f"`{word}`" for word in added)
    if clip_skip > 1:
        rows["CLIP skip"] = f"{clip_skip} (in diffusers: `clip_skip={clip_skip - 1}`)"
    lines = [f"| {name} | {value} |" for name, value in rows.items() if value is not None]
    return "\n".join(["| | |", "|---|---|", *lines, "| Licence | the base model's, and the photographs' |"])


def settings(config: Mapping[str, Any]) -> str:
    """The settings of a run as YAML, without paths of the machine it ran on."""
    kept = {
        "model": shareable(config["model"].get("params", {})),
        "data": shareable(config["data"].get("params", {})),
        "trainer": dict(config["lightning"]["trainer"]),
    }
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True).strip()
    return f"# {PLACEHOLDER} is the identifier\n{text}"


def shareable(params: Mapping[str, object]) -> dict[str, object]:
    """`params` without `LEFT_OUT` and without unset keys."""
    kept = {key: value for key, value in params.items() if key not in LEFT_OUT and value is not None}
    if isinstance(concepts := kept.get("concepts"), list):
        kept["concepts"] = [shareable(concept) for concept in concepts]
    if isinstance(prior := kept.get("prior"), dict):
        kept["prior"] = shareable(prior)
    return kept


def fenced(text: str, language: str = "") -> str:
    """`text` as a code block."""
    return f"```{language}\n{text}\n```"
