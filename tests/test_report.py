"""The report: one self-contained file with the JSON's numbers."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldm.config import load_settings
from ldm.data.images import image_files
from ldm.evaluation.charts import Bar, bar_chart, path_chart
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.protocol import Item
from ldm.evaluation.report import number, report
from ldm.evaluation.scores import Networks, score
from ldm.evaluation.settings import EvaluationSettings
from scripts.evaluate import CONFIG
from tests.tiny_features import tiny_features

DOG = Path(__file__).resolve().parents[1] / "assets" / "subject" / "dog"
HOSTILE = 'a [V] dog <!--<script> </script><script src="http://example.org/x.js"></script> & "more"'


class Page(HTMLParser):
    """What a page would fetch, its pictures, its data and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.pictures, self.data, self.text, self.open = [], [], "", [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            if values.get(name):
                kept = self.pictures if values[name].startswith("data:image/") else self.fetched
                kept.append(values[name])
        if tag in ("script", "style"):
            self.open = [tag, values.get("id")]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.open = []

    def handle_data(self, data):
        if self.open == ["script", "metrics"]:
            self.data += data
        elif not self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    clip, dino = tiny_features(tmp_path_factory.mktemp("features"))
    files = image_files(DOG)
    items = [Item("subject", HOSTILE, "a dog", seed, path) for seed, path in enumerate(files[:3])]
    items += [Item("subject", "a red [V] dog", "a red dog", 0, files[3])]
    items += [Item("class", "a dog", "a dog", seed, path) for seed, path in enumerate(files[3:])]
    result, rows = score(items, {"training": files}, Networks(Dino(str(dino)), Clip(str(clip))), root=DOG)
    about = {"model": "logs/<run>", "step": 300, "class_word": "dog", "identifier": "sks", "note": "a note"}
    about["real_images"] = {"training": [path.name for path in files]}
    return {"about": about, **result}, rows, files, load_settings([CONFIG], EvaluationSettings)["published"]


@pytest.fixture(scope="module")
def html(scored) -> str:
    result, rows, real, published = scored
    return report(result, rows, DOG, real, published)


def test_the_page_needs_nothing_else(html):
    page = Page(html)
    assert page.fetched == []
    assert "http://" not in html.replace("http://example.org/x.js", "").replace("http://www.w3.org", "")
    assert "url(" not in html
    assert "@import" not in html


def test_the_pages_numbers_are_the_jsons(scored, html):
    result, rows, _, published = scored
    page = Page(html)
    assert json.loads(page.data) == result
    text = " ".join(page.text)
    for values in (result["metrics"], result["real"]):
        for key in ("dino", "clip_i"):
            assert all(number(values[key][part]) in text for part in ("value", "low", "high"))
    assert all(number(row.scores["clip_t"]) in text for row in rows if row.kind == "subject")
    assert all(number(row["dino"]) in text for row in published)
    assert result["networks"]["div"] in text
    assert "a note".capitalize() in text


def test_every_image_is_inside(scored, html):
    _, rows, real, _ = scored
    subject = [row for row in rows if row.kind == "subject"]
    strips = 2 * len(subject)  # best and worst, as there are fewer than a strip holds
    assert len(Page(html).pictures) == len(real) + len(rows) + strips


def test_prompts_cannot_become_markup(html):
    """In a browser "<!--<script>" inside a script element would swallow its end, and the rest of the page."""
    page = Page(html)
    assert "example.org" in " ".join(page.text)
    assert "<" not in page.data
    assert "<!--" not in html


def test_what_was_not_measured_is_a_dash(scored):
    result, rows, real, published = copy.deepcopy(scored)
    for key in ("pres", "class_clip_t", "class_div"):
        result["metrics"][key] = {"value": None, "low": None, "high": None, "count": 0}
    html = report(result, [row for row in rows if row.kind == "subject"], DOG, real, published)
    assert "nan" not in " ".join(Page(html).text).lower().split()
    assert "PRES was not measured" in html


def test_charts_are_drawings_of_their_numbers():
    chart = bar_chart("t", [Bar("<ours>", 0.5, 0.4, 0.6), Bar("paper", 0.25, kind="paper")])
    assert "0.500" in chart
    assert "&lt;ours&gt;" in chart
    widths = [float(part.split('"')[0]) for part in chart.split('width="')[1:]]
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.1)
    assert path_chart([(0.1, 0.5, "step 0"), (0.1, 0.5, "step 5")], "x", "y", marked=1).count("<circle") == 2
