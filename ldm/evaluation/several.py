"""Several subjects in one model: each measured alone, each against the others, and two of them in one picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from ldm.concepts import Learned, with_article
from ldm.data.images import load_image
from ldm.errors import UserError
from ldm.evaluation.evaluate import (
    Evaluation,
    draw,
    evaluate,
    find_subject,
    keep_to_settings,
    load_measuring,
)
from ldm.evaluation.metrics import METRICS, prompt_fidelity, real_fidelity, subject_fidelity
from ldm.evaluation.protocol import Item
from ldm.evaluation.report import number
from ldm.evaluation.scores import Networks, Result
from ldm.files import replacing, write_json
from ldm.methods.load import LoadedModel
from ldm.pages.page import render
from ldm.pages.pictures import figure

RESULT = "concepts.json"


class Pair(TypedDict):
    """Pictures of two subjects together."""

    subjects: tuple[int, int]
    """Their places in the list of subjects."""
    dino: tuple[float, float]
    """Mean with each of the two."""
    dino_lower: float
    """Mean over the pictures of the lower of the two."""
    clip_t: float
    images: list[str]


class Together(TypedDict):
    """The content of concepts.json."""

    subjects: list[dict[str, object]]
    confusion: list[list[float]]
    nearest: list[list[float]]
    photographs: list[list[float | None]]
    pairs: list[Pair]


@dataclass(frozen=True)
class Measured:
    """One of several subjects: its name, its result, and DINO features of its pictures and photographs."""

    learned: Learned
    result: Result
    pictures: Tensor
    photographs: Tensor


def evaluate_all(evaluation: Evaluation, concept: str | None = None) -> str:
    """Measure every subject of the model, or the one of the placeholder `concept`; returns the tables as text.

    Each of several has its own folder in `evaluation.out`, as a single one would have; comparisons between them are
    in `concepts.json` and `report.html`.
    """
    networks, loaded = load_measuring(evaluation)
    subjects = loaded.subjects if loaded else ()
    if concept is not None:
        places = [place for place, subject in enumerate(subjects) if subject.placeholder == concept]
        if not places:
            known = ", ".join(subject.placeholder for subject in subjects) or "none"
            raise UserError(f"--concept {concept}: the model has no such subject; it has {known}")
        if len(subjects) > 1 and evaluation.outdir is None:
            evaluation = replace(evaluation, outdir=evaluation.out / subjects[places[0]].name)
        subjects = (subjects[places[0]],)
        evaluation = replace(evaluation, place=places[0])
    if loaded is None or len(subjects) < 2:
        return evaluate(evaluation, networks, loaded and replace(loaded, subjects=tuple(subjects)))
    for name in ("real", "class_word", "identifier"):
        if getattr(evaluation, name):
            raise UserError(
                f"--{name} is of one subject, but this model has several: choose one with --concept"
            )
    return evaluate_several(evaluation, networks, loaded)


def evaluate_several(evaluation: Evaluation, networks: Networks, loaded: LoadedModel) -> str:
    """Measure each subject of `loaded`, and what is between them."""
    subjects = [
        find_subject(replace(evaluation, place=place), learned.class_word)
        for place, learned in enumerate(loaded.subjects)
    ]
    keep_to_settings(evaluation, loaded, subjects)
    measured = [
        measure(replace(evaluation, place=place), networks, loaded) for place in range(len(loaded.subjects))
    ]
    pairs = measure_pairs(evaluation, networks, loaded, measured)
    result: Together = {
        "subjects": [
            {
                "placeholder": one.learned.placeholder,
                "identifier": one.learned.identifier,
                "class_word": one.learned.class_word,
                "metrics": one.result["metrics"],
            }
            for one in measured
        ],
        "confusion": confusion(measured),
        "nearest": nearest(measured),
        "photographs": [[alike(one, other) for other in measured] for one in measured],
        "pairs": pairs,
    }
    try:
        with replacing(evaluation.out / "report.html") as path:
            path.write_text(report(result, measured, evaluation.out), encoding="utf-8")
        write_json(evaluation.out / RESULT, result)
    except OSError as error:
        raise UserError(f"the result cannot be written to {evaluation.out} ({error})") from error
    tables = tables_of(result, measured)
    return (
        "\n\n".join(f"{title}\n{as_text(rows)}" for title, rows in tables)
        + f"\n{evaluation.out / 'report.html'}"
    )


def measure(evaluation: Evaluation, networks: Networks, loaded: LoadedModel) -> Measured:
    """Evaluate the subject at `evaluation.place` as if it were the only one."""
    learned = loaded.subjects[evaluation.place]
    own = replace(evaluation, outdir=evaluation.out / learned.name)
    evaluate(own, networks, replace(loaded, subjects=(learned,)))
    result = json.loads((own.out / "metrics.json").read_text(encoding="utf-8"))
    photographs = next(iter(find_subject(own, learned.class_word).references.values()))
    pictures = sorted((own.out / "subject").glob("*.png"))
    return Measured(learned, result, features(networks, pictures), features(networks, photographs))


def alike(one: Measured, other: Measured) -> float | None:
    """Mean DINO of the photographs of `one` against those of `other`.

    Of one subject, each against its others; None if it has a single one.
    """
    if one is not other:
        return float(subject_fidelity(one.photographs, other.photographs).mean())
    return float(real_fidelity(one.photographs).mean()) if len(one.photographs) > 1 else None


def features(networks: Networks, paths: Sequence[Path]) -> Tensor:
    """DINO features of the pictures at `paths`, [N, D]."""
    return networks.dino.images(map(load_image, paths))


def confusion(measured: Sequence[Measured]) -> list[list[float]]:
    """Row i, column j: mean DINO of the pictures of subject i against the photographs of subject j."""
    photographs = [one.photographs for one in measured]
    return [[float(column.mean()) for column in likeness(one.pictures, photographs)] for one in measured]


def nearest(measured: Sequence[Measured]) -> list[list[float]]:
    """Row i, column j: share of the pictures of subject i that are likest (DINO) to the photographs of subject j."""
    photographs = [one.photographs for one in measured]
    return [shares_of_likest(one.pictures, photographs) for one in measured]


def shares_of_likest(pictures: Tensor, photographs: Sequence[Tensor]) -> list[float]:
    """Shares of `pictures` that are likest to each subject's photographs; all are DINO features, [N, D]."""
    likest = torch.stack(likeness(pictures, photographs)).argmax(dim=0)
    return (likest.bincount(minlength=len(photographs)) / len(likest)).tolist()


def likeness(pictures: Tensor, photographs: Sequence[Tensor]) -> list[Tensor]:
    """DINO of each of N pictures against each subject's photographs: [N] for each subject."""
    return [subject_fidelity(pictures, those) for those in photographs]


def measure_pairs(
    evaluation: Evaluation, networks: Networks, loaded: LoadedModel, measured: Sequence[Measured]
) -> list[Pair]:
    """Pictures of every two subjects together: mean DINO with each subject, and the mean of the lower of both."""
    found: list[Pair] = []
    for (i, one), (j, other) in combinations(enumerate(measured), 2):
        items = pair_items(evaluation, one.learned, other.learned)
        draw(loaded, items, evaluation)
        pictures = features(networks, [item.path for item in items])
        with_one, with_other = (subject_fidelity(pictures, m.photographs) for m in (one, other))
        texts = networks.clip.texts([item.text for item in items])
        clip = networks.clip.images(load_image(item.path) for item in items)
        found.append(
            {
                "subjects": (i, j),
                "dino": (float(with_one.mean()), float(with_other.mean())),
                "dino_lower": float(with_one.minimum(with_other).mean()),
                "clip_t": float(prompt_fidelity(clip, texts).mean()),
                "images": [str(item.path.relative_to(evaluation.out)) for item in items],
            }
        )
    return found


def pair_items(evaluation: Evaluation, one: Learned, other: Learned) -> list[Item]:
    """The pictures to draw of two subjects together."""
    sampling, items = evaluation.config["sampling"], []
    folder = evaluation.out / "pairs" / f"{one.name}-{other.name}"
    for place, template in enumerate(evaluation.config["pair_prompts"]):
        prompt = template.format(*(f"{named.placeholder} {named.class_word}" for named in (one, other)))
        text = template.format(*(with_article(named.class_word or "thing") for named in (one, other)))
        for k in range(sampling["images_per_prompt"]):
            path = folder / f"{place:02d}-{k}.png"
            items.append(Item("subject", prompt, text, sampling["seed"] + k, path))
    return items


Table = list[list[str]]
"""Rows of cells; the first row has the titles, each first cell the name of its row."""


def tables_of(result: Together, measured: Sequence[Measured]) -> list[tuple[str, Table]]:
    """The tables with their titles."""
    names = [f"{one.learned.placeholder} {one.learned.class_word or ''}".strip() for one in measured]
    rows = [["", *(metric.title for metric in METRICS.values())]]
    for name, one in zip(names, measured, strict=True):
        rows.append([name, *(number(one.result["metrics"][key]["value"]) for key in METRICS)])
    against = [["", *names]]
    against += [[name, *map(number, row)] for name, row in zip(names, result["confusion"], strict=True)]
    against += [
        [f"photographs of {name}", *map(number, row)]
        for name, row in zip(names, result["photographs"], strict=True)
    ]
    shares = [["", *names]]
    shares += [[name, *map(number, row)] for name, row in zip(names, result["nearest"], strict=True)]
    pairs = [["", "DINO, first", "DINO, second", "DINO, the lower", "CLIP-T"]]
    for pair in result["pairs"]:
        i, j = pair["subjects"]
        values = [*pair["dino"], pair["dino_lower"], pair["clip_t"]]
        pairs.append([f"{names[i]} and {names[j]}", *map(number, values)])
    return [
        ("each subject alone", rows),
        ("DINO of the pictures of the row's subject against the photographs of the column's", against),
        (
            "share of the pictures of the row's subject that are likest to the photographs of the column's",
            shares,
        ),
        ("two subjects in one picture", pairs),
    ]


def as_text(rows: Table) -> str:
    """A table for the terminal."""
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def report(result: Together, measured: Sequence[Measured], out: Path) -> str:
    """The page: tables, links to the subjects' pages, and the pictures of every two subjects."""

    def names(pair: Pair) -> str:
        return " and ".join(measured[place].learned.placeholder for place in pair["subjects"])

    return render(
        "several.html",
        title="Evaluation of several subjects",
        data=result,
        links=[(f"{one.learned.name}/report.html", one.learned.placeholder) for one in measured],
        tables=tables_of(result, measured),
        pairs=[
            (names(pair), [figure(out / name, f"{names(pair)}: {name}") for name in pair["images"]])
            for pair in result["pairs"]
        ],
    )
