"""The numbers that a run writes down: what each is called and what it means, on pages and in loggers alike."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Curve:
    """One number over the steps of a run."""

    title: str
    description: str


CURVES: Mapping[str, Curve] = {
    "train/loss": Curve(
        "loss",
        "What training minimizes: subject loss + prior_loss_weight x prior loss (the paper's equation 2).",
    ),
    "train/subject_loss": Curve(
        "subject loss",
        "Mean squared error of the denoiser on noisy photographs of the subject, this step's batch.",
    ),
    "train/prior_loss": Curve(
        "prior loss",
        "The same on samples of the bare class that the untrained model drew: it keeps the class.",
    ),
    "train/gradient_norm": Curve("gradient norm", "2-norm of the gradient before it is clipped."),
    "train/learning_rate": Curve("learning rate", "Of this group of parameters, in this step."),
    "train/skipped_updates": Curve(
        "skipped updates", "Steps so far whose loss or gradient was not finite, and which changed no weight."
    ),
    "throughput/samples_per_second": Curve(
        "samples per second",
        "Subject samples that were trained on a second, pauses for samples and saves included.",
    ),
    "val/subject_loss": Curve(
        "validation loss",
        "Subject loss on a fixed grid of noise and timesteps, so that steps compare. Lower: closer to the photographs.",
    ),
    "val/drift": Curve(
        "drift",
        "How far the predictions for the bare class have moved from the untrained model's. 0: not at all.",
    ),
    "val/score": Curve(
        "score", "Validation loss + drift; the weights with the lowest are kept in best.ckpt."
    ),
    "val/dino": Curve(
        "DINO",
        "Subject fidelity: mean cosine of samples with the photographs in DINO's features. Higher is better.",
    ),
    "val/clip_i": Curve(
        "CLIP-I",
        "Subject fidelity: mean cosine of samples with the photographs in CLIP's features. Higher is better.",
    ),
    "val/clip_t": Curve(
        "CLIP-T",
        "Prompt fidelity: mean cosine of samples with their prompts in CLIP's features. Higher is better.",
    ),
}
"""By their names in the loggers: rows of metrics.jsonl are train/..., of validation.jsonl and fidelity.jsonl val/..."""


def curve_of(name: str) -> Curve:
    """The curve of a logger's name; one of a part (a concept, a group of parameters) is called after the whole."""
    if name in CURVES:
        return CURVES[name]
    whole = next((key for key in sorted(CURVES, key=len, reverse=True) if name.startswith(key)), None)
    if whole is None:
        return Curve(name.rpartition("/")[2].replace("_", " "), "")
    part = name.removeprefix(whole).strip("/_")
    return Curve(f"{CURVES[whole].title}, {part}", CURVES[whole].description)


def glossary() -> str:
    """Every curve and what it is, one a line."""
    return "\n".join(f"{name}: {curve.description}" for name, curve in CURVES.items())
