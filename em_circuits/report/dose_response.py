"""How does an effect grow with the strength of the treatment?

One picture per mode, unit and class of positions: strength across, change of evil mass up, one line
per combination of features, a band for the net interval, and the matched random control dotted.

    for figure in dose_response(summary["conditions"]): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from em_circuits.report.page import COLOURS


def dose_response(conditions: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """Figures of the conditions that have a strength; those without have no dose."""

    def key(line: Mapping[str, Any]) -> tuple[str, str, str]:
        return str(line["mode"]), str(line["unit"]), str(line["place"])

    dosed = [line for line in conditions if line["value"] is not None]
    for (mode, unit, place), group in groupby(sorted(dosed, key=key), key):
        lines = list(group)
        if len({line["value"] for line in lines}) > 1:
            yield _figure(lines, mode, unit, place)


def _figure(lines: Sequence[Mapping[str, Any]], mode: str, unit: str, place: str) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, name in enumerate(dict.fromkeys(line["combination"] for line in lines)):
        mine = sorted(
            (line for line in lines if line["combination"] == name), key=lambda line: line["value"]
        )
        colour = COLOURS[number % len(COLOURS)]
        doses = [line["value"] for line in mine]
        up = [line["high"] - line["net"] for line in mine]
        down = [line["net"] - line["low"] for line in mine]
        figure.add_scatter(
            x=doses,
            y=[line["net"] for line in mine],
            error_y={"array": up, "arrayminus": down, "symmetric": False, "thickness": 1},
            name=name,
            mode="lines+markers",
            line={"color": colour},
        )
        figure.add_scatter(
            x=doses,
            y=[line["control"] for line in mine],
            name=f"{name}, random",
            mode="lines",
            line={"color": colour, "dash": "dot", "width": 1},
            showlegend=False,
        )
    what = "times the feature's own activation" if unit == "own" else ""
    figure.add_hline(y=0, line_width=1, line_color="#999")
    figure.update_layout(
        title=f"{mode}, at {place}: net change of evil mass (dotted: matched random)",
        xaxis_title=f"{'factor' if mode == 'scale' else 'value'} {what}".strip(),
        yaxis_title="net change of evil mass",
        template="plotly_white",
        height=380,
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
    )
    return figure
