"""The evaluation as one HTML page: the paper's rows beside ours, bars with intervals, every image with its scores."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldm.evaluation.charts import Bar, bar_chart
from ldm.evaluation.metrics import METRICS, Metric
from ldm.evaluation.page import page, picture
from ldm.evaluation.scores import Row

SHOWN = 8
"""Images in each of the strips of best and worst."""


def report(
    result: Mapping[str, Any],
    rows: Sequence[Row],
    root: Path,
    real: Sequence[Path],
    published: Sequence[Mapping[str, Any]],
) -> str:
    """The page. result: what metrics.json holds; rows: one an image, files relative to `root`; real: the
    photographs that the scores are against; published: rows of the paper's tables."""
    about = result["about"]
    subject = [row for row in rows if row.kind == "subject"]
    bare = [row for row in rows if row.kind == "class"]
    body = [
        f"<h1>DreamBooth evaluation: {escape(about['class_word'])}</h1>",
        f'<p class="lead">{escape(_lead(about, subject, bare))}</p>',
        f'<p class="note">{escape(_sentence(about["note"]))}</p>',
        _real_images(about, result, real),
        "<h2>Scores</h2>",
        f'<p class="soft">{escape(_explanation(result))}</p>',
        score_table(
            [
                ("This evaluation", result["metrics"], "ours"),
                ("Real images of the subject", result["real"], "real"),
                *published_lines(published),
            ]
        ),
        _charts(result, published),
        _extremes(subject, root),
        _prompts(result, subject, root),
        _class_images(result, bare, root),
        _details(result),
    ]
    return page(f"Evaluation: {about['class_word']}", "".join(body), result)


def score_table(lines: Sequence[tuple[str, Mapping[str, Mapping[str, Any]], str]]) -> str:
    """A table of metrics with their intervals. A line is (name, metrics, kind); kind "ours" stands out."""
    head = "".join(
        f"<th>{metric.title} {'↓' if metric.lower_is_better else '↑'}</th>" for metric in METRICS.values()
    )
    body = "".join(_line(*line) for line in lines)
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def published_lines(published: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, Any], str]]:
    """The paper's rows as lines of `score_table`."""
    return [
        (
            f"Paper, table {row['table']}: {row['name']}",
            {key: {"value": row.get(key)} for key in METRICS},
            "paper",
        )
        for row in published
    ]


def number(value: float | None) -> str:
    """Three decimals, or a dash for what was not measured."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"


def _line(name: str, values: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    cells = []
    for key in METRICS:
        of = values.get(key, {})
        interval = (
            f"<small>{number(of['low'])} to {number(of['high'])}</small>" if of.get("low") is not None else ""
        )
        cells.append(f"<td>{number(of.get('value'))}{interval}</td>")
    return f'<tr class="{kind}"><td>{escape(name)}</td>{"".join(cells)}</tr>'


def _lead(about: Mapping[str, Any], subject: Sequence[Row], bare: Sequence[Row]) -> str:
    what = about.get("model") or about.get("images")
    step = f", step {about['step']:,}" if about.get("step") else ""
    word = f", identifier “{about['identifier']}”" if about.get("identifier") else ""
    prompts = len({row.prompt for row in subject})
    return f"{what}{step}{word}. {len(subject)} images of {prompts} prompts, {len(bare)} of the bare class."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _explanation(result: Mapping[str, Any]) -> str:
    networks = result["networks"]
    names = {key: networks[key]["network"] for key in ("dino", "clip")} | {"div": networks["div"]}
    sentences = [metric.explanation.format(**names) for metric in METRICS.values() if metric.explanation]
    return " ".join(
        [
            *sentences,
            "Intervals: 95 %, bootstrap over prompts; of the bare class, which has one prompt, over images.",
            "The paper's figures come from its own networks and subjects: compare differences rather than values.",
        ]
    )


def _real_images(about: Mapping[str, Any], result: Mapping[str, Any], real: Sequence[Path]) -> str:
    name = next(iter(about["real_images"])).replace("_", " ")
    figures = "".join(picture(path, path.name, escape(path.name)) for path in real)
    compared = [metric for metric in METRICS.values() if metric.of_real is not None]
    against = "".join(
        f"<tr><td>{escape(key.replace('_', ' '))} ({value['images']})</td>"
        + "".join(f"<td>{number(value[metric.key])}</td>" for metric in compared)
        + "</tr>"
        for key, value in result["against"].items()
    )
    both = ""
    if len(result["against"]) > 1:
        titles = "".join(f"<th>{metric.title}</th>" for metric in compared)
        both = f"<table><tr><th>Fidelity against images</th>{titles}</tr>{against}</table>"
    return f'<h2>Real images ({escape(name)})</h2><div class="row">{figures}</div>{both}'


def _charts(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for key, metric in METRICS.items():
        bars = []
        for label, values, kind in (
            ("this evaluation", result["metrics"], "ours"),
            ("real images", result["real"], "real"),
        ):
            of = values.get(key, {})
            if of.get("value") is not None:
                bars.append(Bar(label, of["value"], of["low"], of["high"], kind))
        bars += [
            Bar(f"paper: {row['name'].replace('Stable Diffusion', 'SD')}", row[key], kind="paper")
            for row in published
            if row.get(key) is not None and (row["table"] == 1 or key in ("pres", "div"))
        ]
        note = f"; ours: {result['networks']['div']}; the paper's: LPIPS" if key == "div" else ""
        if bars:
            cards.append(chart_card(metric, bars, note))
    return f'<div class="charts">{"".join(cards)}</div>'


def chart_card(metric: Metric, bars: Sequence[Bar], note: str = "") -> str:
    """A chart of one metric under its title; note: what follows "lower is better" or "higher is better"."""
    hint = ("lower" if metric.lower_is_better else "higher") + " is better" + note
    return (
        f'<div class="card"><h3>{metric.title} <span class="soft">{escape(hint)}</span></h3>'
        f"{bar_chart(metric.title, bars)}</div>"
    )


def _extremes(subject: Sequence[Row], root: Path) -> str:
    """The images that do best and worst at both tasks at once: the subject (DINO) and the prompt (CLIP-T)."""
    ordered = sorted(
        zip(_mean_ranks(subject), subject, strict=True), key=lambda pair: (pair[0], pair[1].file)
    )
    strips = []
    for title, chosen in (("Best", ordered[:SHOWN]), ("Worst", ordered[::-1][:SHOWN])):
        figures = "".join(_figure(row, root, prompt=True) for _, row in chosen)
        strips.append(f'<h3>{title}</h3><div class="row">{figures}</div>')
    explain = "By the mean of an image's ranks in DINO (is it the subject?) and CLIP-T (is it the prompt?)."
    return f'<h2>Best and worst</h2><p class="soft">{explain}</p>{"".join(strips)}'


def _mean_ranks(rows: Sequence[Row]) -> list[float]:
    ranks = [0.0] * len(rows)
    for key in ("dino", "clip_t"):
        order = sorted(range(len(rows)), key=lambda index: -rows[index].scores[key])
        for rank, index in enumerate(order):
            ranks[index] += rank / 2
    return ranks


def _prompts(result: Mapping[str, Any], subject: Sequence[Row], root: Path) -> str:
    sections = []
    of_subject = [prompt for prompt in result["prompts"] if prompt["kind"] == "subject"]
    for place, prompt in enumerate(of_subject):
        figures = "".join(_figure(row, root) for row in subject if row.prompt == prompt["prompt"])
        scores = "".join(
            f"<dt>{metric.title}</dt><dd>{number(prompt[key])}</dd>"
            for key, metric in METRICS.items()
            if metric.images == "subject"
        )
        sections.append(
            f'<section class="prompt" data-place="{place}" data-dino="{prompt["dino"]}"'
            f' data-clipt="{prompt["clip_t"]}">'
            f"<div><h3>{escape(prompt['prompt'])}</h3><dl>{scores}</dl></div>"
            f'<div class="row">{figures}</div></section>'
        )
    orders = {
        "place 1": "in the protocol's order",
        "dino -1": "best DINO first",
        "dino 1": "worst DINO first",
        "clipt -1": "best CLIP-T first",
        "clipt 1": "worst CLIP-T first",
    }
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in orders.items())
    return (
        f'<div class="bar"><h2>All images, by prompt</h2><select id="order" aria-label="order">{options}</select></div>'
        f'<div id="prompts">{"".join(sections)}</div>'
    )


def _class_images(result: Mapping[str, Any], bare: Sequence[Row], root: Path) -> str:
    if not bare:
        return (
            '<h2>Images of the bare class</h2><p class="soft">None were given, so PRES was not measured.</p>'
        )
    metrics = result["metrics"]
    figures = "".join(
        picture(root / row.file, row.file, f"PRES <b>{number(row.scores['pres'])}</b>")
        for row in sorted(bare, key=lambda row: -row.scores["pres"])
    )
    scores = ", ".join(
        f"{metric.title} {number(metrics[key]['value'])}"
        for key, metric in METRICS.items()
        if metric.images == "class"
    )
    return (
        f"<h2>Images of the bare class</h2><p>“{escape(bare[0].prompt)}”: {scores}. Those most like the subject come "
        f'first.</p><div class="row">{figures}</div>'
    )


def _figure(row: Row, root: Path, prompt: bool = False) -> str:
    words = f"<br>{escape(row.text)}" if prompt else ""
    scores = "<br>".join(
        f"{metric.title} <b>{number(row.scores[key])}</b>"
        for key, metric in METRICS.items()
        if metric.images == "subject" and not metric.compares_images
    )
    caption = scores + words
    return picture(root / row.file, f"{row.prompt} (seed {row.seed})", caption)


def _details(result: Mapping[str, Any]) -> str:
    shown = {"about": result["about"], "networks": result["networks"]}
    return (
        "<h2>How it was measured</h2><details><summary>Networks, preprocessing, sampling, files</summary>"
        f"<pre>{escape(json.dumps(shown, indent=1))}</pre></details>"
        "<footer>Metrics and protocol: Ruiz et al., arXiv 2208.12242, section 4. This page's numbers are those of "
        "metrics.json; each image's are in images.csv.</footer>"
    )
