"""Charts as SVG: no plotting library needed, sharp at any size, in the page's colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Bar:
    """One bar; `low` and `high`: its interval, if any. kind: "ours", "real" or "paper"."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "ours"


def bar_chart(title: str, bars: Sequence[Bar], width: int = 520) -> str:
    """Horizontal bars from 0 with interval whiskers and the values as text."""
    left, right, row, top = 232, 56, 24, 8
    height = top + row * len(bars)
    span = max([0.01, *(bar.high if bar.high is not None else bar.value for bar in bars)])
    scale = (width - left - right) / span
    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">']
    for index, bar in enumerate(bars):
        middle = top + row * index + row / 2 - 2
        end = left + max(bar.value, 0) * scale
        parts.append(f'<text class="label" x="{left - 10}" y="{middle + 4:.1f}">{escape(bar.label)}</text>')
        parts.append(
            f'<rect class="{bar.kind}" x="{left}" y="{middle - 7:.1f}" width="{end - left:.1f}" height="14" rx="2"/>'
        )
        if bar.low is not None and bar.high is not None:
            low, high = left + max(bar.low, 0) * scale, left + max(bar.high, 0) * scale
            parts.append(
                f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{high:.1f}'
                f'M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"/>'
            )
            end = max(end, high)
        parts.append(f'<text class="value" x="{end + 7:.1f}" y="{middle + 4:.1f}">{bar.value:.3f}</text>')
    return "".join(parts) + "</svg>"


def path_chart(
    points: Sequence[tuple[float, float, str]], x_label: str, y_label: str, marked: int | None = None
) -> str:
    """Labelled points (x, y, label) joined in order; `marked`: index of a point to highlight."""
    width, height, left, right, top, bottom = 640, 420, 70, 30, 24, 52
    x_low, x_high, x_ticks = _axis([x for x, _, _ in points])
    y_low, y_high, y_ticks = _axis([y for _, y, _ in points])

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - x_low) / (x_high - x_low) * (width - left - right)
        return across, height - bottom - (y - y_low) / (y_high - y_low) * (height - top - bottom)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for tick in x_ticks:
        x, _ = place(tick, y_low)
        parts.append(f'<path d="M{x:.1f} {top}V{height - bottom}" stroke="#e4e7ec"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#667085">{tick:.4g}</text>'
        )
    for tick in y_ticks:
        _, y = place(x_low, tick)
        parts.append(f'<path d="M{left} {y:.1f}H{width - right}" stroke="#e4e7ec"/>')
        parts.append(
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end" fill="#667085">{tick:.4g}</text>'
        )
    parts.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text transform="translate(18 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    places = [place(x, y) for x, y, _ in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#98a2b3" stroke-width="1.5"/>')
    for index, ((x, y), (_, _, label)) in enumerate(zip(places, points, strict=True)):
        fill, radius = ("#d92d20", 6) if index == marked else ("#2563eb", 4)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y - 7:.1f}" fill="#344054">{escape(label)}</text>')
    return "".join(parts) + "</svg>\n"


def _axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    """Lower end, upper end and round ticks of an axis that covers `values`."""
    low, high = min(values), max(values)
    span = (high - low) or 0.1 * abs(high) or 1.0
    low, high = low - 0.08 * span, high + 0.08 * span
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= rough)
    ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
    return low, high, [tick * step for tick in ticks]
