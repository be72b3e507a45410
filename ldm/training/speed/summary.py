"""The rows of all rounds as one table."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]
"""A row returned by a measurement, or a line of the summary."""

HEADER = (
    "| what | variant | ms (least to most) | times as fast | images/s | GFLOP | of fp32 matmul | peak GB | note |",
    "|---|---|---|---|---|---|---|---|---|",
)


def summarize(rows: Mapping[tuple[str, str], Sequence[Row]]) -> list[Row]:
    """One line per (group, variant) from its rows, one per round.

    Seconds are the median; `times_as_fast` is the median over rounds of the ratio to the group's first variant in the
    same round, of those that have both; `share_of_...` are relative to the machine's rates, if those were measured.
    """
    rates = {
        variant: work(found[0]) / statistics.median(row["seconds"] for row in found)
        for (group, variant), found in rows.items()
        if group == "machine"
    }
    first: dict[str, Sequence[Row]] = {}
    for (group, _), found in rows.items():
        first.setdefault(group, found)
    return [line_of(group, variant, found, first[group], rates) for (group, variant), found in rows.items()]


def line_of(
    group: str, variant: str, found: Sequence[Row], first: Sequence[Row], rates: Mapping[str, float]
) -> Row:
    """One line of the summary. first: rows of the group's first variant; rates: the machine's, by variant."""
    seconds = [row["seconds"] for row in found]
    median = statistics.median(seconds)
    line: Row = {"group": group, "variant": variant, "seconds": median}
    line |= {"least": min(seconds), "most": max(seconds)}
    line["peak_bytes"] = max((row["peak_bytes"] for row in found if "peak_bytes" in row), default=None)
    if group not in ("machine", "memory"):
        ratios = [
            speed(ours) / speed(theirs) for theirs, ours in zip(first[: len(found)], found, strict=True)
        ]
        line["times_as_fast"] = statistics.median(ratios)
    if found[0].get("images"):
        line["images_per_second"] = found[0]["images"] / median
    if found[0].get("flops"):
        line["flops"] = found[0]["flops"]
        line |= share("share_of_fp32_matmul", line["flops"] / median, group, rates, "matmul", "float32")
    if found[0].get("bytes"):
        line["bytes_per_second"] = found[0]["bytes"] / median
        line |= share("share_of_copy", line["bytes_per_second"], group, rates, "copy")
    if "largest_difference" in found[0]:
        line["largest_difference"] = max(row["largest_difference"] for row in found)
        line["mean_difference"] = max(row["mean_difference"] for row in found)
    return line


def share(key: str, rate: float, group: str, rates: Mapping[str, float], *words: str) -> Row:
    """{key: `rate` / the machine's rate whose name contains all `words`}; empty for the machine itself."""
    matching = [value for name, value in rates.items() if all(word in name for word in words)]
    return {key: rate / matching[0]} if matching and group != "machine" else {}


def work(row: Row) -> float:
    """FLOPs or bytes per repeat."""
    return row.get("flops") or row["bytes"]


def speed(row: Row) -> float:
    """Images per second, or repeats per second if there are no images."""
    return (row.get("images") or 1) / row["seconds"]


def table(summary: Sequence[Row], title: str) -> str:
    """The summary as a Markdown table under `title`."""
    return "\n".join([title, "", *HEADER, *(cells(row) for row in summary)])


def cells(row: Row) -> str:
    """A line of the table."""
    spread = f"{1e3 * row['seconds']:.0f} ({1e3 * row['least']:.0f} to {1e3 * row['most']:.0f})"
    figures = [
        shown(row.get("times_as_fast"), "{:.2f}"),
        shown(row.get("images_per_second"), "{:.1f}"),
        shown(row.get("flops"), "{:.1f}", 1e9),
        shown(row.get("share_of_fp32_matmul"), "{:.0%}"),
        shown(row.get("peak_bytes"), "{:.2f}", 1e9),
    ]
    return "| " + " | ".join([row["group"], row["variant"], spread, *figures, note(row)]) + " |"


def note(row: Row) -> str:
    """Figures without a column of their own."""
    if row["group"] == "machine" and "flops" in row:
        return f"{row['flops'] / row['seconds'] / 1e12:.2f} TFLOP/s"
    if "bytes_per_second" in row:
        share = f", {row['share_of_copy']:.0%} of the copy's" if "share_of_copy" in row else ""
        return f"{row['bytes_per_second'] / 1e9:.2f} GB/s{share}"
    if "largest_difference" not in row:
        return ""
    return f"pictures differ by {row['largest_difference']}/255, {row['mean_difference']:.2f} on average"


def shown(value: float | None, pattern: str, unit: float = 1) -> str:
    """`value` in `unit`; empty for None."""
    return "" if value is None else pattern.format(value / unit)


def title_of(model: str, rounds: int, repeats: int) -> str:
    """The table's title: model, machine, date, rounds and repeats."""
    return f"{model} on {machine_name()}, {date.today()}; {rounds} rounds of {repeats} repeats"


def machine_name() -> str:
    """GPU, or number of cores and processor; torch's version."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    return f"{os.cpu_count()} cores of {model}, torch {torch.__version__}"
