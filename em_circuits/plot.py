"""Plotly figures: rankings, mediation, dose-response, and features by layer and position.

em.plot.ranking(table)                     # bars, both ends
em.plot.layer_position(table)              # heat map: layer x position
em.plot.mediation(em.mediate(pair, prompt, words))
em.plot.dose_response({1.0: result, 2.0: result})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from plotly import graph_objects as go

from em_circuits.interventions.mediation import Mediation
from em_circuits.interventions.steer_result import SteerResult
from em_circuits.table import FeatureTable

EVIL, SAFE, RANDOM = "#b3480f", "#1f6fb2", "#8b857a"
"""Towards evil, towards safe, matched random: legible to colour-blind readers."""


def ranking(table: FeatureTable, n: int = 20) -> go.Figure:
    """The n largest scores of a table by magnitude, most positive first."""
    shown = table.largest(n).sorted_by(table.score)
    values = shown[table.score]
    figure = go.Figure(
        go.Bar(
            x=[str(feature) for feature in shown.features],
            y=values,
            marker_color=np.where(values >= 0, EVIL, SAFE),
        )
    )
    return _styled(
        figure,
        title=f"{len(shown)} of {len(table)} features, by {table.by}",
        x="layer/position/feature",
        y=f"{table.score} ({table.unit})",
    )


def layer_position(
    table: FeatureTable, tokens: Sequence[str] = (), *, column: str | None = None
) -> go.Figure:
    """Heat map of a table's absolute scores, summed by layer and position.

    Args:
        table: Of features at positions.
        tokens: Texts of the prompt's tokens, for the axis.
        column: Which figure; the table's score if not given.
    """
    column = column or table.score
    layers, positions = table["layer"], table["position"]
    n_layers = int(layers.max()) + 1 if len(table) else 1
    n_pos = max(len(tokens), int(positions.max()) + 1 if len(table) else 1)
    total = np.zeros((n_layers, n_pos))
    np.add.at(total, (layers, positions), np.abs(np.nan_to_num(table[column].astype(float))))
    names = [f"{i} {text}" for i, text in enumerate(tokens)] or [str(i) for i in range(n_pos)]
    figure = go.Figure(
        go.Heatmap(z=total, x=names, y=[f"L{i}" for i in range(n_layers)], colorscale="Oranges")
    )
    return _styled(figure, title=f"sum of |{column}|, by {table.by}", x="position", y="layer")


def mediation(result: Mediation) -> go.Figure:
    """Share of the shift that comes back over how many features are set, beside random ones."""
    points = result.cumulative
    figure = go.Figure()
    random = [p for p in points if p.random_share is not None]
    for name, values, dash in (
        ("random, 2.5 %", [p.random_low for p in random], "dot"),
        ("random, 97.5 %", [p.random_high for p in random], "dot"),
    ):
        figure.add_scatter(
            x=[p.k for p in random],
            y=values,
            name=name,
            mode="lines",
            line={"color": RANDOM, "dash": dash},
        )
    figure.add_scatter(
        x=[p.k for p in points],
        y=[p.share for p in points],
        name=f"features by {result.ordered_by}",
        mode="lines+markers",
        line={"color": EVIL},
    )
    figure.update_xaxes(type="log")
    return _styled(
        figure, title=f"{result.direction}, one prompt", x="features set", y="share of the shift"
    )


def dose_response(results: Mapping[float, SteerResult], *, x: str = "value") -> go.Figure:
    """Evil mass over strength, with the middle 95 % of matched random features.

    Of a target that has no evil continuation, its value instead.

    Args:
        results: By the strength that was steered with.
        x: What the strength is.
    """
    doses = sorted(results)
    runs = [results[dose] for dose in doses]
    figure = go.Figure()
    by_mass = all(r.unsteered.evil_mass is not None for r in runs)
    measure = "evil_mass" if by_mass else "contrast"
    bands = [getattr(r.random_control, measure) for r in runs]
    for name, values in (
        ("random, 2.5 %", [band.low for band in bands]),
        ("random, 97.5 %", [band.high for band in bands]),
    ):
        figure.add_scatter(
            x=doses, y=values, name=name, mode="lines", line={"color": RANDOM, "dash": "dot"}
        )
    figure.add_scatter(
        x=doses,
        y=[getattr(r.steered, measure) for r in runs],
        name="steered",
        mode="lines+markers",
        line={"color": EVIL},
    )
    if runs:
        before = getattr(runs[0].unsteered, measure)
        figure.add_hline(y=before, line_dash="dash", annotation_text="as is")
    y = "evil mass" if by_mass else runs[0].intervention.target
    return _styled(figure, title="dose and response", x=x, y=str(y))


def _styled(figure: go.Figure, *, title: str, x: str, y: str) -> go.Figure:
    return figure.update_layout(
        title=title,
        xaxis_title=x,
        yaxis_title=y,
        template="plotly_white",
        height=380,
        margin={"t": 50, "b": 60, "l": 60, "r": 20},
    )
