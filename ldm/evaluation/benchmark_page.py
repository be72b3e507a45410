"""The benchmark as one HTML page: the table of means, with the paper's folded away, and every subject."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from ldm.evaluation.benchmark import Means, Results, means
from ldm.evaluation.metrics import METRICS
from ldm.evaluation.report import Line, charts, class_kept
from ldm.evaluation.statistics import Estimate
from ldm.pages.page import render


class Content(TypedDict):
    """The content of benchmark.json."""

    variants: Mapping[str, Means]
    reference: str
    differences: Mapping[str, Mapping[str, Estimate]]


def benchmark_page(
    rows: Sequence[Line], done: Mapping[str, Results], titles: Mapping[str, str], data: Content
) -> str:
    """The page.

    rows: of the table. data: the content of benchmark.json. done: results by variant, whose reports are in subfolders
    of the page's folder.
    """
    some = next(result for results in done.values() for result in results.values())
    names = sorted({name for results in done.values() for name, _ in results})
    measured = [(name.partition(" (")[0], values, kind) for name, values, kind in rows if kind != "paper"]
    points = [
        (
            titles[variant],
            [(result["metrics"], f"{titles[variant]}: {name}") for (name, _), result in own.items()],
        )
        for variant, own in done.items()
    ]
    return render(
        "benchmark.html",
        title="DreamBooth benchmark",
        data=data,
        names=names,
        div=some["networks"]["div"],
        metrics=list(METRICS.values()),
        lines=[row for row in rows if row[2] != "paper"],
        published=[row for row in rows if row[2] == "paper"],
        charts=charts(measured),
        plane=class_kept(points),
        reference=titles[data["reference"]],
        differences=[(name, found, "") for name, found in data["differences"].items()],
        subjects=[_subject(name, done, titles) for name in names],
    )


def _subject(name: str, done: Mapping[str, Results], titles: Mapping[str, str]) -> dict[str, object]:
    """Name, lines of a table, and links to the reports of one subject."""
    own = {
        variant: {cell: result for cell, result in results.items() if cell[0] == name}
        for variant, results in done.items()
    }
    return {
        "name": name,
        "lines": [
            (titles[variant], means(results)["metrics"], "") for variant, results in own.items() if results
        ],
        "links": [_link(variant, titles[variant], *cell) for variant in own for cell in own[variant]],
    }


def _link(variant: str, title: str, name: str, seed: int) -> tuple[str, str]:
    """Address and name of the report of one evaluation."""
    folder = f"{variant}/{name}/seed-{seed}" if seed else f"{variant}/{name}"
    return f"{folder}/evaluation/report.html", f"{title}, seed {seed}" if seed else title
