"""Ranges of a model that interventions must lie in."""

from __future__ import annotations

from collections.abc import Iterable

from em_circuits.intervention import FIRST_POSITION, Intervention
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError


def check_interventions(model: Model, interventions: Iterable[Intervention], n_pos: int) -> None:
    """Refuse what the model has no place for, before anything runs.

    Args:
        model: Whose layers and transcoders are meant.
        interventions: All of them, of one row or of several.
        n_pos: Tokens of the prompt, position 0 included.

    Raises:
        RequestError: Naming the first layer, position or feature out of range.
    """
    n_layers, width = model.sites.n_layers, len(model.transcoders[0].b_enc)
    for intervention in interventions:
        _check_range(intervention, "layer", intervention.layer, range(n_layers))
        _check_range(intervention, "feature id", intervention.feature, range(width))
        if isinstance(intervention.position, int):
            _check_range(
                intervention, "position", intervention.position, range(FIRST_POSITION, n_pos)
            )


def _check_range(intervention: Intervention, what: str, value: int, allowed: range) -> None:
    if value not in allowed:
        raise RequestError(
            f"{intervention.place}: {what} {value} does not exist; "
            f"choose {allowed.start} to {allowed.stop - 1}"
        )
