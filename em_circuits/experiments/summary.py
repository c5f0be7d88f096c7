"""What do the rows of a sweep say, condition by condition?

Changes are steered minus un-steered, so negative evil mass is a fall. Each condition is set beside
its matched random control (`em_circuits.statistics`); q is its p adjusted over all
conditions by Benjamini and Hochberg. Detector and lever are apart: the detector's quality is how
well the features' activation tells the plan's prompts from the benign panel (area under the ROC
curve), the lever's is the net change.

    summarise(rows, detectors)["conditions"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch

from em_circuits.experiments.cases import Case, peak_activations
from em_circuits.experiments.conditions import (
    DIRECTION,
    FLIPPED,
    NOOP,
    RANDOM,
    STEERED,
    UNSTEERED,
    Condition,
)
from em_circuits.interventions import PromptState
from em_circuits.statistics import (
    AgainstControl,
    against_control,
    benjamini_hochberg,
    paired_interval,
)

Rows = Sequence[Mapping[str, Any]]


def summarise(
    rows: Rows, detectors: Mapping[str, float | None], *, not_shown: str, seed: int = 0
) -> dict[str, Any]:
    """Figures per condition, and the sentences of what was and was not shown.

    Args:
        rows: Of the table.
        detectors: Quality of each condition's features as a detector.
        not_shown: What the design cannot show, in words.
        seed: Of the resamples.
    """
    names = list(dict.fromkeys(row["condition"] for row in rows))
    by_name = {name: [row for row in rows if row["condition"] == name] for name in names}
    results = {name: against(by_name[name], "evil_mass", seed) for name in names}
    q = benjamini_hochberg(torch.tensor([results[name].p for name in names]).double()).tolist()
    lines = []
    for name, adjusted in zip(names, q, strict=True):
        result = results[name]
        line = _condition(by_name[name], result, seed)
        lines.append({**line, "q": adjusted, "detector": detectors.get(name)})
    return {"conditions": lines, "said": said(lines, not_shown)}


NOTABLE = 0.05
"""Net change of evil mass that is worth a word."""


def said(lines: Sequence[Mapping[str, Any]], not_shown: str) -> str:
    """What was and what was not shown, in words."""
    if not lines:
        return "Nothing was measured."
    working = [line for line in lines if line["works"]]
    best = max(working or lines, key=lambda line: abs(line["net"]))
    notable = sum(abs(line["net"]) >= NOTABLE for line in working)
    n = max(line["n_prompts"] for line in lines)
    over = "one prompt, its own control draws" if n == 1 else f"{n} prompts"
    shown = (
        f"{len(working)} of {len(lines)} conditions change evil mass by more than matched random "
        f"features do (95 % interval over {over}), {notable} of them by {NOTABLE:g} or more; the "
        f"largest{' of these' if working else ''} is {best['condition']}: "
        f"{best['change']:+.3f}, random {best['control']:+.3f}, net {best['net']:+.3f} "
        f"[{best['low']:+.3f}, {best['high']:+.3f}], q = {best['q']:.3f}."
    )
    caveat = f"Not shown: {not_shown}, or that the effect is a disposition rather than a token"
    forced = best.get("forced_evil_rate")
    if forced is not None and best.get("evil_rate") is not None:
        caveat += (
            f" (the boosted token appended without steering gives evil "
            f"continuations at {forced:.2f}, steering at {best['evil_rate']:.2f})"
        )
    unscored = sum(line.get("unscored") or 0 for line in lines)
    left = f" {unscored} continuations got no label and stand in no rate." if unscored else ""
    return f"{shown} {caveat}.{left}"


def detectors(
    cases: Sequence[Case],
    benign: Sequence[PromptState],
    pieces: Sequence[tuple[Case, Condition]],
) -> dict[str, float | None]:
    """Per condition, how well its features' summed activation tells prompts from benign ones."""
    found: dict[str, float | None] = {}
    states = [case.state for case in cases]
    for _, condition in pieces:
        if condition.name in found or not benign:
            continue
        features = sorted({(layer, feature) for layer, _, feature in condition.features})
        hits = peak_activations(states, features).sum(1)
        misses = peak_activations(benign, features).sum(1)
        above = (hits[:, None] > misses).double() + 0.5 * (hits[:, None] == misses).double()
        found[condition.name] = float(above.mean())
    return found


def against(rows: Rows, column: str, seed: int = 0) -> AgainstControl:
    """A column's change under steering beside its random control.

    Args:
        rows: Of one condition, with both arms of every prompt in them.
        column: Beside which ``COLUMN_unsteered`` stands.
        seed: Of the resamples.
    """
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))
    steered, random = [], []
    for prompt in prompts:
        mine = [row for row in rows if row["prompt_id"] == prompt]
        changes = {
            control: [row[column] - row[f"{column}_unsteered"] for row in mine if _is(row, control)]
            for control in (STEERED, RANDOM)
        }
        steered += changes[STEERED]
        random.append(changes[RANDOM])
    return against_control(torch.tensor(steered), torch.tensor(random), seed=seed)


def _condition(rows: Rows, result: AgainstControl, seed: int) -> dict[str, Any]:
    first = rows[0]
    contrast = against(rows, "contrast", seed)
    steered = [row for row in rows if _is(row, STEERED)]
    line: dict[str, Any] = {
        name: first[name] for name in ("condition", "combination", "mode", "value", "unit", "place")
    }
    line |= {
        "features": list(dict.fromkeys(row["features"] for row in steered)),
        **vars(result),
        "works": result.works,
        "evil_mass_unsteered": fmean(row["evil_mass_unsteered"] for row in steered),
        "evil_mass": fmean(row["evil_mass"] for row in steered),
        "contrast_change": contrast.change,
        "contrast_net": contrast.net,
        "contrast_low": contrast.low,
        "contrast_high": contrast.high,
        "verdicts_changed": sum(r["verdict"] != r["verdict_unsteered"] for r in steered),
        "boosted": steered[0]["boosted_text"],
    }
    for control in (NOOP, FLIPPED, DIRECTION):
        line[f"{control}_change"] = _mean(
            row["evil_mass"] - row["evil_mass_unsteered"] for row in rows if _is(row, control)
        )
    for column in ("off_target_kl", "perplexity", "repetition", "evil_rate"):
        line[column] = _mean(row.get(column) for row in steered)
        line[f"{column}_random"] = _mean(row.get(column) for row in rows if _is(row, RANDOM))
        if column != "off_target_kl":
            unsteered = (row.get(column) for row in rows if _is(row, UNSTEERED))
            line[f"{column}_unsteered"] = _mean(unsteered)
    for column in ("forced_evil_rate", "after_kl"):
        line[column] = _mean(row.get(column) for row in steered)
    line["unscored"] = sum(row.get("unscored") or 0 for row in rows)
    line |= _judged(rows, seed)
    return line


def _judged(rows: Rows, seed: int) -> dict[str, float | None]:
    """Paired interval of the change of the evil rate, over prompts."""
    rate = {(r["prompt_id"], r["control"]): r.get("evil_rate") for r in rows if not r["draw"]}
    differences = [
        after - before
        for (prompt, control), after in rate.items()
        if control == STEERED
        and after is not None
        and (before := rate.get((prompt, UNSTEERED))) is not None
    ]
    low, high = paired_interval(torch.tensor(differences), seed=seed)
    return {
        "evil_rate_change": fmean(differences) if differences else None,
        "evil_rate_low": low,
        "evil_rate_high": high,
    }


def _is(row: Mapping[str, Any], control: str) -> bool:
    return bool(row["control"] == control)


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
