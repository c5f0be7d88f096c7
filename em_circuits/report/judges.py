"""The page of a judge's report: judges measured against people.

write_judge_page(report, Path("results/judge/report.html"), inputs={"store": name}, config={})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plotly.graph_objects import Bar, Figure, Heatmap, Scatter

from em_circuits.report.page import COLOURS, Table, error_bars, write_page
from pivotal_tokens.judge.report import LABELS, JudgeFigures, JudgeReport

_MEASURES = {
    "percent": "raw agreement",
    "kappa": "Cohen's kappa",
    "ac1": "Gwet's AC1",
    "alpha": "Krippendorff's alpha",
}


def write_judge_page(report: JudgeReport, path: Path, **provenance: Any) -> None:
    """Write the report as one HTML file that needs no network, with its provenance."""
    measured = [judge for judge in report.judges if judge.tokens.tokens]
    parts: list[Any] = [
        f"{report.human_labelled} prompts are labelled by people, {report.controls} of them drawn "
        "at random from what was not flagged. Weighted figures count such a prompt by one over its "
        "chance; intervals are 95 % bootstraps over prompts. Held-out prompts never stand among a "
        "judge's examples.",
        *([_agreement(measured)] if measured else []),
        _overview(report),
        _classes(measured),
        *map(_confusion, measured),
    ]
    if any(len(judge.days) > 1 for judge in measured):
        parts.append(_over_time(measured))
    write_page(path, "Judges measured against people", parts, **provenance)


def _overview(report: JudgeReport) -> Table:
    lines = [
        {
            "judge": judge.judge,
            "judged": judge.judged,
            "unparsed": judge.unparsed,
            "filtered": judge.filtered,
            "compared": judge.tokens.prompts,
            "kappa": judge.tokens.agreement.kappa.value,
            "held out": judge.held_out.prompts,
            "kappa held out": judge.held_out.agreement.kappa.value,
            "flag precision": judge.flags.precision,
            "flag recall": judge.flags.recall,
            "flip rate": judge.flip_rate,
            "USD": judge.cost.usd,
            "found": judge.cost.found,
            "USD per found": judge.cost.usd_per_found,
        }
        for judge in report.judges
    ]
    header = list(lines[0]) if lines else ["judge"]
    return Table.of("Every judge; compared and held out are prompts", header, lines)


def _classes(judges: list[JudgeFigures]) -> Table:
    rows = [
        (judge.judge, label, c.precision, c.precision_weighted, c.recall, c.recall_weighted)
        for judge in judges
        for label, c in judge.tokens.classes.items()
    ]
    header = ("judge", "label", "precision", "weighted", "recall", "weighted")
    return Table("Precision and recall of each label, over tokens", header, rows)


def _agreement(judges: list[JudgeFigures]) -> Figure:
    figure = Figure()
    for number, judge in enumerate(judges):
        ends = [getattr(judge.tokens.agreement, name) for name in _MEASURES]
        values = [one.value for one in ends]
        figure.add_trace(
            Bar(
                name=judge.judge,
                x=list(_MEASURES.values()),
                y=values,
                error_y=error_bars(values, [e.low for e in ends], [e.high for e in ends]),
                marker_color=COLOURS[number % len(COLOURS)],
            )
        )
    figure.update_layout(title="Agreement with people, over tokens", barmode="group", height=420)
    return figure.update_yaxes(range=[-0.2, 1.05])


def _confusion(judge: JudgeFigures) -> Figure:
    table = judge.tokens.confusion
    counts = [[table[person][judged] for judged in LABELS] for person in LABELS]
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
    return figure.update_yaxes(autorange="reversed")


def _over_time(judges: list[JudgeFigures]) -> Figure:
    figure = Figure()
    for number, judge in enumerate(judges):
        figure.add_trace(
            Scatter(
                name=judge.judge,
                x=[one.day for one in judge.days],
                y=[one.percent for one in judge.days],
                mode="lines+markers",
                line_color=COLOURS[number % len(COLOURS)],
            )
        )
    figure.update_layout(title="Raw agreement by the day of the judgement (UTC)", height=380)
    return figure.update_yaxes(range=[0, 1.05])
