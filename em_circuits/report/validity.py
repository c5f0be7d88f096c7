"""The page of ``validity``: the verdict, what it rests on, and every figure beside its controls.

validity_parts(card, coverage)
"""

from __future__ import annotations

from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter

from em_circuits.experiments.shares import Share
from em_circuits.experiments.validity_verdict import ValidityCard
from em_circuits.report.page import COLOURS, Heading, Headline, Table, error_bars, styled

TITLE = "Do these nodes carry it?"
_VERDICT = {True: "passed", False: "failed", None: "not asked"}


def validity_parts(card: ValidityCard, coverage: str) -> list[Any]:
    """Everything on the page, for `em_circuits.report.page`; `coverage` is of explanations."""
    against = "the base model" if card.reference == "base" else "nothing (nodes are ablated)"
    return [
        Headline(card.sentence),
        f"Tier: {card.tier}. {card.asked}, chosen by {card.chosen_by} on {card.chosen_on}; "
        f"{len(card.prompts)} prompts, {card.model} model against {against}; mean shift "
        f"{card.shift:.2f} logits. What is asked stands in version {card.thresholds.version} of "
        f"the thresholds ({card.thresholds_sha256[:12]}), written before the run.",
        Table(
            "the verdict, line by line",
            ("asked", "verdict", "found", "asked for", ""),
            [(c.name, _VERDICT[c.passed], c.value, c.threshold, c.says) for c in card.checks],
        ),
        Heading("Beside circuits of the same size"),
        "Necessary: share of the shift that goes when the nodes are removed. Sufficient: share "
        "that they bring by themselves. Intervals are 95 % bootstrap intervals over prompts; of "
        "random circuits (same layers, like activations and writes) the middle 95 % of draws.",
        shares_figure(card),
        Heading("Faithfulness by size"),
        "Share of the shift that the first nodes of each ranking bring, by their share of all "
        "nodes. CPR is the area under a curve, CMD the area between it and 1 (MIB, 2025).",
        curves_figure(card),
        Table.of("areas", ("ranking", "cpr", "cmd"), card.curves),
        Heading("Each node's own part"),
        Table.of(
            "with the node minus without it, mean of both shares",
            ("node", "contribution", "low", "high", "above_random", "p"),
            card.contributions,
        ),
        coverage,
        Heading("What else was looked at"),
        *_more(card),
        Table.of(
            "hypothesis tests of an ideal circuit (Shi et al. 2024); the card passes without them",
            ("test", "p", "says"),
            card.tests,
        ),
    ]


def _more(card: ValidityCard) -> list[Any]:
    rows: list[tuple[str, Any]] = [
        ("prompts on which it is above every random circuit", card.prompts_above_random)
    ]
    if (side := card.specificity) is not None:
        rows += [
            ("KL by removing it, prompts of the claim", side.claimed),
            ("KL by removing it, unrelated prompts", side.unrelated),
            ("KL by removing random circuits, unrelated prompts", side.random),
        ]
    if (stability := card.stability) is not None:
        rows += [
            ("Jaccard of circuits chosen on resampled prompts", stability.resampled),
            ("Jaccard of the circuits of both halves of the categories", stability.halves),
            ("Jaccard of the circuit and those of other draws of the search", stability.seeds),
            ("Jaccard of circuits chosen on prompts and on paraphrases", stability.paraphrases),
            ("Jaccard of two random circuits", stability.chance),
            ("noise floor: 97.5 % of matched random circuits agree less", stability.noise_floor),
        ]
    rows += [(f"share of the shift: {name}", str(x)) for name, x in card.components.items()]
    return [Table("", ("", "found"), rows)]


def shares_figure(card: ValidityCard) -> Figure:
    """Both shares of the circuit, its simple rivals and random ones."""
    figure = Figure()
    for (name, claim), colour in zip(
        (("necessary", card.necessity), ("sufficient", card.sufficiency)), COLOURS, strict=False
    ):
        each: dict[str, Share] = {"circuit": claim, **claim.baselines, "random": claim.random}
        values = [one.share for one in each.values()]
        bars = error_bars(
            values, [one.low for one in each.values()], [one.high for one in each.values()]
        )
        figure.add_trace(Bar(x=list(each), y=values, error_y=bars, name=name, marker_color=colour))
    return styled(figure, 380, yaxis_title="share of the shift", barmode="group")


def curves_figure(card: ValidityCard) -> Figure:
    """Faithfulness against size, on a logarithmic axis."""
    figure = Figure()
    for curve, colour in zip(card.curves, COLOURS, strict=False):
        figure.add_trace(
            Scatter(
                x=card.fractions,
                y=curve.faithfulness,
                mode="lines+markers",
                name=curve.ranking,
                line={"color": colour},
            )
        )
    figure.update_xaxes(type="log", title="share of all nodes", tickformat=".1%")
    return styled(figure, 420, yaxis_title="faithfulness")
