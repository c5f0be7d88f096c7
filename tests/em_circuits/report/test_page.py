"""Pages that open without a network."""

import re

import plotly.graph_objects as go
import pytest
from markupsafe import Markup

from em_circuits.report.page import (
    Code,
    Heading,
    Headline,
    Table,
    error_bars,
    page_html,
    write_page,
)
from pivotal_tokens.artefacts import provenance_path


def test_a_page_fetches_nothing_and_shows_text_as_text(tmp_path) -> None:
    figures = [go.Figure(go.Scatter(x=[0], y=[1])) for _ in range(2)]
    table = Table("a <caption>", ("name", "value"), (("<b>", 0.5), ("none", None), ("n", 3)))
    path = tmp_path / "new" / "page.html"
    write_page(path, "A & B", ["<script>alert(1)</script>", *figures, table], inputs={}, config={})
    assert provenance_path(path).is_file()
    text = path.read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text and "<script>alert" not in text
    assert '<td class="text">&lt;b&gt;</td><td>0.500</td>' in text and "<td>-</td>" in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"\b(src|href)\s*=|@import|url\(", markup)
    assert not re.search(r"<script[^>]+src", text)
    assert {f'id="figure-{i}"' in text for i in range(2)} == {True}
    assert text.count("plotly.js v") == 1  # the library stands in it once


def test_no_script_runs_before_the_text_stands() -> None:
    """Plotly in the head: a report's first word came after 2 s."""
    bars = go.Bar(x=["</script><b>"], y=[1])
    evil = go.Figure(bars, layout={"title": "a <b>", "height": 333})
    html = page_html("t", [evil, "the last word"])
    place, data = html.index('style="height:333px"'), html.index("\\u003c\\u002fscript\\u003e")
    inert, run = html.index('<script type="text/plain" id="plotly"'), html.index("<script>addEvent")
    assert place < data < html.index("the last word") < inert < run
    assert html.count("</script>") == 3 and "a &lt;b&gt;" in html


def test_a_page_without_figures_is_small() -> None:
    assert len(page_html("Nothing", ["to see"])) < 3000


def test_every_part_is_shown_as_what_it_is() -> None:
    """A headline stood on pages as ``Headline(text=...)``."""
    html = page_html("t", [Heading("one <"), Headline("two"), Code("three"), "four"])
    assert "<h2>one &lt;</h2>" in html and '<p class="said">two</p>' in html
    assert '<pre tabindex="0">three</pre>' in html and "<p>four</p>" in html


def test_cells_are_short_and_escaped() -> None:
    rows = ((0.12345, None), (True, "<i>"), (Markup("<b>"), 1))
    html = page_html("t", [Table("t", ("a", "b"), rows)])
    assert "<td>0.123</td><td>-</td>" in html and "<td>yes</td>" in html and "&lt;i&gt;" in html
    assert '<td class="text"><b></td><td>1</td>' in html


def test_bars_reach_the_ends_of_an_interval_and_nowhere_without_one() -> None:
    bars = error_bars([0.5, 0.2, None], [0.1, None, 0.0], [0.6, 0.1, 1.0])
    assert bars["array"] == pytest.approx([0.1, 0, 0])
    assert bars["arrayminus"] == pytest.approx([0.4, 0, 0])
