"""The report of compared answers: ``responses-KEY.md`` beside their table.

write_response_report(table, work.coverage)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from em_circuits.cache import CachedTable
from em_circuits.experiments.responses import ResponseFigures, ResponseNode, response_nodes
from em_circuits.report.page import Heading, Headline, Table, write_table_report

_SHOWN = 30
_COLUMNS = {
    "name": "node",
    "written": "written",
    "contrast": "contrast",
    "low": "low",
    "high": "high",
    "t": "t",
    "q": "q",
    "misaligned_mean": "misaligned",
    "aligned_mean": "aligned",
    "active": "active",
    "held_out": "held out",
    "without_length": "less length",
}
_MEANING = (
    "Contrast: pooled activation in misaligned minus aligned answers, within each question, then "
    "its mean over questions with a 95 % bootstrap interval over questions; written: times the "
    "length of what the node writes. q: labels permuted within questions, Benjamini and Hochberg. "
    "Held out: the contrast on questions that took no part. Less length: what is left when the "
    "answer's length is regressed out within questions. A node that tells answers apart need not "
    "cause them: steer with it (`evaluate --each`) before it is called a lever."
)


def write_response_report(table: CachedTable, coverage: Callable[[Iterable[str]], str]) -> Path:
    """Write the page, and return its path; `coverage` says how many nodes are explained."""
    figures = ResponseFigures.model_validate(table.record)
    nodes = response_nodes(table, _SHOWN)
    title = f"Misaligned and aligned answers: {figures.answers_from}"
    parts = [*_parts(figures, nodes), coverage([node.name for node in nodes]), _MEANING]
    return write_table_report(table, ".md", title, parts)


def _parts(figures: ResponseFigures, nodes: Sequence[ResponseNode]) -> list[Any]:
    tried, held_out = figures.detector, figures.held_out
    parts: list[Any] = [
        Headline(
            f"{figures.n_discoveries} of {figures.n_tested} {figures.basis} nodes of the "
            f"{figures.model} model differ between misaligned and aligned answers (q < .05)."
        ),
        f"{figures.answers} distinct answers ({figures.repeated} repeated); "
        f"{figures.questions} questions compared, "
        f"{figures.held_out_questions} held out. Activations: {figures.settings.pool} over an "
        f"answer's tokens, {figures.settings.permutations} permutations"
        f"{' (all there are)' if figures.exact else ''}. Misaligned answers are "
        f"{figures.length_difference:+.2f} tokens longer (p {figures.length_p:.3f}).",
    ]
    if tried.auroc is not None:
        rows = [
            (f"the first {tried.nodes} nodes", tried.auroc, tried.low, tried.high),
            (f"{tried.best_node} alone", tried.best_auroc, None, None),
            ("the answer's length alone", tried.length_auroc, None, None),
        ]
        parts.append(
            Table(
                "AUROC on held-out answers, within questions", ("by", "AUROC", "low", "high"), rows
            )
        )
    if held_out is not None:
        parts.append(
            "Contrasts beside those of the held-out questions: Pearson "
            f"{_figure(held_out.pearson)}, Spearman {_figure(held_out.spearman)}, "
            f"{held_out.top20:.0f} of the 20 largest are the same."
        )
    layers = ("layer", "module", "nodes", "raised", "lowered", "share")
    return [
        *parts,
        Heading("Layers"),
        Table.of("", layers, figures.layers),
        Heading("Nodes"),
        Table.of("", _COLUMNS, nodes),
    ]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
