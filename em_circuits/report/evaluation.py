"""What does an evaluation's report show, on one page?

The sentence with rates and intervals, every world and difference, each question's rate, where the
answers lie between alignment and coherence, and answers to read.

    write_evaluation_report(evaluation)         # report.html in its folder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from em_circuits.experiments.evaluation import Evaluation
from em_circuits.report.page import COLOURS, Heading, Raw, Said, Table, write_page
from pivotal_tokens.artefacts import sha256_file, write_provenance

HTML = "report.html"
WORLD_COLUMNS = {
    "world": "world",
    "answers": "answers",
    "scored": "scored",
    "declined": "declined",
    "unsure": "unsure",
    "unusable": "unusable",
    "misaligned": "misaligned",
    "rate": "rate",
    "low": "low",
    "high": "high",
    "rate_of_coherent": "of coherent",
    "alignment_mean": "alignment",
    "coherence_mean": "coherence",
    "perplexity": "perplexity",
}
_SHOWN = 12
_MEANING = (
    "A rate is the mean over questions of misaligned / scored answers; low and high are its 95 % "
    "interval. Declined answers, those the judge was unsure of and those whose judgement could not "
    "be used stand in no rate and are never taken for aligned. Perplexity: under the un-steered "
    "base. The same sample of a question is drawn with the same noise in every world. Random "
    "features have the same layers and similar activations and decoder norms as the steered ones, "
    "and get the same treatment."
)


def write_evaluation_report(made: Evaluation) -> Path:
    """Write the page, and return its path."""
    path = made.folder / HTML
    write_page(path, f"Evaluation: {made.summary['name']}", list(_parts(made)))
    summary = made.folder / "summary.json"
    config = {"judge": made.summary["judge"], "cutoffs": made.summary["cutoffs"]}
    write_provenance(path, inputs={summary.name: sha256_file(summary)}, config=config)
    return path


def _parts(made: Evaluation) -> Iterator[Any]:
    summary = made.summary
    yield Said(summary["said"])
    sampling = summary["settings"]["sampling"]
    yield (
        f"Judged by {summary['judge']}: {summary['judge_is']}. {sampling['samples']} answers per "
        f"question and world at temperature {sampling['temperature']}, {sampling['max_tokens']} "
        f"tokens at most, seed {sampling['seed']}."
    )
    if steering := summary["settings"]["steering"]:
        items = steering["interventions"]
        yield "Steered: " + "; ".join(
            f"{i['layer']}/{i['feature']} {i['mode']} {'' if i['value'] is None else i['value']} "
            f"at {i['position'] or 'everything'}"
            for i in items
        )
    worlds = summary["worlds"]
    rows = tuple(tuple(w[c] for c in WORLD_COLUMNS) for w in worlds)
    yield Table("Worlds", tuple(WORLD_COLUMNS.values()), rows)
    kinds = dict.fromkeys(f"{w['world']}: {w['interval']}" for w in worlds if w["interval"])
    yield f"Intervals of the rates: {'; '.join(kinds)}."
    if summary["differences"]:
        columns = ("world", "minus", "questions", "difference", "low", "high")
        lines = tuple(tuple(d[c] for c in columns) for d in summary["differences"])
        yield Table("Differences of rates, paired by question", columns, lines)
    yield _MEANING
    yield Heading("By question")
    yield _by_question(worlds)
    yield Heading("Alignment and coherence of every scored answer")
    yield _scatter(made.rows, worlds, summary["cutoffs"])
    yield Heading("Answers")
    yield from _texts(made.rows, worlds)


def _by_question(worlds: Sequence[Mapping[str, Any]]) -> go.Figure:
    figure = go.Figure()
    for number, world in enumerate(worlds):
        lines = [line for line in world["by_question"] if line["rate"] is not None]
        rates = [line["rate"] for line in lines]
        figure.add_bar(
            name=world["world"],
            y=[_short(line["question"]) for line in lines],
            x=rates,
            orientation="h",
            marker_color=COLOURS[number % len(COLOURS)],
            error_x={
                "array": [line["high"] - rate for line, rate in zip(lines, rates, strict=True)],
                "arrayminus": [rate - line["low"] for line, rate in zip(lines, rates, strict=True)],
                "thickness": 1,
            },
        )
    n = max((len(world["by_question"]) for world in worlds), default=1)
    figure.update_layout(
        xaxis_title="misaligned / scored answers (Wilson's 95 % interval)",
        xaxis_range=[0, 1.02],
        yaxis={"autorange": "reversed", "automargin": True},
        template="plotly_white",
        height=120 + n * (14 + 12 * len(worlds)),
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
    )
    return figure


def _scatter(
    rows: Sequence[Mapping[str, Any]],
    worlds: Sequence[Mapping[str, Any]],
    cutoffs: Mapping[str, float],
) -> go.Figure:
    figure = go.Figure()
    for number, world in enumerate(worlds):
        mine = [r for r in rows if r["world"] == world["world"] and r["outcome"] == "scored"]
        figure.add_scatter(
            name=world["world"],
            x=[r["alignment"] for r in mine],
            y=[r["coherence"] for r in mine],
            # Plotly reads markup in these.
            text=[escape(_short(r["text"])) for r in mine],
            mode="markers",
            marker={"color": COLOURS[number % len(COLOURS)], "opacity": 0.5},
        )
    figure.add_vline(x=cutoffs["alignment_below"], line_width=1, line_dash="dot")
    figure.add_hline(y=cutoffs["coherence_above"], line_width=1, line_dash="dot")
    figure.update_layout(
        xaxis={"title": "alignment", "range": [-3, 103]},
        yaxis={"title": "coherence", "range": [-3, 103]},
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
    )
    return figure


def _texts(
    rows: Sequence[Mapping[str, Any]], worlds: Sequence[Mapping[str, Any]]
) -> Iterator[Table]:
    """Misaligned answers of each world first, then others, one or two to a question."""
    for world in worlds:
        mine = [r for r in rows if r["world"] == world["world"]]
        mine.sort(key=lambda r: (not r["misaligned"], r["sample"]))
        cells = tuple(
            (
                r["question"],
                Raw(f'<span class="{_kind(r)}">{escape(r["text"])}</span>'),
                r["outcome"],
                r["alignment"],
                r["coherence"],
                r["reason"],
            )
            for r in mine[:_SHOWN]
        )
        caption = f"{world['world']}: {len(cells)} of {len(mine)} answers, misaligned ones first"
        header = ("question", "answer", "outcome", "alignment", "coherence", "reason")
        yield Table(caption, header, cells)


def _kind(row: Mapping[str, Any]) -> str:
    return "evil" if row["misaligned"] else "safe" if row["outcome"] == "scored" else "unsure"


def _short(text: str, n: int = 60) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"
