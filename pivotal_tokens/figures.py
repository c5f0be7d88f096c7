"""Plotly figures as parts of a page that fetches nothing: text first, then plotly, then figures.

Compiling and running plotly's library (4.8 MB) takes longer than all else on a page together. It
stands at the page's end as inert text and is run once the page is painted; the figures have their
places by then, so nothing moves.

    body = figure_html(figure, 0) + plotly_html()
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT = 450
"""Pixels of a figure that does not say; plotly's own."""
DRAW = """addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
const library = document.createElement("script");
library.textContent = document.getElementById("plotly").textContent;
document.head.append(library);
for (const place of document.querySelectorAll(".plotly-graph-div")) {
const figure = JSON.parse(document.getElementById(`${place.id}-data`).textContent);
place.textContent = "";
Plotly.newPlot(place, figure.data, figure.layout, { displaylogo: false, responsive: true });
}
})));"""


def figure_html(figure: Figure, number: int) -> str:
    """A figure's place and, beside it, its data; text in these cannot end their element.

    Args:
        figure: What is drawn there.
        number: Another one for every figure of a page.
    """
    height = figure.layout.height or HEIGHT
    return (
        f'<div id="figure-{number}" class="plotly-graph-div" style="height:{height:.0f}px">'
        f'{escape(_spoken(figure))}</div>\n<script type="application/json" '
        f'id="figure-{number}-data">{figure.to_json()}</script>'
    )


def plotly_html() -> str:
    """Plotly's library and what draws the figures: the last part of a page that has any."""
    from plotly.offline import get_plotlyjs

    library = f'<script type="text/plain" id="plotly">{get_plotlyjs()}</script>'
    return f"{library}\n<script>{DRAW}</script>"


def _spoken(figure: Figure) -> str:
    """What stands in a figure's place until it is drawn."""
    return f"{figure.layout.title.text or 'A figure'}: it is being drawn."
