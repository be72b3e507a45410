"""The report: one self-contained file with the JSON's numbers."""

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ldm.config import load_settings
from ldm.data.images import image_files
from ldm.evaluation.charts import path_chart
from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.protocol import Item
from ldm.evaluation.report import changes_look, extremes, notes, number, report
from ldm.evaluation.scores import Networks, Row, score
from ldm.evaluation.settings import EvaluationSettings
from ldm.pages.bars import Bar, Bars
from ldm.pages.page import environment
from scripts.evaluate import CONFIG
from tests.browser import assert_sound, chromium
from tests.tiny_features import tiny_features

DOG = Path(__file__).resolve().parents[1] / "assets" / "subject" / "dog"
__all__ = ["chromium"]

HOSTILE = 'a [V] dog <!--<script> </script><script src="http://example.org/x.js"></script> & "more"'


class Page(HTMLParser):
    """What a page would fetch, its pictures, its data, the points of its curves and its visible text."""

    def __init__(self, text: str):
        super().__init__()
        self.fetched, self.pictures, self.data, self.text, self.open = [], [], "", [], []
        self.curves, self.is_one_word = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            if values.get(name):
                kept = self.pictures if values[name].startswith("data:image/") else self.fetched
                kept.append(values[name])
        self.is_one_word |= tag == "wbr"
        if "data-points" in values:
            self.curves.append(json.loads(values["data-points"]))
        if tag in ("script", "style"):
            self.open = [tag, values.get("id")]

    def handle_endtag(self, tag):
        if tag in ("script", "style"):
            self.open = []

    def handle_data(self, data):
        if self.open == ["script", "metrics"]:
            self.data += data
        elif self.is_one_word:
            self.text[-1] += data
            self.is_one_word = False
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
    strips = 2 * len({row.prompt for row in subject})  # best and worst: one image a prompt
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
    chart = Bars("t", "", [Bar("<ours>", 0.5, 0.4, 0.625), Bar("base", 0.25, kind="base")])
    assert [chart.percent(bar.value) for bar in chart.bars] == [80, 40]
    drawn = environment().get_template("parts.html").module.bars_card(chart)
    assert "0.500" in drawn
    assert "&lt;ours&gt;" in drawn
    assert re.search(r'class="whisker" style="left: 64.0%; right: 0.0%"', drawn)
    assert path_chart([(0.1, 0.5, "step 0"), (0.1, 0.5, "step 5")], "x", "y", marked=1).count("<circle") == 2


def row(file, prompt, dino, clip_t):
    return Row(file, "subject", prompt, prompt, 0, 0, {"dino": dino, "clip_t": clip_t})


def test_best_and_worst_are_one_image_a_prompt_and_fair_to_those_that_change_the_look():
    rows = [row(f"snow-{k}.png", "a [V] dog in the snow", 0.9 + k / 100, 0.8 + k / 100) for k in range(4)]
    rows += [
        row("lost.png", "a [V] dog on the beach", 0.2, 0.3),
        row("moon.png", "a [V] dog on the moon", 0.7, 0.7),
    ]
    rows += [row("red.png", "a red [V] dog", 0.4, 0.9), row("blue.png", "a blue [V] dog", 0.3, 0.2)]
    best, worst = extremes(rows)
    assert {one.prompt for one in best} == {one.prompt for one in rows}
    assert len(best) == len(worst) == 5
    assert [one.file for one in best[:2]] == ["red.png", "snow-3.png"]
    assert {one.file for one in worst[:2]} == {
        "lost.png",
        "blue.png",
    }  # and not the red dog that is asked for


@pytest.mark.parametrize(
    ("prompt", "changes"),
    [
        ("a photo of a red [V] dog", True),
        ("a cube shaped [V] dog", True),
        ("a photo of [V] dog at night", False),
        ("a [V] dog wearing a red hat", False),
        ("a red dog", False),
    ],
)
def test_prompts_that_ask_for_another_look(prompt, changes):
    assert changes_look(prompt) == changes


def test_a_score_above_the_real_images_own_is_explained(scored):
    result = copy.deepcopy(scored[0])
    result["base"] = result["metrics"]
    result["metrics"]["clip_i"]["value"], result["real"]["clip_i"]["value"] = 0.95, 0.9
    result["metrics"]["dino"]["value"], result["real"]["dino"]["value"] = 0.7, 0.9
    (note,) = notes(result)
    assert note.startswith("CLIP-I is above the real images' own (0.950 against 0.900)")
    del result["base"]
    assert "base was not measured" in notes(result)[-1]


def test_the_papers_figures_are_folded_away_and_share_no_axis(scored):
    result, rows, real, published = copy.deepcopy(scored)
    result["base"] = {key: {**of, "value": 0.123} for key, of in result["metrics"].items()}
    html = report(result, rows, DOG, real, published)
    bars = "".join(re.findall(r'<ul class="bars">.*?</ul>', html, re.S))
    assert "Imagen" not in bars
    assert "The untrained base" in bars
    assert "0.123" in bars
    folded = re.search(r"<details><summary>The paper.s figures</summary>.*?</details>", html, re.S)
    assert folded
    assert "Imagen" in folded[0]
    assert "Imagen" not in html.replace(folded[0], "")


def test_in_a_browser(html, tmp_path, chromium):
    path = tmp_path / "report.html"
    path.write_text(html)
    assert_sound(chromium, path)
