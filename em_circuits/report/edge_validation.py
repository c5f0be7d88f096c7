"""The page of ``steer validate --edges``: how well edges predict measured ones.

A figure of the statistics by distance in layers, one of predicted beside measured edges, the
figures as a table, and the edges whose first order misleads.

    edge_validation_parts(result, edges)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from plotly.graph_objects import Figure, Scattergl
from plotly.subplots import make_subplots

from em_circuits.experiments.validate_edges import KINDS, EdgeAgreement, EdgeValidation, PromptEdges
from em_circuits.report.page import COLOURS, Table, styled
from em_circuits.report.validation import agreement_table, statistics_panels, thinned


def edge_validation_parts(validation: EdgeValidation, each: Sequence[PromptEdges]) -> list[Any]:
    """Paragraphs, figures and tables, for `em_circuits.report.page`."""
    n, curved = len(validation.prompts), validation.curved
    over = "prompts" if n > 1 else "edges of the one prompt"
    return [
        f"{n} prompts, {validation.model} model. The {validation.n_nodes} features of the largest "
        "gradient are held at their values; each in turn is really removed, and the change of "
        "every later one and of the evil-minus-safe contrast is read. Full edges let all but the "
        "nodes respond; frozen ones are circuit-tracer's. Positive: the source raises the "
        f"target. Bars are 95 % bootstrap intervals over {over}.",
        by_distance(validation),
        scatter(each),
        _table(validation),
        f"Curved: full and measured differ by more than half of the larger. {curved.share:.1%} of "
        f"all edges, {curved.share_of_size:.1%} of the sum of their measured sizes, "
        f"{curved.share_of_largest:.1%} of the largest tenth.",
        Table.of(
            "curved edges that differ most",
            ("prompt_id", "source", "target", "full", "measured"),
            curved.largest,
        ),
        "prompts: " + ", ".join(validation.prompts),
    ]


def by_distance(validation: EdgeValidation) -> Figure:
    """A panel per statistic: groups of edges across, a colour per kind."""
    series: dict[str, list[EdgeAgreement]] = {
        kind: [row for row in validation.rows if row.kind == kind] for kind in KINDS
    }

    def across(row: EdgeAgreement) -> str:
        return f"{row.edges} layers" if row.edges.isdigit() else row.edges

    return statistics_panels(series, across, title="edges")


def scatter(each: Sequence[PromptEdges]) -> Figure:
    """A panel per kind: measured over predicted edge, all prompts together; curved ones marked."""
    figure: Figure = make_subplots(
        rows=1, cols=2, subplot_titles=KINDS, x_title="edge", y_title="measured edge"
    )
    measured = torch.cat([one.measured for one in each])
    curved = torch.cat([one.curved for one in each])
    shown = thinned(measured)
    for number, kind in enumerate(KINDS):
        every = [getattr(one, kind) for one in each]
        if any(predicted is None for predicted in every):
            continue
        predicted = torch.cat(every)
        for marked, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
            mine = shown[curved[shown] == marked]
            trace = Scattergl(
                x=predicted[mine].tolist(),
                y=measured[mine].tolist(),
                mode="markers",
                name="curved" if marked else "not curved",
                legendgroup=str(marked),
                showlegend=number == 0,
                marker={"color": colour, "size": 4, "opacity": 0.5},
            )
            figure.add_trace(trace, row=1, col=number + 1)
    return styled(figure, 480)


def _table(validation: EdgeValidation) -> Table:
    rows = [((row.edges, row.kind, row.n_edges), row) for row in validation.rows]
    return agreement_table("agreement with measured edges", ("edges", "kind", "n"), rows)
