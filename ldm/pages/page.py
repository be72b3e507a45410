"""Self-contained HTML pages from templates: style, script and pictures are inside, and nothing is fetched."""

import functools
import json
import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ldm.pages.plots import thinned

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, title: str, data: object, **values: object) -> str:
    """A whole page from `templates/<template>`, with `values` under their names.

    data: embedded as JSON, so that the page's numbers can be read again; what is no finite number becomes null.
    """
    # Within a script element "</script" ends it, and "<!--<script>" keeps "</script>" from ending it.
    payload = json.dumps(_finite(data), default=str).replace("<", "\\u003c")
    return environment().get_template(template).render(title=title, payload=payload, **values)


@functools.cache
def environment() -> Environment:
    """The templates; every value is escaped, and a name that no value has is an error."""
    found = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"number": number, "size": size, "thinned": thinned}
    return found


def number(value: float | None, digits: int = 3) -> str:
    """`digits` decimals, or a dash for what was not measured."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def size(count: float) -> str:
    """Bytes as people say them."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _finite(value: object) -> object:
    """`value` as JSON has it: browsers read neither NaN nor Infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
