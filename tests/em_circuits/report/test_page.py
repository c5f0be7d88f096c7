"""Pages that open without a network."""

import re

import plotly.graph_objects as go

from em_circuits.report import Table, page_html, write_page


def test_a_page_fetches_nothing_and_shows_text_as_text(tmp_path) -> None:
    figures = [go.Figure(go.Scatter(x=[0], y=[1])) for _ in range(2)]
    table = Table("a <caption>", ("name", "value"), (("<b>", 0.5), ("none", None), ("n", 3)))
    path = tmp_path / "new" / "page.html"
    write_page(path, "A & B", ["<script>alert(1)</script>", *figures, table])
    text = path.read_text(encoding="utf-8")
    assert "<title>A &amp; B</title>" in text and "<script>alert" not in text
    assert '<td class="text">&lt;b&gt;</td><td>0.500</td>' in text and "<td>-</td>" in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r"\b(src|href)\s*=|@import|url\(", markup)
    assert not re.search(r"<script[^>]+src", text)
    assert {f'id="figure-{i}"' in text for i in range(2)} == {True}
    assert text.count("plotly.js v") == 1  # the library stands in it once


def test_a_page_without_figures_is_small() -> None:
    assert len(page_html("Nothing", ["to see"])) < 3000
