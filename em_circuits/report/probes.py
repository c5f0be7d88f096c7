"""The page of probes: ``probes-KEY.html`` beside their table.

A heat map of components by layers for every position, and detectors beside levers.

    write_probe_report(table)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure, Heatmap
from plotly.subplots import make_subplots

from em_circuits.cache import CachedTable
from em_circuits.experiments.probes import ProbeLine, ProbeRecord, probe_lines
from em_circuits.features.pooled import PLACES
from em_circuits.report.page import Heading, Table, styled, write_table_report

_MEANING = (
    "Area under the ROC curve of ridge probes, on questions that each was not fitted on; the "
    "control has labels shuffled within questions and belongs at one half; style: the same answers "
    "in lower case and without punctuation. A lever puts the merged "
    "model's activations, along the probe, to their mean over aligned answers; its share is of the "
    "difference between base and merged in the log-probability per token of misaligned minus "
    "aligned answers. A good detector need not be a good lever."
)


def write_probe_report(table: CachedTable) -> Path:
    """Write the page, and return its path."""
    record = ProbeRecord.model_validate(table.record)
    title = f"Probes: {record.answers_from}"
    return write_table_report(table, ".html", title, _parts(record, probe_lines(table)))


def _parts(record: ProbeRecord, lines: Sequence[ProbeLine]) -> list[Any]:
    best = ("component", "layer", "head", "position", "auroc", "low", "high", "control", "style")
    levers = ("component", "layer", "head", "detector", "share", "low", "high", "random")
    return [
        f"{record.request.model} model, {record.answers} answers to {record.questions} questions. "
        f"The answer's length alone: {record.length_auroc:.2f}.",
        heat_map(lines),
        Heading("The best place of every component"),
        Table.of("", best, record.best),
        Heading("Detector beside lever"),
        Table.of(f"On {record.held_out_questions} held-out questions", levers, record.levers),
        _MEANING,
    ]


def heat_map(lines: Sequence[ProbeLine]) -> Figure:
    """A panel per position: components down, layers across."""

    def row(line: ProbeLine) -> str:
        return line.component if line.head is None else f"head {line.head}"

    rows = list(dict.fromkeys(map(row, lines)))
    layers = sorted({line.layer for line in lines})
    figure = make_subplots(rows=1, cols=len(PLACES), subplot_titles=PLACES, shared_yaxes=True)
    for column, place in enumerate(PLACES, start=1):
        cells = {(row(x), x.layer): x.auroc for x in lines if x.position == place}
        values = [[cells.get((name, layer)) for layer in layers] for name in rows]
        figure.add_trace(
            Heatmap(
                z=values,
                x=[f"L{layer}" for layer in layers],
                y=rows,
                zmin=0.5,
                zmax=1,
                colorscale="Oranges",
                showscale=column == 1,
            ),
            row=1,
            col=column,
        )
    figure.update_yaxes(autorange="reversed")
    return styled(figure, 160 + 24 * len(rows))
