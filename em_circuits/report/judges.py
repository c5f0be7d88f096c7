"""What does a judge's report look like, for people?

write_judge_page(report, Path("results/judge/report.html"))
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plotly.graph_objects import Bar, Figure, Heatmap, Scatter

from em_circuits.report.page import COLOURS, Table, write_page
from pivotal_tokens.judge.report import LABELS, JudgeFigures, JudgeReport

_MEASURES = ("percent", "kappa", "ac1", "alpha")
_NAMES = ("raw agreement", "Cohen's kappa", "Gwet's AC1", "Krippendorff's alpha")


def write_judge_page(report: JudgeReport, path: Path) -> None:
    """Write the report as one HTML file that needs no network."""
    parts: list[Any] = [
        f"{report.human_labelled} prompts are labelled by people, {report.controls} of them drawn "
        "at random from what was not flagged. Weighted figures count such a prompt by one over its "
        "chance; intervals are 95 % bootstraps over prompts. Held-out prompts never stand among a "
        "judge's examples.",
    ]
    measured = [judge for judge in report.judges if judge.tokens.tokens]
    if measured:
        parts.append(_agreement(measured))
    parts += [_overview(report), _classes(measured)]
    for judge in measured:
        parts.append(_confusion(judge))
    if any(len(judge.days) > 1 for judge in measured):
        parts.append(_over_time(measured))
    write_page(path, "Judges measured against people", parts)


def _overview(report: JudgeReport) -> Table:
    rows = tuple(
        (
            judge.judge,
            judge.judged,
            judge.unparsed,
            judge.tokens.prompts,
            judge.tokens.agreement.kappa.value,
            judge.held_out.prompts,
            judge.held_out.agreement.kappa.value,
            judge.flags.precision,
            judge.flags.recall,
            judge.flip_rate,
            judge.cost.usd,
            judge.cost.found,
            judge.cost.usd_per_found,
        )
        for judge in report.judges
    )
    header = (
        "judge",
        "judged",
        "unparsed",
        "compared",
        "kappa",
        "held out",
        "kappa held out",
        "flag precision",
        "flag recall",
        "flip rate",
        "USD",
        "found",
        "USD per found",
    )
    return Table("Every judge; compared and held out are prompts", header, rows)


def _classes(judges: list[JudgeFigures]) -> Table:
    rows = tuple(
        (
            judge.judge,
            label,
            figures.precision,
            figures.precision_weighted,
            figures.recall,
            figures.recall_weighted,
        )
        for judge in judges
        for label, figures in judge.tokens.classes.items()
    )
    header = ("judge", "label", "precision", "weighted", "recall", "weighted")
    return Table("Precision and recall of each label, over tokens", header, rows)


def _agreement(judges: list[JudgeFigures]) -> Figure:
    figure = Figure()
    for judge, colour in zip(judges, COLOURS * len(judges), strict=False):
        found = [getattr(judge.tokens.agreement, name) for name in _MEASURES]
        above = [_gap(one.high, one.value) for one in found]
        below = [_gap(one.value, one.low) for one in found]
        bars = {"type": "data", "array": above, "arrayminus": below}
        values = [one.value for one in found]
        figure.add_trace(
            Bar(name=judge.judge, x=_NAMES, y=values, error_y=bars, marker_color=colour)
        )
    figure.update_layout(title="Agreement with people, over tokens", barmode="group", height=420)
    figure.update_yaxes(range=[-0.2, 1.05])
    return figure


def _confusion(judge: JudgeFigures) -> Figure:
    table = judge.tokens.confusion
    counts = [[table[person][said] for said in LABELS] for person in LABELS]
    figure = Figure(
        Heatmap(
            z=counts,
            x=[f"judge: {label}" for label in LABELS],
            y=[f"person: {label}" for label in LABELS],
            text=counts,
            texttemplate="%{text:.0f}",
            colorscale="Blues",
            showscale=False,
        )
    )
    figure.update_layout(title=f"Tokens: {judge.judge}", height=320)
    figure.update_yaxes(autorange="reversed")
    return figure


def _over_time(judges: list[JudgeFigures]) -> Figure:
    figure = Figure()
    for judge, colour in zip(judges, COLOURS * len(judges), strict=False):
        days = [one.day for one in judge.days]
        values = [one.percent for one in judge.days]
        figure.add_trace(
            Scatter(name=judge.judge, x=days, y=values, mode="lines+markers", line_color=colour)
        )
    figure.update_layout(title="Raw agreement by the day of the judgement (UTC)", height=380)
    figure.update_yaxes(range=[0, 1.05])
    return figure


def _gap(high: float | None, low: float | None) -> float:
    return max(0.0, high - low) if high is not None and low is not None else 0.0
