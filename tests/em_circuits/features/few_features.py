"""Prompts of a few features, for the tests of aggregation."""

from __future__ import annotations

import torch

from em_circuits.features import Block, FeatureScores, PromptScores, block_of
from pivotal_tokens.schema import Label

LABELS: dict[int, Label] = {10: "evil", 11: "safe", 12: "unsure", 99: "evil"}


def prompt(
    *rows: tuple[int, int, int, float],
    n_pos: int = 10,
    unscored: tuple[tuple[int, int, int], ...] = (),
) -> PromptScores:
    """Rows are (layer, position, feature id, contrast): evil scores it, safe 0, unsure 77."""
    values = torch.tensor([row[3] for row in rows])
    scores = FeatureScores(
        "gradient",
        torch.tensor([row[:3] for row in rows], dtype=torch.int64).reshape(-1, 3),
        torch.ones(len(rows)),
        torch.tensor([10, 11, 12]),
        torch.stack([values, 0 * values, 0 * values + 77]),
    )
    missing = torch.tensor(unscored, dtype=torch.int64).reshape(-1, 3)
    return PromptScores(scores, LABELS, n_pos, missing)


def block(*rows: tuple[int, int, int, float], by_position: bool = False, **more: object) -> Block:
    return block_of(prompt(*rows, **more), by_position=by_position)  # type: ignore[arg-type]
