"""Evidence of what a feature means.

Three kinds of evidence side by side: where it fires most in a text, which tokens its decoder
promotes, and a label that somebody wrote (direct). Where there is none, the label of the nearest
labelled feature of the same layer by decoder cosine stands in (proxy), marked low-similarity
under .3: a guess, never to be read as an explanation.

    explained = explain(model, features, texts, labels)
    coverage(explained)     # "direct 3/10; proxy 5/10 (low-sim 2)"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch

from em_circuits.feature import FeatureId
from em_circuits.features.contexts import FeatureContexts, check_features, top_contexts
from em_circuits.features.promoted import Promoted, promoted_tokens
from em_circuits.models import Model

LOW_SIMILARITY = 0.3
"""Decoder cosine under which a proxy is marked."""


@runtime_checkable
class FeatureLabels(Protocol):
    """Where labels come from."""

    def of(self, feature: FeatureId) -> str | None:
        """The label of a feature, or None."""

    def known(self, layer: int) -> Iterable[tuple[int, str]]:
        """(feature id, label) of every labelled feature of a layer."""


@dataclass(frozen=True)
class Label:
    """What is written about a feature, and how near to it."""

    text: str
    kind: Literal["direct", "proxy"]
    feature: int
    """The feature the text was written about: itself, or its neighbour."""
    cosine: float
    """Of both decoders; 1 for a direct label."""

    @property
    def low_similarity(self) -> bool:
        return self.kind == "proxy" and self.cosine < LOW_SIMILARITY


@dataclass(frozen=True)
class Explained:
    """Everything known about one feature."""

    layer: int
    feature: int
    contexts: FeatureContexts
    tokens: Promoted
    label: Label | None

    def to_json(self) -> dict[str, Any]:
        """The shape of ``features explain --json`` (docs/json.md)."""
        label = None
        if self.label is not None:
            label = asdict(self.label) | {"low_similarity": self.label.low_similarity}
        return {
            "layer": self.layer,
            "feature": self.feature,
            "label": label,
            "density": self.contexts.density,
            "positions": self.contexts.n_positions,
            "contexts": [asdict(context) for context in self.contexts.best],
            "promoted": [asdict(token) for token in self.tokens.promoted],
            "suppressed": [asdict(token) for token in self.tokens.suppressed],
        }


def explain(
    model: Model,
    features: Sequence[FeatureId],
    texts: Iterable[str],
    labels: FeatureLabels | None = None,
    *,
    keep: int = 5,
) -> list[Explained]:
    """Gather the evidence about some features.

    Args:
        model: Base or merged, with its dictionaries.
        features: (layer, feature id) each.
        texts: Documents in which to look for contexts.
        labels: Where labels come from; None for no labels at all.
        keep: Contexts per feature.

    Raises:
        RequestError: If a feature does not exist or there is no document.
    """
    check_features(model, features)
    wanted = list(dict.fromkeys(features))
    found = {f: _direct(labels, f) for f in wanted}  # first: what is fetched can serve as a proxy
    contexts = top_contexts(model, wanted, texts, keep=keep)
    return [
        Explained(
            layer=feature.layer,
            feature=feature.feature,
            contexts=contexts[feature],
            tokens=promoted_tokens(model, feature),
            label=found[feature] or _proxy(model, labels, feature),
        )
        for feature in wanted
    ]


def coverage(explained: Sequence[Explained]) -> str:
    """How many features have a label of their own, and how many a neighbour's, in one line."""
    labels = [item.label for item in explained if item.label is not None]
    proxies = [label for label in labels if label.kind == "proxy"]
    low, n = sum(label.low_similarity for label in proxies), len(explained)
    return f"direct {len(labels) - len(proxies)}/{n}; proxy {len(proxies)}/{n} (low-sim {low})"


def _direct(labels: FeatureLabels | None, feature: FeatureId) -> Label | None:
    text = labels.of(feature) if labels is not None else None
    return None if text is None else Label(text, "direct", feature[1], 1.0)


@torch.no_grad()
def _proxy(model: Model, labels: FeatureLabels | None, feature: FeatureId) -> Label | None:
    """The nearest labelled feature of the same layer, ties to the lower id."""
    layer, index = feature
    width = model.dictionaries[layer].width
    known = [] if labels is None else [pair for pair in labels.known(layer) if pair[0] < width]
    if not known:
        return None
    ids = torch.tensor([index, *(i for i, _ in known)])
    dictionary = model.dictionaries[layer]
    writes = [dictionary.decoder(ids, k).float() for k in range(dictionary.n_writes)]
    rows = torch.cat(writes, dim=1)
    cosines = torch.nn.functional.cosine_similarity(rows[1:], rows[:1], dim=1)
    best = int(cosines.argmax())
    return Label(known[best][1], "proxy", known[best][0], float(cosines[best]))
