"""Evidence of what a feature means.

Three kinds of evidence side by side: where it fires most in a text, which tokens its decoder
promotes, and a label that somebody wrote (direct). Where there is none, the label of the nearest
labelled feature of the same layer by decoder cosine stands in (proxy), marked low-similarity
under .3: a guess, never to be read as an explanation.

    explained = explain(model, features, texts, labels)
    coverage(found)     # "direct 3/10; proxy 5/10 (low-sim 2, cosine median 0.41, least 0.12)"
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
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
    found = {
        f: direct_label(labels, f) for f in wanted
    }  # first: what is fetched can serve as a proxy
    contexts = top_contexts(model, wanted, texts, keep=keep)
    return [
        Explained(
            layer=feature.layer,
            feature=feature.feature,
            contexts=contexts[feature],
            tokens=promoted_tokens(model, feature),
            label=found[feature] or label_of(model, labels, feature),
        )
        for feature in wanted
    ]


def coverage(labels: Sequence[Label | None]) -> str:
    """How many features have a label of their own, and how many a neighbour's, with the median and
    the least cosine of those, in one line."""
    n = len(labels)
    proxies = [label for label in labels if label is not None and label.kind == "proxy"]
    direct = sum(label is not None for label in labels) - len(proxies)
    said = f"low-sim {sum(label.low_similarity for label in proxies)}"
    if proxies:
        cosines = [label.cosine for label in proxies]
        said += f", cosine median {median(cosines):.2f}, least {min(cosines):.2f}"
    return f"direct {direct}/{n}; proxy {len(proxies)}/{n} ({said})"


def label_of(model: Model, labels: FeatureLabels | None, feature: FeatureId) -> Label | None:
    """What is written about a feature, else about its nearest labelled neighbour."""
    return direct_label(labels, feature) or next(iter(nearest_labels(model, labels, feature)), None)


def direct_label(labels: FeatureLabels | None, feature: FeatureId) -> Label | None:
    """What somebody wrote about the feature itself."""
    text = labels.of(feature) if labels is not None else None
    return None if text is None else Label(text, "direct", feature[1], 1.0)


@torch.no_grad()
def nearest_labels(
    model: Model, labels: FeatureLabels | None, feature: FeatureId, *, n: int = 1
) -> list[Label]:
    """The nearest labelled features of the same layer by decoder cosine, ties to the lower id."""
    layer, index = feature
    dictionary = model.dictionaries[layer]
    known = [] if labels is None else [p for p in labels.known(layer) if p[0] < dictionary.width]
    if not known:
        return []
    ids = torch.tensor([index, *(i for i, _ in known)])
    writes = [dictionary.decoder(ids, k).float() for k in range(dictionary.n_writes)]
    rows = torch.cat(writes, dim=1)
    cosines = torch.nn.functional.cosine_similarity(rows[1:], rows[:1], dim=1)
    order = cosines.argsort(descending=True, stable=True)[:n].tolist()
    return [Label(known[i][1], "proxy", known[i][0], float(cosines[i])) for i in order]
