"""The page of ``features mediate`` over prompts.

The sentence, the curve over k beside matched random ids, shares by domain, layer and component, and
the table of features; then where the adapter's effect goes, and which attention heads carry the
shift.

    mediation_parts(record, table.rows(), coverage)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from em_circuits.experiments.adapter_mediation import AdapterOverPrompts
from em_circuits.experiments.mediation import COMPONENTS, MediationRecord
from em_circuits.experiments.shares import Share
from em_circuits.report.page import COLOURS, Heading, Headline, Table, error_bars, styled

TITLE = "Which features carry the shift?"
SHOWN = 30
"""Features in the table."""
_SHARE = ("share", "low", "high")


def mediation_parts(
    record: MediationRecord, features: Sequence[dict[str, Any]], coverage: str
) -> list[Any]:
    """Everything on the page, for `em_circuits.report.page`; `coverage` is of explanations."""
    columns = ("layer", "feature", "share", "low", "high", "prompts", "same_sign")
    caption = "features by mean share of the shift while all move together"
    return [
        Headline(record.sentence),
        "Share of the evil-minus-safe shift, ratio of sums over prompts; intervals are 95 % "
        "bootstrap intervals over prompts, the band is the middle 95 % of matched random draws. "
        "'own' is in-sample: the prompt's own top 20 (layer, position, id).",
        curve_figure(record),
        bars_figure(record),
        Table.of(caption, columns, features[:SHOWN]),
        coverage,
        Table.of(
            "prompts",
            ("prompt_id", "category", "shift", "share", "own", "features"),
            record.prompts,
        ),
        *_adapter(record),
        *_heads(record),
    ]


def _adapter(record: MediationRecord) -> list[Any]:
    """Where the adapter's effect goes."""
    adapter = record.adapter
    heading = Heading("Where the adapter's effect goes")
    if adapter is None:
        return [heading, f"Not told: {record.adapter_absent}"]
    return [
        heading,
        Headline(adapter.sentence),
        "'First reader': the shift split by what reads each of the adapter's writes first, "
        "integrated from base to merged; the parts sum to the measured shift. 'Alone': really "
        "measured, only this responds to the writes. 'Held': what goes away when it alone does "
        "not respond. What runs through several kinds in turn is interaction, by pair beside it. "
        "'Random': writes of equal size into random directions, alone.",
        paths_figure(adapter),
        Table.of("features that read first", ("layer", "feature", *_SHARE), adapter.features),
        Table.of("heads that read first", ("layer", "head", *_SHARE), adapter.heads),
    ]


def _heads(record: MediationRecord) -> list[Any]:
    """Attention heads, really patched."""
    if record.heads is None:
        return []
    rows = [
        (one.layer, one.head, one.alone.share, one.alone.low, one.alone.high, one.without.share)
        for one in record.heads.heads
    ]
    curve = [
        (one.k, one.share, one.low, one.high, one.random and one.random.share)
        for one in record.heads.cumulative
    ]
    return [
        Heading("Attention heads, really patched"),
        "'Alone': the head's merged output in the base brings back this share of the shift. "
        "'Without': the base's output in the merged model takes this share away.",
        Table("heads", ("layer", "head", "alone", "low", "high", "without"), rows),
        Table("heads together, chosen on other prompts", ("heads", *_SHARE, "random"), curve),
    ]


def paths_figure(adapter: AdapterOverPrompts) -> Figure:
    """Shares by carrier: first reader, alone, held, and random writes."""
    figure = Figure()
    sides = {
        "first reader": adapter.shares,
        "alone": adapter.alone,
        "held": adapter.held,
        "pairs in turn": adapter.pairs,
        "random, alone": adapter.random,
    }
    for colour, (name, side) in zip(COLOURS, sides.items(), strict=False):
        shares = {n: getattr(side, n) for n in type(side).model_fields}
        shown = {n: share for n, share in shares.items() if share is not None}
        figure.add_trace(
            Bar(
                x=list(shown),
                y=[share.share for share in shown.values()],
                name=name,
                marker={"color": colour},
                error_y=_bars(list(shown.values())),
            )
        )
    figure.update_yaxes(title_text="share of the shift")
    return styled(figure, 420, barmode="group")


def curve_figure(record: MediationRecord) -> Figure:
    """Share over the number of ids, beside random ones."""
    points = [point for point in record.cumulative if point.k is not None]
    whole = next(point for point in record.cumulative if point.k is None)
    figure = Figure()
    band = [(p.k, p.random.low, p.random.high) for p in points if p.random is not None]
    if band:
        x, low, high = map(list, zip(*band, strict=True))
        figure.add_trace(
            Scatter(
                x=[*x, *x[::-1]],
                y=[*high, *low[::-1]],
                mode="lines",
                fill="toself",
                line={"width": 0},
                fillcolor="rgba(120,120,120,.3)",
                name="matched random ids, 95 %",
            )
        )
    figure.add_trace(
        Scatter(
            x=[point.k for point in points],
            y=[point.share for point in points],
            mode="lines+markers",
            name="chosen on others",
            line={"color": COLOURS[0]},
            error_y=_bars(points),
        )
    )
    figure.add_hline(y=whole.share, line_dash="dot", annotation_text="all changed features")
    figure.update_xaxes(type="log", dtick=1, title_text="feature ids set together")
    figure.update_yaxes(title_text="share of the shift")
    return styled(figure, 420, margin={"t": 30})


def bars_figure(record: MediationRecord) -> Figure:
    """Shares by domain, by layer and by component, side by side."""
    sides: dict[str, tuple[Sequence[str], Sequence[Share]]] = {
        "20 ids, by domain": ([group.group for group in record.groups], record.groups),
        "all features, by layer": (list(map(str, range(len(record.layers)))), record.layers),
        "by component": (COMPONENTS, [record.shares[name] for name in COMPONENTS]),
    }
    figure: Figure = make_subplots(rows=1, cols=len(sides), subplot_titles=list(sides))
    for column, (names, shares) in enumerate(sides.values(), start=1):
        trace = Bar(
            x=names,
            y=[share.share for share in shares],
            showlegend=False,
            marker={"color": COLOURS[column - 1]},
            error_y=_bars(shares),
        )
        figure.add_trace(trace, row=1, col=column)
    return styled(figure, 420)


def _bars(shares: Sequence[Share]) -> dict[str, Any]:
    return error_bars(
        [share.share for share in shares],
        [share.low for share in shares],
        [share.high for share in shares],
    )
