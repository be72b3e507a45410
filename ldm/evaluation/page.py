"""The frame of a self-contained HTML page: style and script are inline, nothing is fetched."""

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.data.images import load_image

STYLE = """
:root { --ink: #182230; --soft: #667085; --line: #e4e7ec; --paper: #fff; --wash: #f7f8fa; --ours: #2563eb;
  --real: #0f9d76; --other: #c3c9d4; --warn: #fff8e6; --warn-line: #f5d78e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #98a2b3; --line: #2c3442; --paper: #11161f;
  --wash: #1a212d; --ours: #6b9bff; --real: #3ec79c; --other: #475467; --warn: #2b2617; --warn-line: #6b5a22; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; }
p { margin: 4px 0 12px; max-width: 76ch; }
.soft, .lead { color: var(--soft); }
.note { background: var(--warn); border: 1px solid var(--warn-line); border-radius: 8px; padding: 10px 14px;
  margin: 16px 0; max-width: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); font-size: 13px; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
tr.ours td { font-weight: 600; background: var(--wash); }
td small { font-weight: 400; color: var(--soft); display: block; font-size: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 18px 28px;
  margin-top: 12px; }
.card { border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px 8px; }
.chart { width: 100%; height: auto; display: block; font-size: 12.5px; }
.chart .label { text-anchor: end; fill: var(--soft); }
.chart .value { fill: var(--ink); font-variant-numeric: tabular-nums; }
.chart .ours { fill: var(--ours); } .chart .real { fill: var(--real); } .chart .paper { fill: var(--other); }
.chart .whisker { stroke: var(--ink); stroke-width: 1.4; fill: none; }
.row { display: grid; grid-template-columns: repeat(auto-fill, minmax(122px, 1fr)); gap: 14px 12px;
  margin: 8px 0 20px; }
figure { margin: 0; }
figure img { width: 100%; aspect-ratio: 1; object-fit: cover; border-radius: 6px; display: block;
  background: var(--wash); }
figcaption { font-size: 12px; color: var(--soft); line-height: 1.35; padding-top: 4px;
  font-variant-numeric: tabular-nums; }
figcaption b { color: var(--ink); font-weight: 600; }
.prompt { display: grid; grid-template-columns: 260px 1fr; gap: 8px 24px; padding: 14px 0;
  border-top: 1px solid var(--line); }
.prompt dl { display: grid; grid-template-columns: auto 1fr; gap: 0 12px; margin: 6px 0 0; font-size: 13px; }
.prompt dt { color: var(--soft); } .prompt dd { margin: 0; font-variant-numeric: tabular-nums; }
.prompt .row { margin: 0; }
.bar { display: flex; gap: 10px; flex-wrap: wrap; justify-content: space-between;
  align-items: end; margin-bottom: 8px; } .bar h2 { margin-bottom: 0; }
select { font: inherit; font-size: 14px; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 8px; }
details { margin-top: 12px; } summary { cursor: pointer; font-weight: 600; }
pre { background: var(--wash); border-radius: 8px; padding: 12px; overflow-x: auto; font-size: 12.5px; }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media (max-width: 720px) { .prompt { grid-template-columns: 1fr; } .charts { grid-template-columns: 1fr; } }
"""

SCRIPT = """
const order = document.getElementById("order"), list = document.getElementById("prompts");
if (order) order.onchange = () => {
  const [key, sign] = order.value.split(" ");
  [...list.children].sort((a, b) => (a.dataset[key] - b.dataset[key]) * sign).forEach(e => list.append(e));
};
"""


def page(title: str, body: str, data: Mapping[str, Any]) -> str:
    """A complete page. `data` is embedded as JSON, so that programs can read its numbers."""
    # In a script element "</script" ends it, and "<!--<script>" prevents "</script>" from ending it.
    payload = json.dumps(data).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{body}</main>"
        f'<script type="application/json" id="metrics">{payload}</script><script>{SCRIPT}</script></body></html>\n'
    )


def picture(path: Path, alt: str, caption: str, side: int = 256) -> str:
    """A figure with an inline image, at most `side` px. `caption` is HTML."""
    image = load_image(path)
    buffer = io.BytesIO()
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=88)
    else:
        image.save(buffer, "PNG", optimize=True)
    kind = "jpeg" if buffer.getvalue()[:2] == b"\xff\xd8" else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<figure><img src="{source}" alt="{escape(alt)}" title="{escape(alt)}" loading="lazy">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
