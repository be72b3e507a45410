"""The results of an evaluation: metrics.json, images.csv, report.html, and a table for the terminal."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.evaluation.metrics import METRICS
from ldm.evaluation.report import report
from ldm.evaluation.scores import FACTS, Result, Row
from ldm.files import replacing, write_json


def write(
    out: Path,
    result: Result,
    rows: Sequence[Row],
    real: Sequence[Path],
    published: Sequence[Mapping[str, object]],
) -> None:
    """Write the three files into `out`. Raises UserError if one cannot be written.

    Cells of images.csv are empty for metrics of the other kind of image. metrics.json is written last: if it exists,
    so do the others.
    """
    try:
        with replacing(out / "images.csv") as path, open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*FACTS, *METRICS])
            writer.writeheader()
            writer.writerows(row.cells() for row in rows)
        with replacing(out / "report.html") as path:
            path.write_text(report(result, rows, out, real, published), encoding="utf-8")
        write_json(out / "metrics.json", result)
    except OSError as error:
        raise UserError(f"the results cannot be written to {out} ({error})") from error


def table(result: Result, published: Sequence[Mapping[str, object]]) -> str:
    """The metrics and the paper's, as text."""
    rows: list[tuple[str, Mapping[str, object]]] = [
        ("this evaluation", {key: result["metrics"][key]["value"] for key in METRICS}),
        *(
            [("untrained base", {key: result["base"][key]["value"] for key in METRICS})]
            if "base" in result
            else []
        ),
        ("real images", {key: result["real"][key]["value"] for key in result["real"]}),
        *((f"paper, table {row['table']}: {row['name']}", row) for row in published),
    ]
    widths = {key: max(8, len(metric.title) + 2) for key, metric in METRICS.items()}
    lines = [f"{'':52}" + "".join(f"{metric.title:>{widths[key]}}" for key, metric in METRICS.items())]
    for name, values in rows:
        cells = {key: "" if values.get(key) is None else f"{values[key]:.3f}" for key in METRICS}
        lines.append(f"{name:52}" + "".join(f"{cells[key]:>{width}}" for key, width in widths.items()))
    return "\n".join([*lines, f"DIV: {result['networks']['div']}; the paper's is LPIPS"])
