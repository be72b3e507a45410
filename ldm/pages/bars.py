"""Bar charts with intervals, and scatter plots; `templates/parts.html` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ldm.pages.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Frame, Point, axis


@dataclass(frozen=True)
class Bar:
    """One bar from 0. low, high: its interval, if any. kind: "ours", "base" or "real"."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "ours"


@dataclass(frozen=True)
class Bars:
    """Bars of one metric on one axis."""

    title: str
    hint: str
    """Such as "higher is better"."""
    bars: Sequence[Bar]

    def percent(self, value: float) -> float:
        """Position of `value` on the axis, in percent of its length."""
        longest = max([0.01, *(bar.value if bar.high is None else bar.high for bar in self.bars)])
        return round(100 * min(max(value, 0.0), longest) / longest, 2)


@dataclass(frozen=True)
class Dot:
    """One point of a scatter plot, in the plot's pixels."""

    x: float
    y: float
    label: str
    kind: int


@dataclass(frozen=True, kw_only=True)
class Plane(Frame):
    """A scatter plot: one quantity against another."""

    y_label: str
    dots: Sequence[Dot]
    names: Sequence[tuple[str, int]]
    """The legend: names, and the numbers of their colours."""
    summary: str


def plane(
    title: str,
    hint: str,
    x_label: str,
    y_label: str,
    points: Sequence[tuple[str, Sequence[tuple[float, float, str]]]],
) -> Plane | None:
    """The scatter plot of groups of points (x, y, label), each with a name; None for fewer than two points."""
    flat = [point for _, group in points for point in group]
    if len(flat) < 2:
        return None
    x_low, x_high, x_ticks = axis([x for x, _, _ in flat])
    y_low, y_high, y_ticks = axis([y for _, y, _ in flat])

    def place(x: float, y: float) -> Point:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(across, 1), round(up, 1)

    dots = [Dot(*place(x, y), label, kind) for kind, (_, group) in enumerate(points) for x, y, label in group]
    return Plane(
        title=title,
        hint=hint,
        x_label=x_label,
        y_label=y_label,
        dots=dots,
        x_ticks=[(place(tick, y_low)[0], f"{tick:g}") for tick in x_ticks],
        y_ticks=[(place(x_low, tick)[1], f"{tick:g}") for tick in y_ticks],
        names=[(name, kind) for kind, (name, group) in enumerate(points) if group],
        summary=f"{title}: "
        + "; ".join(f"{label}: {x_label} {x:.3f}, {y_label} {y:.3f}" for x, y, label in flat),
    )
