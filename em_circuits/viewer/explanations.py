"""Explanations of a feature: its label and the tokens it promotes.

Its label on Neuronpedia where `features explain` kept one (nothing is fetched here), and the tokens
its decoder pushes up and down where the models are loaded already (nothing is loaded here).

    explanation(context, "merged", layer=2, feature=299)
"""

from __future__ import annotations

from typing import Any

from em_circuits.feature import FeatureId
from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels
from em_circuits.features.promoted import Promoted, promoted_tokens
from em_circuits.viewer.context import AppContext
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import ModelName


def explanation(
    context: AppContext, model: ModelName, *, layer: int, feature: int
) -> dict[str, Any]:
    """``label``, ``promoted`` and ``suppressed``; null where unknown."""
    tokens = _tokens(context, model, layer, feature)
    return {
        "label": _label(context, layer, feature),
        "promoted": None if tokens is None else [[t.text, t.value] for t in tokens.promoted],
        "suppressed": None if tokens is None else [[t.text, t.value] for t in tokens.suppressed],
    }


def _label(context: AppContext, layer: int, feature: int) -> str | None:
    named = context.settings.neuronpedia
    if named is None:
        return None
    cache = context.work.results / "neuronpedia"
    try:
        return NeuronpediaLabels(LabelSource.parse(named), cache, online=False).of(
            FeatureId(layer, feature)
        )
    except RequestError:
        return None


def _tokens(context: AppContext, name: ModelName, layer: int, feature: int) -> Promoted | None:
    pair = context.work.loaded_pair
    if pair is None:
        return None
    model = pair.model(name)
    if layer >= len(model.transcoders) or feature >= len(model.transcoders[layer].b_enc):
        return None
    return promoted_tokens(model, FeatureId(layer, feature))
