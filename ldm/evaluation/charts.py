"""SVG charts, without a plotting library."""

from collections.abc import Sequence
from html import escape

from ldm.pages.plots import axis


def path_chart(
    points: Sequence[tuple[float, float, str]],
    x_label: str,
    y_label: str,
    marked: int | None = None,
    joined: bool = True,
) -> str:
    """A chart of labelled points (x, y, label).

    marked: index of a point to highlight. joined: connect the points in order.
    """
    width, height, left, right, top, bottom = 640, 420, 70, 30, 24, 52
    x_low, x_high, x_ticks = axis([x for x, _, _ in points])
    y_low, y_high, y_ticks = axis([y for _, y, _ in points])

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
    if joined:
        parts.append(f'<polyline points="{line}" fill="none" stroke="#98a2b3" stroke-width="1.5"/>')
    for index, ((x, y), (_, _, label)) in enumerate(zip(places, points, strict=True)):
        fill, radius = ("#d92d20", 6) if index == marked else ("#2563eb", 4)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{fill}"/>')
        parts.append(f'<text x="{x + 8:.1f}" y="{y - 7:.1f}" fill="#344054">{escape(label)}</text>')
    return "".join(parts) + "</svg>\n"
