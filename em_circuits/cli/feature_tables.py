"""How do tables of features over prompts look to a person?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_circuits.cli.output import table


def aggregate_title(record: dict[str, Any]) -> str:
    """What was summed up."""
    n, out = len(record["prompts"]), len(record["left_out"])
    left_out = f" ({out} without labels or graphs left out)" if out else ""
    return f"{record['model']} model, by {record['method']}, over {n} prompts{left_out}"


def aggregate_table(lines: Sequence[dict[str, Any]], *, by_position: bool) -> str:
    """Features over prompts."""
    place = ("layer", "feature", *(("offset",) if by_position else ()))
    names = (*place, "selected", "n", "mean", "low", "high", "same_sign", "q", "stable")
    header = (*place, "seen", "n", "mean", "low", "high", "sign", "q", "stable")
    return table(header, [[line[name] for name in names] for line in lines])


def aggregate_notes(record: dict[str, Any]) -> list[str]:
    """How many were tested, how stable the top is, and how excluded layers compare."""
    stability, permuted = record["stability"], record["permutations"]
    notes = [
        f"{record['n_features']} features, {record['n_tested']} tested by "
        f"{permuted['n']} {'(all) ' if permuted['exact'] else ''}permutations of the labels"
    ]
    if stability["mean_overlap"] is not None:
        notes.append(
            f"top {stability['k']} without one prompt: {stability['mean_overlap']:.0%} stay, "
            f"{stability['least_overlap']:.0%} at least"
        )
    if layers := record["layers"]:
        notes.append(layer_note(layers))
    return notes


def layer_note(layers: dict[str, Any]) -> str:
    """How excluded layers compare with the others."""
    if layers["difference"] is None:
        return f"layers {layers['excluded']}: no prompt has features on both sides"
    interval = "" if layers["low"] is None else f" [{layers['low']:.4f}, {layers['high']:.4f}]"
    return (
        f"mean |contrast| without layers {layers['excluded']}: {layers['kept_mean']:.4f}, in them "
        f"{layers['excluded_mean']:.4f}\ndifference {layers['difference']:.4f}{interval}"
    )


def diff_table(lines: Sequence[dict[str, Any]], pair: int, *, by_position: bool) -> str:
    """Changes of features under one pair, a line each."""
    place = ("layer", "feature", *(("offset",) if by_position else ()))
    header = (*place, "n", "score", "low", "high", "q", "activation", "edge")
    rows = []
    for line in lines:
        cell = line["changes"][pair] or {}
        score, others = cell.get("score") or {}, (cell.get(m) or {} for m in ("activation", "edge"))
        numbers = [score.get(name) for name in ("n", "mean", "low", "high", "q")]
        rows.append([*(line[p] for p in place), *numbers, *(other.get("mean") for other in others)])
    return table(header, rows)
