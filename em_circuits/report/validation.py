"""The page of ``steer validate``: how well each score predicts each regime.

One figure of the four statistics with their intervals, one of predicted beside measured effects,
and the figures as a table.

    validation_parts(validation)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from plotly.graph_objects import Figure, Scatter, Scattergl
from plotly.subplots import make_subplots
from torch import Tensor

from em_circuits.experiments.validate import Validation
from em_circuits.experiments.validate_edges import EdgeAgreement
from em_circuits.intervention import Regime
from em_circuits.interventions.validate import ValidationRow
from em_circuits.report.page import COLOURS, Table, error_bars, styled
from em_circuits.statistics import STATISTICS

Row = TypeVar("Row", bound=ValidationRow | EdgeAgreement)

TITLES = {
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "sign": "share of equal signs",
    "top20": "of the 20 largest, the same",
}
_POINTS = 3000
"""Points of one panel at most; the largest effects are always among them."""


def validation_parts(validation: Validation) -> list[Any]:
    """Paragraphs, figures and table of a validation, for `em_circuits.report.page`."""
    n, regimes = len(validation.prompts), [row.regime for row in validation.rows]
    regime = Regime.FREE if Regime.FREE in regimes or not regimes else regimes[-1]
    over = "prompts" if n > 1 else "features of the one prompt"
    return [
        f"{n} prompts, {validation.model} model. Every feature node of a prompt's graph is "
        "ablated for real under each regime; a score is compared with the measured effect on the "
        "evil-minus-safe contrast. Positive: the feature's presence raises evil over safe. Bars "
        f"are 95 % bootstrap intervals over {over}. refined has its largest bounds measured, so "
        "it agrees with free on those by construction.",
        statistics_figure(validation),
        scatter_figure(validation, regime),
        _table(validation),
        "prompts: " + ", ".join(validation.prompts),
    ]


def statistics_figure(validation: Validation) -> Figure:
    """A panel per statistic: methods across, a colour per regime."""
    regimes = dict.fromkeys(row.regime for row in validation.rows)
    series = {str(r): [row for row in validation.rows if row.regime is r] for r in regimes}
    return statistics_panels(series, lambda row: row.method, title="regime")


def statistics_panels(
    series: Mapping[str, Sequence[Row]], across: Callable[[Row], str], *, title: str
) -> Figure:
    """A panel per statistic, a colour per series, with intervals.

    Args:
        series: Rows by name; each has an ``agreement`` and its ``intervals``.
        across: Where a row stands.
        title: Of the legend.
    """
    figure: Figure = make_subplots(
        rows=2, cols=2, subplot_titles=[TITLES[name] for name in STATISTICS]
    )
    for number, (label, rows) in enumerate(series.items()):
        for place, name in enumerate(STATISTICS if rows else ()):
            values = [getattr(row.agreement, name) for row in rows]
            low, high = zip(*(row.intervals[name] for row in rows), strict=True)
            trace = Scatter(
                x=[across(row) for row in rows],
                y=values,
                mode="markers",
                name=label,
                legendgroup=label,
                showlegend=place == 0,
                marker={"color": COLOURS[number % len(COLOURS)], "size": 8},
                error_y=error_bars(values, low, high),
            )
            figure.add_trace(trace, row=place // 2 + 1, col=place % 2 + 1)
    return styled(figure, 760, scattermode="group", legend_title_text=title)


def agreement_table(
    caption: str, places: Sequence[str], rows: Iterable[tuple[Sequence[Any], Row]]
) -> Table:
    """Every statistic with its interval; `places` are the columns before."""
    found: list[list[Any]] = []
    for place, row in rows:
        found.append([*place])
        for name in STATISTICS:
            low, high = row.intervals[name]
            known = low is not None and high is not None
            interval = f"{low:.2f} to {high:.2f}" if known else "-"
            found[-1] += [getattr(row.agreement, name), interval]
    header = [part for name in STATISTICS for part in (name, "95 %")]
    return Table(caption, (*places, *header), found)


def scatter_figure(validation: Validation, regime: Regime) -> Figure:
    """A panel per method: measured effect over predicted score, all prompts together."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for item in validation.comparisons:
        if item.regime is regime:
            pairs.setdefault(item.method, []).append((item.predicted, item.measured))
    columns, rows = 3, max(-(-len(pairs) // 3), 1)
    figure: Figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=list(pairs),
        y_title=f"measured effect, {regime} (logits)",
        x_title="score, in the method's unit",
    )
    for number, (method, found) in enumerate(pairs.items()):
        predicted, measured = (torch.cat(part) for part in zip(*found, strict=True))
        shown = thinned(measured)
        trace = Scattergl(
            x=predicted[shown].tolist(),
            y=measured[shown].tolist(),
            mode="markers",
            name=method,
            showlegend=False,
            marker={"color": COLOURS[0], "size": 4, "opacity": 0.5},
        )
        figure.add_trace(trace, row=number // columns + 1, col=number % columns + 1)
    return styled(figure, 340 * rows)


def thinned(measured: Tensor) -> Tensor:
    """The largest half of what can be shown, and an even choice of the others."""
    order = measured.abs().argsort(descending=True)
    if len(order) <= _POINTS:
        return order
    rest = order[_POINTS // 2 :]
    even = torch.linspace(0, len(rest) - 1, _POINTS - _POINTS // 2).long()
    return torch.cat([order[: _POINTS // 2], rest[even]])


def _table(validation: Validation) -> Table:
    rows = [((row.method, str(row.regime)), row) for row in validation.rows]
    return agreement_table("agreement with real ablations", ("method", "regime"), rows)
