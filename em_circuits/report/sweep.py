"""The report of a sweep or transfer: ``report.html`` and ``report.md`` in its folder.

The sentence of what was and was not shown, dose-response, every condition beside its controls,
continuations side by side, and how to compute the figures again from the table.

    write_sweep_report(experiment)
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from plotly.graph_objects import Figure

from em_circuits.experiments.experiment import Experiment
from em_circuits.experiments.summary import ConditionSummary, SteeringSummary
from em_circuits.report.page import (
    COLOURS,
    Code,
    Heading,
    Headline,
    Table,
    error_bars,
    styled,
    write_markdown,
    write_page,
)

HTML, MARKDOWN = "report.html", "report.md"
_COLUMNS = {
    "condition": "condition",
    "change": "evil mass",
    "control": "random",
    "net": "net",
    "low": "low",
    "high": "high",
    "q": "q",
    "works": "works",
    "noop_change": "no-op",
    "flipped_change": "flipped",
    "direction_change": "direction",
    "contrast_change": "contrast",
    "evil_rate": "evil said",
    "evil_rate_unsteered": "before",
    "evil_rate_random": "random",
    "perplexity": "perplexity",
    "perplexity_unsteered": "before",
    "repetition": "repeated",
    "off_target_kl": "off-target",
    "forced_evil_rate": "forced",
    "after_kl": "after",
    "detector": "detector",
}
_SHOWN_TEXTS = 4
_SHOWN_SAMPLES = 8
_MEANING = (
    "All changes are steered minus un-steered. Net is the change minus that of matched random "
    "features (same layer, similar activation and decoder norm) given the very same treatment; low "
    "and high are its 95 % interval, and a condition works when that leaves 0 out. q is the "
    "p-value over all conditions by Benjamini and Hochberg. No-op: the change times 0. Flipped: "
    "the opposite change. Direction: a random direction of the same length. Contrast in logits. "
    "Evil said: share of continuations judged evil. Perplexity is that of the un-steered base. "
    "Off-target: mean KL of the next token on benign prompts, in nats. Forced: share of evil "
    "continuations when the boosted token is appended and nothing is steered; after: KL that is "
    "left once it stands there. Detector: how well the features' activation tells these prompts "
    "from benign ones (area under the ROC curve); a good detector need not be a good lever."
)
RECOMPUTE = """import pandas as pd

rows = pd.read_parquet("rows.parquet")
rows["change"] = rows.evil_mass - rows.evil_mass_unsteered
means = rows.groupby(["condition", "control", "prompt_id"], sort=False).change.mean()
table = means.groupby(["condition", "control"], sort=False).mean().unstack()
table["net"] = table.steered - table.random
print(table[["steered", "random", "net"]])"""


def write_sweep_report(experiment: Experiment[SteeringSummary]) -> Path:
    """Write both forms of the report, and return the page's path."""
    summary, folder = experiment.summary, experiment.folder
    table = Table.of("Largest net change first", _COLUMNS, largest_first(summary.conditions))
    title, brief = f"Steering: {summary.name}", [summary.said, _MEANING, table, Code(RECOMPUTE)]
    write_page(folder / HTML, title, list(_parts(experiment, table)), **experiment.provenance)
    write_markdown(folder / MARKDOWN, title, brief, **experiment.provenance)
    return folder / HTML


def largest_first(conditions: Sequence[ConditionSummary]) -> list[ConditionSummary]:
    """Conditions by the size of their net change."""
    return sorted(conditions, key=lambda line: -abs(line.net))


def _parts(experiment: Experiment[SteeringSummary], table: Table) -> Iterator[Any]:
    summary = experiment.summary
    n = len(summary.prompts)
    yield Headline(summary.said)
    yield (
        f"{summary.model} model, {n} prompt{'s' if n > 1 else ''}, features {summary.features} "
        f"chosen on {summary.selected_on}; continuations judged by {summary.judge}."
    )
    yield Table(
        "The prompts, and whose labels they have",
        ("prompt", "text", "labels"),
        [(p.prompt_id, p.text, p.labels_from) for p in summary.prompts],
    )
    yield Heading("Dose and response")
    yield from condition_curves(summary.conditions)
    yield Heading("Every condition beside its controls")
    yield _MEANING
    yield table
    yield from _continuations(experiment)
    yield Heading("The same figures from the table")
    yield Code(RECOMPUTE)
    if summary.left_out:
        rows = [(p.prompt_id, p.reason) for p in summary.left_out]
        yield Table("Left out", ("prompt", "reason"), rows)


def condition_curves(conditions: Sequence[ConditionSummary]) -> Iterator[Figure]:
    """A figure per mode, unit and class of positions that has several strengths.

    Strength across, net change of evil mass up, a line per combination of features, bars for the
    net interval, and the matched random control dotted.
    """

    def key(line: ConditionSummary) -> tuple[str, str, str]:
        return line.mode, line.unit, line.place

    dosed = [line for line in conditions if line.value is not None]
    for (mode, unit, place), group in groupby(sorted(dosed, key=key), key):
        lines = list(group)
        if len({line.value for line in lines}) > 1:
            yield _dose_figure(lines, mode, unit, place)


def _dose_figure(lines: Sequence[ConditionSummary], mode: str, unit: str, place: str) -> Figure:
    figure = Figure()
    for number, name in enumerate(dict.fromkeys(line.combination for line in lines)):
        mine = sorted(
            (line for line in lines if line.combination == name), key=lambda line: line.value or 0
        )
        colour = COLOURS[number % len(COLOURS)]
        doses, net = [line.value for line in mine], [line.net for line in mine]
        bars = error_bars(net, [line.low for line in mine], [line.high for line in mine])
        figure.add_scatter(
            x=doses,
            y=net,
            error_y=bars | {"thickness": 1},
            name=name,
            mode="lines+markers",
            line={"color": colour},
        )
        figure.add_scatter(
            x=doses,
            y=[line.control for line in mine],
            name=f"{name}, random",
            mode="lines",
            line={"color": colour, "dash": "dot", "width": 1},
            showlegend=False,
        )
    what = "factor" if mode == "scale" else "value"
    if unit in ("own", "relative"):
        what += " times the feature's own activation"
    figure.add_hline(y=0, line_width=1, line_color="#999")
    return styled(
        figure,
        380,
        title=f"{mode}, at {place}: net change of evil mass (dotted: matched random)",
        xaxis_title=what,
        yaxis_title="net change of evil mass",
        margin={"l": 60, "r": 20, "t": 50, "b": 50},
    )


def _continuations(experiment: Experiment[SteeringSummary]) -> Iterator[Any]:
    """Continuations of the conditions with the largest net change, beside their twins."""
    by = {
        (r.prompt_id, r.condition, r.control, r.sample): r
        for r in experiment.rollouts
        if not r.draw
    }
    if not by:
        return
    yield Heading("Continuations, side by side")
    yield (
        "The same noise drew every row, so what differs from the un-steered text (marked) is the "
        "treatment's doing."
    )
    for line in largest_first(experiment.summary.conditions)[:_SHOWN_TEXTS]:
        unsteered = [key for key in by if key[1:3] == (line.condition, "unsteered")]
        rows: list[tuple[Any, ...]] = []
        for prompt, condition, control, sample in unsteered[:_SHOWN_SAMPLES]:
            before = by[prompt, condition, control, sample].text
            twins = [
                by.get((prompt, condition, other, sample))
                for other in ("unsteered", "steered", "random")
            ]
            cells = [twin and labelled_text(twin.label, before, twin.text) for twin in twins]
            rows.append((sample, *cells))
        header = ("sample", "un-steered", "steered", "random features")
        yield Table(line.condition, header, rows)


def labelled_text(label: str | None, before: str, after: str) -> Markup:
    """A continuation in the colour of its label, what is not in `before` marked."""
    kind = label if label in ("evil", "safe") else "unsure"
    return Markup('<span class="{}">{}</span>').format(kind, highlighted(before, after))


def highlighted(before: str, after: str) -> Markup:
    """`after` as markup, with the words that are not in `before` marked."""
    left, right = (re.findall(r"\s+|\S+", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(None, left, right, autojunk=False)
    parts = []
    for kind, _, _, start, stop in matcher.get_opcodes():
        if text := escape("".join(right[start:stop])):
            parts.append(text if kind == "equal" else Markup("<mark>{}</mark>").format(text))
    return Markup("").join(parts)
