"""The benchmark as one HTML page: the paper's table with our rows, then every subject."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm.evaluation.benchmark import Results, means
from ldm.evaluation.charts import Bar
from ldm.evaluation.metrics import METRICS
from ldm.evaluation.page import page
from ldm.evaluation.report import chart_card, score_table


def benchmark_page(
    folder: Path,
    rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]],
    done: Mapping[str, Results],
    titles: Mapping[str, str],
    data: Mapping[str, Any],
) -> str:
    """rows: lines of the table; data: what benchmark.json holds; done: results by variant, whose reports
    lie below `folder`."""
    some = next(result for results in done.values() for result in results.values())
    names = sorted({name for results in done.values() for name, _ in results})
    body = [
        "<h1>DreamBooth benchmark</h1>",
        f'<p class="lead">{len(names)} subjects: {escape(", ".join(names))}.</p>',
        f'<p class="note">DIV here is {escape(some["networks"]["div"])}; the paper has LPIPS. The figures of the '
        "paper come from its own networks and subjects: compare differences rather than values.</p>",
        '<h2>Means over subjects</h2><p class="soft">Intervals: 95 %, bootstrap over subjects; of a '
        "single one over its seeds, or its prompts.</p>",
        score_table(rows),
        _charts(rows),
        _differences(data, titles),
        "<h2>Subject by subject</h2>",
    ]
    for name in names:
        own = {
            variant: {cell: result for cell, result in results.items() if cell[0] == name}
            for variant, results in done.items()
        }
        lines = [
            (titles[variant], means(results)["metrics"], "") for variant, results in own.items() if results
        ]
        links = ", ".join(_link(variant, titles[variant], *cell) for variant in own for cell in own[variant])
        body.append(f"<h3>{escape(name)}</h3>{score_table(lines)}<p>Images: {links}</p>")
    return page("DreamBooth benchmark", "".join(body), data)


def _charts(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]]) -> str:
    cards = []
    for key, metric in METRICS.items():
        bars = [
            Bar(name.partition(" (")[0], values[key]["value"], values[key]["low"], values[key]["high"], kind)
            for name, values, kind in rows
            if kind != "paper" and values.get(key, {}).get("value") is not None
        ]
        if bars:
            cards.append(chart_card(metric, bars))
    return f'<div class="charts">{"".join(cards)}</div>'


def _link(variant: str, title: str, name: str, seed: int) -> str:
    """To the report of one evaluation."""
    folder = f"{variant}/{name}/seed-{seed}" if seed else f"{variant}/{name}"
    text = f"{title}, seed {seed}" if seed else title
    return f'<a href="{escape(folder)}/evaluation/report.html">{escape(text)}</a>'


def _differences(data: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    if not data["differences"]:
        return ""
    lines = [(name, found, "ours") for name, found in data["differences"].items()]
    return (
        f"<h2>Differences from: {escape(titles[data['reference']])}</h2>"
        '<p class="soft">Paired by subject and seed. Where the interval holds zero, no difference was shown.</p>'
        f"{score_table(lines)}"
    )
