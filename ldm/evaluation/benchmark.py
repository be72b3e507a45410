"""A benchmark over many subjects: the dataset's layout, and the means over subjects that the paper's tables hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.data.images import image_files
from ldm.errors import UserError
from ldm.evaluation.metrics import METRICS, PAPER_METRICS
from ldm.evaluation.report import published_lines
from ldm.evaluation.statistics import summary

LIST = "prompts_and_classes.txt"


@dataclass(frozen=True)
class BenchmarkSubject:
    """One subject of a dataset: its name, its class noun, the folder with its photographs."""

    name: str
    class_word: str
    folder: Path


def read_dataset(folder: Path) -> list[BenchmarkSubject]:
    """The subjects of a folder in the layout of the DreamBooth dataset, in the list's order.

    Its prompts_and_classes.txt holds lines `subject_name,class`; images lie in a folder of the subject's
    name. Subjects of the list without a folder are left out, so that a part of the dataset is a dataset.
    """
    path = folder / LIST
    if not path.is_file():
        raise UserError(f"dataset {folder}: no {LIST} in it, with a line subject_name,class for each subject")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    if "subject_name,class" not in lines:
        raise UserError(f"{path}: no line 'subject_name,class' at the head of the list of subjects")
    subjects = []
    for line in lines[lines.index("subject_name,class") + 1 :]:
        name, comma, class_word = (part.strip() for part in line.partition(","))
        if not comma:
            break  # an empty line or the next heading ends the list
        if (folder / name).is_dir():
            image_files(folder / name)
            subjects.append(BenchmarkSubject(name, class_word, folder / name))
    if not subjects:
        raise UserError(f"dataset {folder}: none of the subjects of {LIST} has a folder there")
    return subjects


def wrong_noun(subject: BenchmarkSubject, subjects: Sequence[BenchmarkSubject]) -> str:
    """Another subject's class noun, for the ablation of Table 4: the next different one of the list."""
    place = subjects.index(subject)
    others = [other.class_word for other in (*subjects[place + 1 :], *subjects[:place])]
    different = next((word for word in others if word != subject.class_word), None)
    if different is None:
        raise UserError("class-noun ablation: all subjects are of one class; a wrong noun needs a second one")
    return different


def means(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each metric's mean over subjects, with a bootstrap interval over subjects (results: by subject)."""
    ours = {
        key: summary([_number(result["metrics"][key]["value"]) for result in results.values()])
        for key in METRICS
    }
    real = {
        key: summary([_number(result["real"][key]["value"]) for result in results.values()])
        for key, metric in METRICS.items()
        if metric.of_real is not None
    }
    return {"subjects": sorted(results), "metrics": ours, "real": real}


def table_rows(
    variants: Mapping[str, Mapping[str, Any]],
    titles: Mapping[str, str],
    published: Sequence[Mapping[str, Any]],
) -> list[tuple[str, Mapping[str, Mapping[str, Any]], str]]:
    """Rows (name, metrics, kind) of the benchmark's table: ours by variant, real images, the paper's."""
    rows = [
        (f"{titles[name]} ({_subjects(len(variant['subjects']))})", variant["metrics"], "ours")
        for name, variant in variants.items()
        if variant["subjects"]
    ]
    largest = max(variants.values(), key=lambda variant: len(variant["subjects"]))
    return [*rows, ("Real images", largest["real"], "real"), *published_lines(published)]


def markdown(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]], div: str) -> str:
    """The table as Markdown. div: what DIV is here."""
    lines = [
        "| | " + " | ".join(metric.title for metric in PAPER_METRICS.values()) + " |",
        "|---|" + "---:|" * len(PAPER_METRICS),
    ]
    for name, values, _ in rows:
        found = [values.get(key, {}).get("value") for key in PAPER_METRICS]
        lines.append(f"| {name} | " + " | ".join("" if v is None else f"{v:.3f}" for v in found) + " |")
    return "\n".join([*lines, "", f"DIV of our rows: {div}; the paper's: LPIPS."]) + "\n"


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _subjects(count: int) -> str:
    return f"{count} subject{'' if count == 1 else 's'}"
