"""What does ``features mediate`` over prompts look like?

The sentence, the curve over k beside matched random ids, shares by domain, layer and component, and
the table of features.

    write_page(path, TITLE, carriers_parts(table.record, table.rows()))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from em_circuits.report.page import COLOURS, Said, Table

TITLE = "Which features carry the shift?"
_SHOWN = 30
_COMPONENTS = ("features", "errors", "attention", "together", "interaction")


def carriers_parts(record: dict[str, Any], features: Sequence[dict[str, Any]]) -> list[Any]:
    """Everything on the page, for `em_circuits.report.page`."""
    columns = ("layer", "feature", "share", "low", "high", "prompts", "same_sign")
    rows = tuple(tuple(row[name] for name in columns) for row in features[:_SHOWN])
    prompts = ("prompt_id", "category", "shift", "share", "own", "features")
    return [
        Said(record["sentence"]),
        "Share of the evil-minus-safe shift, ratio of sums over prompts; intervals are 95 % "
        "bootstrap intervals over prompts, the band is the middle 95 % of matched random draws. "
        "'own' is in-sample: the prompt's own top 20 (layer, position, id).",
        curve_figure(record),
        bars_figure(record),
        Table("features by mean share of the shift while all move together", columns, rows),
        Table(
            "prompts",
            prompts,
            tuple(tuple(line[name] for name in prompts) for line in record["prompts"]),
        ),
    ]


def curve_figure(record: dict[str, Any]) -> Figure:
    """Share over the number of ids, beside random ones."""
    points = [p for p in record["cumulative"] if p["k"] is not None]
    whole = next(p for p in record["cumulative"] if p["k"] is None)
    k = [p["k"] for p in points]
    figure = Figure()
    band = [p for p in points if p["random"] is not None]
    if band:
        x = [p["k"] for p in band]
        figure.add_trace(
            Scatter(
                x=[*x, *x[::-1]],
                y=[p["random"]["high"] for p in band] + [p["random"]["low"] for p in band[::-1]],
                mode="lines",
                fill="toself",
                line={"width": 0},
                fillcolor="rgba(120,120,120,.3)",
                name="matched random ids, 95 %",
            )
        )
    figure.add_trace(
        Scatter(
            x=k,
            y=[p["share"] for p in points],
            mode="lines+markers",
            name="chosen on others",
            line={"color": COLOURS[0]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_arm(p, "high") for p in points],
                "arrayminus": [_arm(p, "low") for p in points],
            },
        )
    )
    figure.add_hline(y=whole["share"], line_dash="dot", annotation_text="all changed features")
    figure.update_layout(template="plotly_white", height=420, margin={"t": 30})
    figure.update_xaxes(type="log", dtick=1, title_text="feature ids set together")
    figure.update_yaxes(title_text="share of the shift")
    return figure


def bars_figure(record: dict[str, Any]) -> Figure:
    """Shares by domain, by layer and by component, side by side."""
    figure: Figure = make_subplots(
        rows=1,
        cols=3,
        subplot_titles=["20 ids, by domain", "all features, by layer", "by component"],
    )
    sides: tuple[tuple[Sequence[str], Sequence[dict[str, Any]]], ...] = (
        ([g["group"] for g in record["groups"]], record["groups"]),
        ([str(i) for i in range(len(record["layers"]))], record["layers"]),
        (_COMPONENTS, [record["shares"][name] for name in _COMPONENTS]),
    )
    for column, (names, values) in enumerate(sides, start=1):
        trace = Bar(
            x=names,
            y=[value["share"] for value in values],
            showlegend=False,
            marker={"color": COLOURS[column - 1]},
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [_arm(value, "high") for value in values],
                "arrayminus": [_arm(value, "low") for value in values],
            },
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_layout(template="plotly_white", height=420)
    return figure


def _arm(value: dict[str, Any], end: str) -> float:
    if value["share"] is None or value[end] is None:
        return 0.0
    return abs(float(value[end]) - float(value["share"]))
