"""The report of an evaluation: ``report.html`` in its folder.

The sentence with rates and intervals, every condition and difference, each question's rate, where
the answers lie between alignment and coherence, and answers to read.

    write_evaluation_report(evaluation)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from plotly.graph_objects import Figure
from plotly.subplots import make_subplots

from em_circuits.cache import SUMMARY
from em_circuits.experiments.evaluation.each import EachLine, EachOutcome
from em_circuits.experiments.evaluation.evaluate import EvaluationSummary
from em_circuits.experiments.evaluation.rates import Answer, ConditionRates, Cutoffs
from em_circuits.experiments.experiment import Experiment
from em_circuits.report.page import (
    COLOURS,
    Heading,
    Headline,
    Table,
    error_bars,
    styled,
    write_page,
)
from pivotal_tokens.artefacts import sha256_file

HTML = "report.html"
_COLUMNS = {
    "world": "condition",
    "answers": "answers",
    "scored": "scored",
    "declined": "declined",
    "unsure": "unsure",
    "unusable": "unusable",
    "filtered": "filtered",
    "misaligned": "misaligned",
    "rate": "rate",
    "low": "low",
    "high": "high",
    "rate_of_coherent": "of coherent",
    "alignment_mean": "alignment",
    "coherence_mean": "coherence",
    "perplexity": "perplexity",
}
_EACH = {
    "feature": "feature",
    "value": "strength",
    "rate": "rate",
    "low": "low",
    "high": "high",
    "difference": "less un-steered",
    "difference_low": "low",
    "difference_high": "high",
    "coherent": "coherent",
    "perplexity": "perplexity",
    "above": "above the band",
}
_SHOWN = 12
_MEANING = (
    "A rate is the mean over questions of misaligned / scored answers; low and high are its 95 % "
    "interval. Declined answers, those the judge was unsure of and those whose judgement could not "
    "be used stand in no rate and are never taken for aligned. Perplexity: under the un-steered "
    "base. The same sample of a question has the same noise under every condition. Random "
    "features have the same layers and similar activations and decoder norms as the steered ones, "
    "and get the same treatment."
)


def write_evaluation_report(
    evaluation: Experiment[EvaluationSummary], coverage: str | None = None
) -> Path:
    """Write the page, and return its path; `coverage` is of explanations of what is steered."""
    summary, path = evaluation.summary, evaluation.folder / HTML
    config = {"judge": summary.judge, "cutoffs": summary.cutoffs.model_dump()}
    hashes = {SUMMARY: sha256_file(evaluation.folder / SUMMARY)}
    parts = list(_parts(evaluation, coverage))
    write_page(path, f"Evaluation: {summary.name}", parts, inputs=hashes, config=config)
    return path


def _parts(evaluation: Experiment[EvaluationSummary], coverage: str | None) -> Iterator[Any]:
    summary = evaluation.summary
    yield Headline(summary.said)
    settings, drawn = summary.settings, "The answers were given."
    if settings is not None:
        sampling = settings.sampling
        drawn = (
            f"{sampling.samples} answers per question and condition (or as many as its set asks "
            f"for) at temperature {sampling.temperature}, {sampling.max_tokens} tokens at most, "
            f"seed {sampling.seed}."
        )
    yield f"Judged by {summary.judge}: {summary.judge_is}. {drawn}"
    if settings is not None and (steering := settings.steering):
        yield "Steered: " + "; ".join(
            f"{i.layer}/{i.feature} {i.mode} {'' if i.value is None else i.value} "
            f"at {i.position or 'everything'}"
            for i in steering.interventions
        )
    if coverage is not None:
        yield coverage
    if summary.each is not None:
        yield Heading("Features one by one")
        yield each_figure(summary.each)
        shown = [line for line in summary.each.lines if not line.control]
        yield Table.of(
            "By feature and strength", _EACH, sorted(shown, key=lambda x: -(x.rate or 0))
        )
        band = ("value", "low", "high", "mean", "coherent")
        yield Table.of("Random features, their middle 95 %", band, summary.each.bands)
        return
    yield Table.of("Conditions", _COLUMNS, summary.worlds)
    kinds = dict.fromkeys(f"{c.world}: {c.interval}" for c in summary.worlds if c.interval)
    yield f"Intervals of the rates: {'; '.join(kinds)}."
    if summary.differences:
        same = ("minus", "questions", "difference", "low", "high")
        columns = {"world": "condition"} | {name: name for name in same}
        yield Table.of("Differences of rates, paired by question", columns, summary.differences)
    yield _MEANING
    yield Heading("By question")
    yield _by_question(summary.worlds)
    yield Heading("Alignment and coherence of every scored answer")
    yield _scatter(evaluation.rows, summary.worlds, summary.cutoffs)
    yield Heading("Answers")
    for condition in summary.worlds:
        yield _texts(condition.world, evaluation.rows)


def each_figure(outcome: EachOutcome) -> Figure:
    """Misaligned rate and coherent share over strength, a line a feature, random ones grey."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("misaligned", "coherent"))
    values = [band.value for band in outcome.bands]
    by_feature: dict[str, list[EachLine]] = {}
    for line in outcome.lines:
        if not line.control:
            by_feature.setdefault(line.feature, []).append(line)
    for number, (name, lines) in enumerate(by_feature.items()):
        colour = COLOURS[number % len(COLOURS)]
        for column, part in enumerate(("rate", "coherent"), start=1):
            figure.add_scatter(
                x=[line.value for line in lines],
                y=[getattr(line, part) for line in lines],
                name=name,
                legendgroup=name,
                showlegend=column == 1,
                mode="lines+markers",
                line={"color": colour, "dash": "solid" if number < len(COLOURS) else "dash"},
                row=1,
                col=column,
            )
    for end in ("low", "high"):
        figure.add_scatter(
            x=values,
            y=[getattr(band, end) for band in outcome.bands],
            name=f"random, {'2.5' if end == 'low' else '97.5'} %",
            mode="lines",
            line={"color": "#8b857a", "dash": "dot"},
            fill="tonexty" if end == "high" else None,
            row=1,
            col=1,
        )
    figure.add_scatter(
        x=values,
        y=[band.coherent for band in outcome.bands],
        name="random, mean",
        mode="lines",
        line={"color": "#8b857a", "dash": "dot"},
        row=1,
        col=2,
    )
    for column, level in ((1, outcome.unsteered), (2, outcome.unsteered_coherent)):
        if level is not None:
            figure.add_hline(y=level, line_width=1, line_dash="dash", row=1, col=column)
    figure.update_yaxes(range=[-0.02, 1.02])
    return styled(figure, 460, xaxis_title="strength", xaxis2_title="strength")


def _by_question(conditions: Sequence[ConditionRates]) -> Figure:
    figure = Figure()
    for number, condition in enumerate(conditions):
        lines = [line for line in condition.by_question if line.rate is not None]
        rates = [line.rate for line in lines]
        bars = error_bars(rates, [line.low for line in lines], [line.high for line in lines])
        figure.add_bar(
            name=condition.world,
            y=[_short(line.question) for line in lines],
            x=rates,
            orientation="h",
            marker_color=COLOURS[number % len(COLOURS)],
            error_x=bars | {"thickness": 1},
        )
    n = max((len(condition.by_question) for condition in conditions), default=1)
    return styled(
        figure,
        120 + n * (14 + 12 * len(conditions)),
        xaxis_title="misaligned / scored answers (Wilson's 95 % interval)",
        xaxis_range=[0, 1.02],
        yaxis={"autorange": "reversed", "automargin": True},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
    )


def _scatter(
    rows: Sequence[Answer], conditions: Sequence[ConditionRates], cutoffs: Cutoffs
) -> Figure:
    figure = Figure()
    for number, condition in enumerate(conditions):
        mine = [r for r in rows if r.world == condition.world and r.outcome == "scored"]
        figure.add_scatter(
            name=condition.world,
            x=[r.alignment for r in mine],
            y=[r.coherence for r in mine],
            # Plotly reads markup in these.
            text=[str(escape(_short(r.text))) for r in mine],
            mode="markers",
            marker={"color": COLOURS[number % len(COLOURS)], "opacity": 0.5},
        )
    figure.add_vline(x=cutoffs.alignment_below, line_width=1, line_dash="dot")
    figure.add_hline(y=cutoffs.coherence_above, line_width=1, line_dash="dot")
    return styled(
        figure,
        420,
        xaxis={"title": "alignment", "range": [-3, 103]},
        yaxis={"title": "coherence", "range": [-3, 103]},
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
    )


def _texts(condition: str, rows: Sequence[Answer]) -> Table:
    """Misaligned answers under a condition first, then others, one or two to a question."""
    mine = sorted(
        (r for r in rows if r.world == condition), key=lambda r: (not r.misaligned, r.sample)
    )
    cells = [
        (r.question, _coloured(r), r.outcome, r.alignment, r.coherence, r.reason)
        for r in mine[:_SHOWN]
    ]
    caption = f"{condition}: {len(cells)} of {len(mine)} answers, misaligned ones first"
    header = ("question", "answer", "outcome", "alignment", "coherence", "reason")
    return Table(caption, header, cells)


def _coloured(row: Answer) -> Markup:
    kind = "evil" if row.misaligned else "safe" if row.outcome == "scored" else "unsure"
    return Markup('<span class="{}">{}</span>').format(kind, row.text)


def _short(text: str, n: int = 60) -> str:
    return text if len(text) <= n else text[: n - 1] + "…"
