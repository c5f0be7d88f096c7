"""What is known about a feature, beside where it fires?

Its label on Neuronpedia where `features explain` kept one (nothing is fetched here), and the tokens
its decoder pushes up and down where the models are loaded already (nothing is loaded here).

    explanation(desk, "merged", layer=2, feature=299)
"""

from __future__ import annotations

from typing import Any

from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels
from em_circuits.features.promoted import Promoted, promoted_tokens
from em_circuits.viewer.desk import Desk
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ModelName


def explanation(desk: Desk, model: ModelName, *, layer: int, feature: int) -> dict[str, Any]:
    """``label``, ``promoted`` and ``suppressed``; null where unknown."""
    tokens = _tokens(desk, model, layer, feature)
    return {
        "label": _label(desk, layer, feature),
        "promoted": None if tokens is None else [[t.text, t.value] for t in tokens.promoted],
        "suppressed": None if tokens is None else [[t.text, t.value] for t in tokens.suppressed],
    }


def _label(desk: Desk, layer: int, feature: int) -> str | None:
    named = desk.settings.neuronpedia
    if named is None:
        return None
    cache = desk.work.results / "neuronpedia"
    try:
        return NeuronpediaLabels(LabelSource.parse(named), cache, online=False).of((layer, feature))
    except RequestError:
        return None


def _tokens(desk: Desk, name: ModelName, layer: int, feature: int) -> Promoted | None:
    pair = desk.work.loaded_pair
    if pair is None:
        return None
    model = pair.model(name)
    if layer >= len(model.transcoders) or feature >= len(model.transcoders[layer].b_enc):
        return None
    return promoted_tokens(model, (layer, feature))
