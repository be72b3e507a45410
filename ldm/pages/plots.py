"""The layout of line plots; `templates/parts.html` draws them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

WIDTH, HEIGHT = 520, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 34
MOST_POINTS = 400
"""Maximum number of points of a line, since a plot has few more pixels."""


@dataclass(frozen=True)
class Series:
    """One line: points (x, y), sorted by x."""

    name: str
    points: Sequence[Point]
    kind: int = 0
    """Number of its colour."""
    is_raw: bool = False
    """Drawn faintly behind the smoothed line; may extend beyond the plot."""
    has_dots: bool = False


@dataclass(frozen=True)
class Line:
    """A series, in the plot's pixels."""

    series: Series
    path: str
    dots: Sequence[Point]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Title, axes and geometry (in px) of a plot."""

    title: str
    hint: str
    """A note for the reader, such as "lower is better"."""
    x_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True, kw_only=True)
class Plot(Frame):
    """A line plot."""

    lines: Sequence[Line]
    x_range: Point
    legend: Sequence[Series] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """The plot in words, for screen readers."""
        ends = [
            f"{s.name} from {s.points[0][1]:.4g} to {s.points[-1][1]:.4g}" for s in self.legend if s.points
        ]
        return (
            f"{self.title}: {'; '.join(ends)}, over {self.x_label} {self.x_range[0]:g} to {self.x_range[1]:g}"
        )


def plot(title: str, series: Sequence[Series], x_label: str = "step", hint: str = "") -> Plot | None:
    """The plot of `series`; None if there is nothing to draw."""
    shown = [s for s in (_of_finite(s) for s in series) if s.points]
    if not any(len(s.points) > 1 or s.has_dots for s in shown):
        return None
    clear = [s for s in shown if not s.is_raw] or shown
    x_low, x_high = _ends([x for s in shown for x, _ in s.points])
    heights = [y for s in clear for _, y in s.points]
    heights += [y for s in shown if s.is_raw for y in _without_extremes([y for _, y in s.points])]
    y_low, y_high, y_ticks = axis(heights)
    if min(heights) >= 0 and y_low < 0.4 * max(heights):  # show a loss relative to 0
        y_low, y_high, y_ticks = axis([0.0, max(heights)], pad_low=0.0)

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    lines = []
    for s in shown:
        places = [place(point) for point in thinned(s.points)]
        path = " ".join(f"{x},{y}" for x, y in places)
        lines.append(Line(s, path, places if s.has_dots else ()))
    _, _, x_ticks = axis([x_low, x_high], pad_low=0.0, pad_high=0.0)
    return Plot(
        title=title,
        hint=hint,
        x_label=x_label,
        lines=lines,
        x_ticks=[(place((tick, y_low))[0], f"{tick:g}") for tick in x_ticks],
        y_ticks=[(place((x_low, tick))[1], f"{tick:.4g}") for tick in y_ticks],
        x_range=(x_low, x_high),
        legend=clear,
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The exponential moving average of y over a twentieth of the points, at least 5, with bias correction."""
    keep = 1 - 1 / max(5.0, len(points) / 20)
    total, weight, found = 0.0, 0.0, []
    for x, y in points:
        if math.isfinite(y):
            total, weight = keep * total + y, keep * weight + 1
        if weight:
            found.append((x, total / weight))
    return found


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """About `most` of `points` at most: the lowest and highest of each stretch."""
    if len(points) <= most:
        return list(points)
    length = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for first in range(0, len(points), length):
        part = points[first : first + length]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return kept


def axis(
    values: Sequence[float], pad_low: float = 0.06, pad_high: float = 0.06
) -> tuple[float, float, list[float]]:
    """Lower end, upper end and round ticks of an axis for `values`."""
    low, high = _ends(values)
    low, high = low - pad_low * (high - low), high + pad_high * (high - low)
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(times * power for times in (1, 2, 5, 10) if times * power >= 0.999 * rough)
    ticks = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return low, high, [round(tick * step, 12) for tick in ticks]


def _ends(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - (0.1 * abs(low) or 0.5), high + (0.1 * abs(high) or 0.5))


def _without_extremes(values: Sequence[float]) -> Sequence[float]:
    """All but the highest 2 %: single outliers would flatten the rest of the curve."""
    ordered = sorted(values)
    return ordered[: max(1, math.ceil(0.98 * len(ordered)))]


def _of_finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, points, series.kind, series.is_raw, series.has_dots)
