"""Prompts of a few features, for the tests of aggregation."""

from __future__ import annotations

import torch

from em_circuits.contrast import Contrast
from em_circuits.features import by_key
from em_circuits.table import FeatureTable

CONTRAST = Contrast(evil=(10, 99), safe=(11,))


def prompt(
    *rows: tuple[int, int, int, float],
    n_pos: int = 10,
    unscored: tuple[tuple[int, int, int], ...] = (),
) -> FeatureTable:
    """Rows are (layer, position, feature id, contrast): evil scores it, safe 0, unsure 77."""
    values = torch.tensor([*(row[3] for row in rows), *([torch.nan] * len(unscored))])
    places = [*(row[:3] for row in rows), *unscored]
    return FeatureTable.of(
        torch.tensor(places, dtype=torch.int64).reshape(-1, 3),
        by="gradient",
        targets=[10, 11, 12],
        per_target=torch.stack([values, 0 * values, 0 * values + 77]),
        about={"n_pos": n_pos},
        activation=torch.ones(len(places)),
    )


def keyed(
    *rows: tuple[int, int, int, float], by_position: bool = False, **more: object
) -> FeatureTable:
    """Contrasts of such a prompt by key."""
    table = prompt(*rows, **more).contrasted(CONTRAST)  # type: ignore[arg-type]
    return by_key(table, by_position=by_position)
