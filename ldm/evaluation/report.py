"""The evaluation as one HTML page: scores next to the untrained base's, and every image with its scores."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.concepts import PLACEHOLDER
from ldm.evaluation.metrics import METRICS, Metric
from ldm.evaluation.scores import About, Result, Row
from ldm.evaluation.statistics import Estimate
from ldm.pages.bars import Bar, Bars, Plane, plane
from ldm.pages.page import render
from ldm.pages.pictures import Figure, figure

SHOWN = 8
"""Number of best and of worst images."""

Line = tuple[str, Mapping[str, Estimate], str]
"""A row of a table of metrics: name, metrics and kind; "ours" is highlighted."""


@dataclass(frozen=True)
class Shown:
    """An image on the page, with its scores."""

    figure: Figure
    prompt: str
    text: str
    scores: Mapping[str, float]


def report(
    result: Result,
    rows: Sequence[Row],
    root: Path,
    real: Sequence[Path],
    published: Sequence[Mapping[str, object]],
) -> str:
    """The page.

    result: the content of metrics.json. rows: one per image, with files relative to `root`. real: the reference
    photographs. published: rows of the paper's tables.
    """
    about = result["about"]
    subject = [row for row in rows if row.kind == "subject"]
    bare = sorted((row for row in rows if row.kind == "class"), key=lambda row: -row.scores["pres"])
    figures = {row.file: figure(root / row.file, f"{row.prompt} (seed {row.seed})") for row in rows}

    def shown(those: Sequence[Row]) -> list[Shown]:
        return [Shown(figures[row.file], row.prompt, row.text, row.scores) for row in those]

    of_subject = [metric for metric in METRICS.values() if metric.images == "subject"]
    best, worst = extremes(subject)
    return render(
        "evaluation.html",
        title=f"Evaluation: {about['class_word']}",
        data=result,
        result=result,
        about=about,
        lead=_lead(about, subject, bare),
        note=_sentence(about["note"]),
        real=[figure(path, path.name) for path in real],
        real_name=next(iter(about["real_images"])).replace("_", " "),
        against=result["against"],
        compared=[metric for metric in METRICS.values() if metric.of_real is not None],
        metrics=list(METRICS.values()),
        lines=lines(result),
        notes=notes(result),
        explanation=_explanation(result),
        published=published_lines(published),
        charts=charts(lines(result)),
        planes=_planes(result),
        extremes=[("Best", shown(best)), ("Worst", shown(worst))],
        of_subject=of_subject,
        of_one=[metric for metric in of_subject if not metric.compares_images],
        of_class=[metric for metric in METRICS.values() if metric.images == "class"],
        prompts=[
            {
                "prompt": prompt["prompt"],
                "scores": prompt,
                "rows": shown([row for row in subject if row.prompt == prompt["prompt"]]),
            }
            for prompt in result["prompts"]
            if prompt["kind"] == "subject"
        ],
        bare=shown(bare),
        details=json.dumps({"about": about, "networks": result["networks"]}, indent=1),
    )


def lines(result: Result) -> list[Line]:
    """Comparable rows: measured on the same prompts, by the same networks."""
    found: list[Line] = [("This evaluation", result["metrics"], "ours")]
    if "base" in result:
        found.append(("The untrained base", result["base"], "base"))
    return [*found, ("Real images of the subject", result["real"], "real")]


def published_lines(published: Sequence[Mapping[str, object]]) -> list[Line]:
    """The paper's rows."""
    return [
        (
            f"Paper, table {row['table']}: {row['name']}",
            {key: {"value": value} for key in METRICS if isinstance(value := row.get(key), int | float)},
            "paper",
        )
        for row in published
    ]


def notes(result: Result) -> list[str]:
    """Notes on scores that may be misread."""
    found = []
    for key, metric in METRICS.items():
        value = result["metrics"][key]["value"]
        real = result["real"][key]["value"] if key in result["real"] else None
        if value is not None and real is not None and value > real:
            found.append(
                f"{metric.title} is above the real images' own ({value:.3f} against {real:.3f}). That is no mistake:"
                " the photographs differ among themselves, in pose, place and light, and a sample may lie closer to"
                " their middle than they lie to one another. Their row is a yardstick here, not an upper bound."
            )
    if "base" not in result:
        found.append(
            "The untrained base was not measured, so nothing says how much of these scores was learnt;"
            " scripts/evaluate.py --ckpt BASE measures it, with --real and --class_word."
        )
    return found


def charts(rows: Sequence[Line]) -> list[Bars]:
    """A chart for each metric, with a bar for each of `rows` that has it."""
    found = []
    for key, metric in METRICS.items():
        bars = [
            Bar(name, value, of.get("low"), of.get("high"), kind)
            for name, values, kind in rows
            if (of := values.get(key)) and (value := of["value"]) is not None
        ]
        if bars:
            found.append(Bars(metric.title, direction(metric), bars))
    return found


def direction(metric: Metric) -> str:
    """The better direction, in words."""
    return f"{'lower' if metric.lower_is_better else 'higher'} is better"


def class_kept(groups: Sequence[tuple[str, Sequence[tuple[Mapping[str, Estimate], str]]]]) -> Plane | None:
    """Subject fidelity against preservation of the class. groups: metrics with labels, by name."""
    points = [
        (
            name,
            [
                (pres, dino, label)
                for of, label in group
                if (pres := of["pres"]["value"]) is not None and (dino := of["dino"]["value"]) is not None
            ],
        )
        for name, group in groups
    ]
    hint = "left: the class is kept; up: the subject is learnt"
    return plane("Fidelity against class kept", hint, "PRES", "DINO", points)


def _planes(result: Result) -> list[Plane]:
    groups = [("this evaluation", [(result["metrics"], "this evaluation")])]
    groups += [("the untrained base", [(result["base"], "the untrained base")])] if "base" in result else []
    prompts = [p for p in result["prompts"] if p["kind"] == "subject"]
    by_kind = [
        (name, [(p["clip_t"], p["dino"], p["text"]) for p in prompts if changes_look(p["prompt"]) == changed])
        for name, changed in (("places", False), ("another look", True))
    ]
    hint = "each point is a prompt"
    found = [class_kept(groups), plane("Subject against prompt", hint, "CLIP-T", "DINO", by_kind)]
    return [drawn for drawn in found if drawn]


def changes_look(prompt: str) -> bool:
    """Whether a prompt changes the subject's look: "a red [V] dog", but not "a photo of [V] dog"."""
    before = re.search(r"([\w-]+) " + re.escape(PLACEHOLDER), prompt)
    return before is not None and before[1].lower() not in ("a", "an", "the", "of", "my", "with", "and")


def extremes(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The best and the worst images by both subject (DINO) and prompt (CLIP-T), at most one per prompt."""
    ranks: dict[str, float] = {}
    for changed in (False, True):
        ranks |= _mean_ranks([row for row in rows if changes_look(row.prompt) == changed])
    ordered = sorted(rows, key=lambda row: (ranks[row.file], row.file))
    return _one_a_prompt(ordered)[:SHOWN], _one_a_prompt(ordered[::-1])[:SHOWN]


def _one_a_prompt(rows: Sequence[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return list(first.values())


def _mean_ranks(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of each image's ranks in DINO and CLIP-T, from 0 (best) to 1."""
    ranks = {row.file: 0.0 for row in rows}
    for key in ("dino", "clip_t"):
        for rank, row in enumerate(sorted(rows, key=lambda row: -row.scores[key])):
            ranks[row.file] += rank / 2 / max(1, len(rows) - 1)
    return ranks


def _lead(about: About, subject: Sequence[Row], bare: Sequence[Row]) -> str:
    what = about.get("model") or about.get("images")
    step = f", step {about['step']:,}" if about.get("step") else ""
    word = f", identifier “{about['identifier']}”" if about.get("identifier") else ""
    prompts = len({row.prompt for row in subject})
    return f"{what}{step}{word}. {len(subject)} images of {prompts} prompts, {len(bare)} of the bare class."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + "."


def _explanation(result: Result) -> list[str]:
    networks = result["networks"]
    feature_networks = {
        "dino": networks["dino"],
        "clip": networks["clip"],
        **networks.get("others", {}),
    }
    names = {key: facts["network"] for key, facts in feature_networks.items()} | {"div": networks["div"]}
    return [
        *(metric.explanation.format(**names) for metric in METRICS.values() if metric.explanation),
        "Intervals: 95 %, bootstrap over prompts; of the bare class, which has one prompt, over images.",
    ]


def number(value: float | None) -> str:
    """Three decimals; a dash if not measured."""
    return "–" if value is None or math.isnan(value) else f"{value:.3f}"
