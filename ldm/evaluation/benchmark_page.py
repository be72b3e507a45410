"""The benchmark as one HTML page: the paper's table with our rows, then every subject."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm.evaluation.charts import Bar
from ldm.evaluation.metrics import PAPER_METRICS
from ldm.evaluation.page import page
from ldm.evaluation.report import chart_card, score_table


def benchmark_page(
    folder: Path,
    rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]],
    done: Mapping[str, Mapping[str, Mapping[str, Any]]],
    titles: Mapping[str, str],
    data: Mapping[str, Any],
) -> str:
    """rows: lines of the table; done: results by variant and subject, whose reports lie below `folder`."""
    some = next(result for results in done.values() for result in results.values())
    names = sorted({name for results in done.values() for name in results})
    body = [
        "<h1>DreamBooth benchmark</h1>",
        f'<p class="lead">{len(names)} subjects: {escape(", ".join(names))}.</p>',
        f'<p class="note">DIV here is {escape(some["networks"]["div"])}; the paper has LPIPS. The figures of the '
        "paper come from its own networks and subjects: compare differences rather than values.</p>",
        '<h2>Means over subjects</h2><p class="soft">Intervals: 95 %, bootstrap over subjects.</p>',
        score_table(rows),
        _charts(rows),
        "<h2>Subject by subject</h2>",
    ]
    for name in names:
        lines = [
            (titles[variant], results[name]["metrics"], "")
            for variant, results in done.items()
            if name in results
        ]
        links = ", ".join(
            f'<a href="{escape(f"{variant}/{name}/evaluation/report.html")}">{escape(titles[variant])}</a>'
            for variant, results in done.items()
            if name in results
        )
        body.append(f"<h3>{escape(name)}</h3>{score_table(lines)}<p>Images: {links}</p>")
    return page("DreamBooth benchmark", "".join(body), data)


def _charts(rows: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]]) -> str:
    cards = []
    for key, metric in PAPER_METRICS.items():
        bars = [
            Bar(name.partition(" (")[0], values[key]["value"], values[key]["low"], values[key]["high"], kind)
            for name, values, kind in rows
            if kind != "paper" and values.get(key, {}).get("value") is not None
        ]
        if bars:
            cards.append(chart_card(metric, bars))
    return f'<div class="charts">{"".join(cards)}</div>'
