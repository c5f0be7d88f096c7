"""What does a sweep's report show, on one page?

The sentence of what was and was not shown, dose-response, every condition beside its controls,
continuations side by side, and how to compute the figures again from the table.

    write_sweep_report(experiment)         # report.html and report.md in its folder
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_circuits.experiments.records import Experiment
from em_circuits.report.compare_texts import highlighted
from em_circuits.report.dose_response import dose_response
from em_circuits.report.page import Code, Heading, Raw, Said, Table, page_html
from pivotal_tokens.artefacts import write_atomic, write_provenance

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


def write_sweep_report(experiment: Experiment) -> Path:
    """Write both forms of the report, and return the page's path."""
    folder = experiment.folder
    for name, text in ((HTML, _html(experiment)), (MARKDOWN, _markdown(experiment))):
        write_atomic(folder / name, text)
        write_provenance(folder / name, **experiment.provenance)
    return folder / HTML


def _html(experiment: Experiment) -> str:
    summary = experiment.summary
    n = len(summary["prompts"])
    parts: list[Any] = [
        Said(summary["said"]),
        f"{summary['model']} model, {n} prompt{'s' if n > 1 else ''}, features "
        f"{summary['features']} chosen on {summary['selected_on']}; continuations judged by "
        f"{summary['judge']}.",
        Table(
            "The prompts, and whose labels they have",
            ("prompt", "text", "labels"),
            tuple((p["prompt_id"], p["text"], p["labels_from"]) for p in summary["prompts"]),
        ),
        Heading("Dose and response"),
        *dose_response(summary["conditions"]),
        Heading("Every condition beside its controls"),
        _MEANING,
        Table(
            "Largest net change first",
            tuple(_COLUMNS.values()),
            tuple(map(tuple, _lines(summary["conditions"]))),
        ),
        *_continuations(experiment),
        Heading("The same figures from the table"),
        Code(RECOMPUTE),
    ]
    if summary["left_out"]:
        rows = tuple((p["prompt_id"], p["reason"]) for p in summary["left_out"])
        parts.append(Table("Left out", ("prompt", "reason"), rows))
    return page_html(f"Steering: {summary['name']}", parts)


def _lines(conditions: Sequence[Mapping[str, Any]]) -> Iterator[list[Any]]:
    for line in sorted(conditions, key=lambda line: -abs(line["net"])):
        yield [line.get(column) for column in _COLUMNS]


def _continuations(experiment: Experiment) -> Iterator[Any]:
    """Continuations of the conditions with the largest net change, beside their twins."""
    by = {
        (r["prompt_id"], r["condition"], r["control"], r["sample"]): r
        for r in experiment.rollouts
        if not r["draw"]
    }
    if not by:
        return
    yield Heading("Continuations, side by side")
    yield (
        "The same noise drew every row, so what differs from the un-steered text (marked) is the "
        "treatment's doing."
    )
    conditions = sorted(experiment.summary["conditions"], key=lambda line: -abs(line["net"]))
    for line in conditions[:_SHOWN_TEXTS]:
        rows: list[tuple[Any, ...]] = []
        for (prompt, condition, control, sample), before in by.items():
            if condition != line["condition"] or control != "unsteered" or len(rows) >= 8:
                continue
            twins = [by.get((prompt, condition, other, sample)) for other in ("steered", "random")]
            cells = [
                None if twin is None else _text(before["text"], twin["text"], twin["label"])
                for twin in (before, *twins)
            ]
            rows.append((sample, *cells))
        header = ("sample", "un-steered", "steered", "random features")
        yield Table(line["condition"], header, tuple(rows))


def _text(before: str, after: str, label: str | None) -> Raw:
    kind = label or "unscored"
    return Raw(f'<span class="{kind}">{highlighted(before, after)}</span>')


def _markdown(experiment: Experiment) -> str:
    summary = experiment.summary
    columns = list(_COLUMNS)
    lines = [
        f"# Steering: {summary['name']}",
        "",
        summary["said"],
        "",
        _MEANING,
        "",
        "| " + " | ".join(_COLUMNS.values()) + " |",
        "|" + "---|" * len(columns),
    ]
    for row in _lines(summary["conditions"]):
        lines.append("| " + " | ".join(_plain(value) for value in row) + " |")
    return "\n".join([*lines, "", "```python", RECOMPUTE, "```", ""])


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
