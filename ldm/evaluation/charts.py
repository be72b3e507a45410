"""SVG charts, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ldm.pages.plots import axis

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 24, 52
"""Margins of the axes, px."""
LEGEND, LINE = 390, 19
"""Width of a legend and height of its lines, px."""
COLOURS = ("#2563eb", "#d92d20", "#079455", "#7a5af8", "#e3820b", "#0e9384", "#c11574", "#667085")


@dataclass(frozen=True)
class Mark:
    """A point of a scatter chart."""

    x: float
    y: float
    label: str
    group: int
    """Number of its colour."""
    hollow: bool = False


class Axes:
    """The axes of a chart that shows `points` (x, y)."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self.x_low, self.x_high, self.x_ticks = axis([x for x, _ in points])
        self.y_low, self.y_high, self.y_ticks = axis([y for _, y in points])

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The position of (x, y) in px."""
        across = LEFT + (x - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - self.y_low) / (self.y_high - self.y_low) * (
            HEIGHT - TOP - BOTTOM
        )

    def drawn(self, x_label: str, y_label: str) -> list[str]:
        """Grid, ticks and labels."""
        parts = []
        for tick in self.x_ticks:
            x, _ = self.place(tick, self.y_low)
            parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#e4e7ec"/>')
            parts.append(text(x, HEIGHT - BOTTOM + 18, f"{tick:.4g}", "middle", "#667085"))
        for tick in self.y_ticks:
            _, y = self.place(self.x_low, tick)
            parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e4e7ec"/>')
            parts.append(text(LEFT - 8, y + 4, f"{tick:.4g}", "end", "#667085"))
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, "middle", "#000"))
        parts.append(
            f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
            f"{escape(y_label)}</text>"
        )
        return parts


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#344054") -> str:
    """An SVG text."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}</text>'


def svg(parts: Sequence[str], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The whole file."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' font-family="system-ui, sans-serif" font-size="12"><rect width="100%" height="100%" fill="#fff"/>'
    )
    return head + "".join(parts) + "</svg>\n"


def path_chart(
    points: Sequence[tuple[float, float, str]], x_label: str, y_label: str, marked: int | None = None
) -> str:
    """A chart of labelled points (x, y, label), connected in order.

    marked: index of a point to highlight.
    """
    axes = Axes([(x, y) for x, y, _ in points])
    parts = axes.drawn(x_label, y_label)
    places = [axes.place(x, y) for x, y, _ in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#98a2b3" stroke-width="1.5"/>')
    for index, ((x, y), (_, _, label)) in enumerate(zip(places, points, strict=True)):
        fill, radius = (COLOURS[1], 6) if index == marked else (COLOURS[0], 4)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"/>')
        parts.append(text(x + 8, y - 7, label))
    return svg(parts)


def scatter_chart(marks: Sequence[Mark], x_label: str, y_label: str, line: tuple[float, str] | None) -> str:
    """A chart of numbered points with a legend beside it.

    line: an x to draw a dashed line at, and what it is.
    """
    lines = [] if line is None else [(line[0], marks[0].y)]
    axes = Axes([*((mark.x, mark.y) for mark in marks), *lines])
    parts = axes.drawn(x_label, y_label)
    if line is not None:
        x, _ = axes.place(line[0], axes.y_low)
        parts.append(f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#344054" stroke-dasharray="4 4"/>')
        parts.append(text(x - 6, TOP + 12, line[1], "end"))
    taken = [axes.place(mark.x, mark.y) for mark in marks]
    for number, mark in enumerate(marks, start=1):
        x, y = axes.place(mark.x, mark.y)
        parts.append(dot(x, y, mark))
        side = free_side(x, y, taken)
        taken.append(side)
        parts.append(text(side[0], side[1] + 4, str(number), "middle"))
        below = TOP + LINE * number
        parts.append(dot(WIDTH + 8, below - 4, mark) + text(WIDTH + 20, below, f"{number}  {mark.label}"))
    return svg(parts, WIDTH + LEGEND, max(HEIGHT, TOP + LINE * (len(marks) + 1)))


def free_side(x: float, y: float, taken: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The position beside (x, y), for a number, that is farthest from what is `taken`."""

    def room(spot: tuple[float, float]) -> float:
        near = min(math.dist(spot, other) for other in taken)
        return min(near, 12)  # px; the first that is clear will do

    return max([(x + 13, y), (x - 13, y), (x, y - 13), (x, y + 13)], key=room)


def dot(x: float, y: float, mark: Mark) -> str:
    """The circle of `mark` at (x, y), px."""
    colour = COLOURS[mark.group % len(COLOURS)]
    fill = "#fff" if mark.hollow else colour
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="{colour}" stroke-width="2"/>'
