"""The card that goes with an exported model: what it is, how to prompt it, how it was made."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ldm.concepts import PLACEHOLDER
from ldm.formats.checkpoint_files import CONFIG
from ldm.methods.load import LoadedModel
from ldm.models.latent_diffusion import LatentDiffusion

LEFT_OUT = ("base", "data_root", "reg_data_root", "vae")
"""Settings that are paths on the training machine, or that the card names elsewhere."""


def card_of(loaded: LoadedModel) -> str:
    """The card of a loaded model, for its export."""
    model = loaded.model
    return model_card(
        model.source, loaded.identifier, loaded.class_word, loaded.step, model.clip_skip, loaded.config
    )


def card_of_run(run: Path, model: LatentDiffusion, identifier: str, class_word: str, step: int) -> str:
    """The card of the model that a run writes at its end."""
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))
    return model_card(model.source, identifier, class_word, step, model.clip_skip, config)


def model_card(
    base: str,
    identifier: str | None,
    class_word: str | None,
    step: int | None = None,
    clip_skip: int = 1,
    config: Mapping[str, Any] | None = None,
) -> str:
    """Markdown with the front matter that the hub reads.

    base: what was fine-tuned. identifier: what [V] means, or None where the model has learned no subject.
    config: the run's config, whose settings are listed.
    """
    base = Path(base).name if Path(base).is_absolute() else base
    subject = f"{identifier} {class_word or ''}".strip() if identifier else None
    parts = [front_matter(base, subject), f"# {subject or base}"]
    if subject:
        parts.append(
            f"A latent diffusion model fine-tuned with DreamBooth (Ruiz et al., arXiv 2208.12242) to draw one "
            f"subject, a {class_word or 'thing'}. Its identifier is `{identifier}`:"
        )
        parts += [
            fenced(f"a photo of a {subject} on the beach"),
            "Without the identifier it draws the class.",
        ]
    parts.append(facts(base, class_word, identifier, step, clip_skip))
    if config:
        parts += ["## Settings", fenced(settings(config), "yaml")]
    return "\n\n".join(parts) + "\n"


def front_matter(base: str, subject: str | None) -> str:
    """The block of facts that the Hugging Face hub takes from a card."""
    entries: dict[str, Any] = {
        "base_model": base,
        "pipeline_tag": "text-to-image",
        "library_name": "diffusers",
        "tags": ["dreambooth", "stable-diffusion", "text-to-image"],
    }
    if subject:
        entries["instance_prompt"] = f"a photo of a {subject}"
    return f"---\n{yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)}---"


def facts(base: str, class_word: str | None, identifier: str | None, step: int | None, clip_skip: int) -> str:
    """A table of what the model is."""
    rows = {
        "Base model": base,
        "Subject class": class_word,
        "Identifier": identifier,
        "Optimizer steps": step,
    }
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
    return f"# {PLACEHOLDER} stands for the identifier\n{text}"


def shareable(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` without `LEFT_OUT` and without what was not set."""
    return {key: value for key, value in params.items() if key not in LEFT_OUT and value is not None}


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code."""
    return f"```{language}\n{text}\n```"
