"""A benchmark over many subjects: means over subjects as in the paper's tables, and differences of variants."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict

from ldm.evaluation.metrics import METRICS
from ldm.evaluation.report import Line, published_lines
from ldm.evaluation.scores import Result
from ldm.evaluation.statistics import Estimate, mean, outermost, summary

Cell = tuple[str, int]
"""A subject's name and the number of the repetition, each with its own seeds."""

Results = Mapping[Cell, Result]
"""The content of metrics.json for every cell of one variant."""


class Means(TypedDict):
    """The subjects of one variant, and the means over them by metric."""

    subjects: list[str]
    metrics: Mapping[str, Estimate]
    real: Mapping[str, Estimate]


def means(results: Results) -> Means:
    """Each metric's mean over subjects and seeds, with its 95 % interval (see `interval_levels`)."""
    one = next(iter(results.values())) if len(results) == 1 else None
    ours = {key: one["metrics"][key] if one else _over_cells(results, "metrics", key) for key in METRICS}
    real = {
        key: _over_cells(results, "real", key)
        for key, metric in METRICS.items()
        if metric.of_real is not None
    }
    return {"subjects": sorted({name for name, _ in results}), "metrics": ours, "real": real}


def differences(results: Results, reference: Results) -> dict[str, Estimate]:
    """Each metric's mean of `results` minus `reference`, paired by subject and seed, with its 95 % interval.

    Only cells in both are compared. For a single cell, the interval is over prompts, and metrics of the class,
    which has one prompt, have none.
    """
    both = [cell for cell in results if cell in reference]
    if len(both) == 1:
        return {key: _over_prompts(results[both[0]], reference[both[0]], key) for key in METRICS}
    found = {}
    for key in METRICS:
        pairs = [
            [_number(side[cell]["metrics"][key]["value"]) for side in (results, reference)] for cell in both
        ]
        found[key] = summary([ours - theirs for ours, theirs in pairs], interval_levels(both))
    return found


def prompts_csv(variants: Mapping[str, Results]) -> str:
    """CSV of every variant's metrics by prompt, means over subjects and seeds: which prompts a method fails at.

    `number` is the prompt's place in the protocol, `prompt` its text for the first subject.
    """
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["variant", "number", "kind", "prompt", "count", *METRICS])
    for variant, results in variants.items():
        first = next(iter(results.values()), None)
        for number, prompt in enumerate(first["prompts"] if first else ()):
            same = [
                result["prompts"][number] for result in results.values() if number < len(result["prompts"])
            ]
            means = [mean([_number(one[key]) for one in same]) for key in METRICS]
            lines.writerow([variant, number, prompt["kind"], prompt["prompt"], len(same), *means])
    return out.getvalue()


def interval_levels(cells: Sequence[Cell]) -> Sequence[object] | None:
    """The units that an interval over `cells` resamples: subjects with all their seeds, or a single subject's seeds.

    Resampling prompts and images within a subject too would count their spread twice, since the subject's mean
    already contains it: 99 of 100 such intervals contain the truth.
    """
    return outermost([name for name, _ in cells], [seed for _, seed in cells])


def is_significant(difference: Estimate) -> bool:
    """Whether a difference has an interval, which does not contain zero."""
    low, high = difference.get("low"), difference.get("high")
    return low is not None and high is not None and not low <= 0 <= high


def _over_cells(results: Results, part: Literal["metrics", "real"], key: str) -> Estimate:
    values = [_number(result[part][key]["value"]) for result in results.values()]
    return summary(values, interval_levels(list(results)))


def _over_prompts(result: Result, reference: Result, key: str) -> Estimate:
    kind = METRICS[key].images
    sides = [
        [prompt[key] for prompt in side["prompts"] if prompt["kind"] == kind] for side in (result, reference)
    ]
    values = [_number(ours) - _number(theirs) for ours, theirs in zip(*sides, strict=True)]
    return summary(values)


def table_rows(
    variants: Mapping[str, Means],
    titles: Mapping[str, str],
    published: Sequence[Mapping[str, object]],
) -> list[Line]:
    """Rows (name, metrics, kind) of the benchmark's table: our variants, real images, the paper's rows."""
    rows = [
        (
            f"{titles[name]} ({_subjects(len(variant['subjects']))})",
            variant["metrics"],
            "base" if name == "base" else "ours",
        )
        for name, variant in variants.items()
        if variant["subjects"]
    ]
    largest = max(variants.values(), key=lambda variant: len(variant["subjects"]))
    return [*rows, ("Real images", largest["real"], "real"), *published_lines(published)]


def markdown(
    rows: Sequence[Line],
    div: str,
    differences: Mapping[str, Mapping[str, Estimate]] | None = None,
    reference: str = "",
) -> str:
    """Markdown tables of the rows and of the variants' differences from `reference`. div: how DIV is measured."""
    texts = [
        _markdown_table({name: values for name, values, _ in rows}),
        f"DIV of our rows: {div}; the paper's: LPIPS.",
    ]
    if differences:
        texts.append(
            f"Differences from: {reference}, paired by subject and seed. Bold: the interval excludes zero; the "
            "other differences may be chance."
        )
        texts.append(_markdown_table(differences, signed=True))
    return "\n\n".join(texts) + "\n"


def _markdown_table(rows: Mapping[str, Mapping[str, Estimate]], signed: bool = False) -> str:
    """Metrics by row. signed: for differences, with signs, bold if significant."""
    lines = [
        "| | " + " | ".join(metric.title for metric in METRICS.values()) + " |",
        "|---|" + "---:|" * len(METRICS),
    ]
    for name, values in rows.items():
        cells = [_cell(values.get(key), signed) for key in METRICS]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(found: Estimate | None, signed: bool) -> str:
    text = interval_text(found, signed)
    return f"**{text}**" if found and signed and is_significant(found) else text


def interval_text(found: Estimate | None, signed: bool) -> str:
    """A mean with its interval, as tables have it; empty if nothing was measured. signed: for differences."""
    if found is None or found["value"] is None:
        return ""
    sign = "+" if signed else ""
    text = f"{found['value']:{sign}.3f}"
    low, high = found.get("low"), found.get("high")
    if low is not None and high is not None and low < high:
        text += f" ({low:{sign}.3f} to {high:{sign}.3f})"
    return text


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _subjects(count: int) -> str:
    return f"{count} subject{'' if count == 1 else 's'}"
