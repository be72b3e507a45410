"""Titles and descriptions of the numbers that a run records, for pages and loggers."""

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
        "Mean squared error of the denoiser on this step's batch of noised photographs.",
    ),
    "train/prior_loss": Curve(
        "prior loss",
        "The same on pictures of the class, the untrained model's or the user's own; it preserves the class.",
    ),
    "train/gradient_norm": Curve("gradient norm", "2-norm of the gradient before clipping."),
    "train/learning_rate": Curve("learning rate", "Learning rate of this parameter group at this step."),
    "train/skipped_updates": Curve(
        "skipped updates", "Steps so far that were skipped because the loss or gradient was not finite."
    ),
    "throughput/samples_per_second": Curve(
        "samples per second",
        "Subject samples per second, including pauses for sampling and saving.",
    ),
    "val/subject_loss": Curve(
        "validation loss",
        "Subject loss on a fixed grid of noise and timesteps, comparable between steps. Lower is better.",
    ),
    "val/drift": Curve(
        "drift",
        "Mean squared distance between predictions for the class and the untrained model's; 0 is unchanged.",
    ),
    "val/score": Curve("score", "Validation loss + drift; best.ckpt has the weights with the lowest."),
    "val/fidelity_score": Curve(
        "fidelity score",
        "DINO less drift_weight x drift; best-fidelity.ckpt has the weights with the highest.",
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
"""By name in the loggers: train/ for metrics.jsonl, val/ for validation.jsonl and fidelity.jsonl."""


def curve_of(name: str) -> Curve:
    """The curve with this name in the loggers. A part (a concept, a parameter group) is named after the whole."""
    if name in CURVES:
        return CURVES[name]
    whole = next((key for key in sorted(CURVES, key=len, reverse=True) if name.startswith(key)), None)
    if whole is None:
        return Curve(name.rpartition("/")[2].replace("_", " "), "")
    part = name.removeprefix(whole).strip("/_")
    return Curve(f"{CURVES[whole].title}, {part}", CURVES[whole].description)


def glossary() -> str:
    """All curves with their descriptions, one per line."""
    return "\n".join(f"{name}: {curve.description}" for name, curve in CURVES.items())
