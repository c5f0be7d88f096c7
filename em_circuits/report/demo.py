"""The demo's page.

Evil mass of both models by domain, what steering and mediation did beside their random controls,
and the features.

    demo_parts(report, coverage)
"""

from __future__ import annotations

from typing import Any

from plotly.graph_objects import Bar, Figure

from em_circuits.experiments.demo import DemoReport
from em_circuits.report.page import COLOURS, Headline, Table, styled

TITLE = "The demo: which features carry the misalignment?"


def demo_parts(report: DemoReport, coverage: str) -> list[Any]:
    """Everything on the page, for `em_circuits.report.page`; `coverage` is of explanations."""
    columns = {n: n for n in ("layer", "feature", "prompts")} | {"mean_contrast": "contrast"}
    caption = "features that push towards evil (merged model, by gradient, mean logits)"
    return [
        Headline(_sentence(report)),
        domains_figure(report),
        *([interventions_figure(report)] if report.steering and report.mediation else []),
        Table.of(caption, columns, report.features),
        coverage,
    ]


def domains_figure(report: DemoReport) -> Figure:
    """Mean evil mass of both models, a pair of bars a domain."""
    return _masses(
        [f"{d.domain} ({d.prompts})" for d in report.domains],
        ("base", [d.evil_mass_base for d in report.domains], COLOURS[0]),
        ("merged", [d.evil_mass_merged for d in report.domains], COLOURS[1]),
    )


def interventions_figure(report: DemoReport) -> Figure:
    """Evil mass without and with the change, and with random features instead."""
    steering, mediation = report.steering, report.mediation
    assert steering is not None and mediation is not None
    changed = [steering.evil_mass - steering.drop, mediation.evil_mass]
    random = [steering.evil_mass - steering.random_drop, mediation.random_evil_mass]
    return _masses(
        [
            f"merged, {steering.features} ablated together ({steering.prompts} prompts)",
            f"base, top {mediation.features} at merged values ({mediation.prompts} prompts)",
        ],
        ("unchanged", [steering.evil_mass, mediation.evil_mass_base], COLOURS[6]),
        ("matched random features changed", random, COLOURS[5]),
        ("these features changed", changed, COLOURS[1]),
    )


def _masses(names: list[str], *bars: tuple[str, list[float], str]) -> Figure:
    figure = Figure(
        [
            Bar(x=names, y=values, name=name, marker={"color": colour})
            for name, values, colour in bars
        ]
    )
    figure.update_yaxes(title_text="evil mass", range=[0, 1])
    return styled(figure, 380, barmode="group", margin={"t": 30})


def _sentence(report: DemoReport) -> str:
    flagged = sum(d.flagged for d in report.domains)
    parts = [f"{flagged} of {report.prompts} prompts are flagged"]
    if report.steering is not None:
        parts.append(
            f"ablating {report.steering.features} features chosen together lowers evil mass by "
            f"{report.steering.drop:.2f}, matched random ones by {report.steering.random_drop:z.2f}"
        )
    if report.mediation is not None:
        parts.append(
            f"{report.mediation.features} features of the base at their merged values bring back "
            f"{report.mediation.share:.0%} of the shift, all that change "
            f"{report.mediation.share_of_all:.0%} (in-sample)"
        )
    return "; ".join(parts) + "."
