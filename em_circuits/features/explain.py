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
from statistics import median
from typing import Literal, Protocol, runtime_checkable

import torch
from pydantic import computed_field

from em_circuits.feature import FeatureId
from em_circuits.features.contexts import Context, check_features, top_contexts
from em_circuits.features.promoted import TokenPush, promoted_tokens
from em_circuits.models import Model
from pivotal_tokens.schema import Frozen, ModelName

LOW_SIMILARITY = 0.3
"""Decoder cosine under which a proxy is marked."""


@runtime_checkable
class FeatureLabels(Protocol):
    """Where labels come from."""

    def of(self, feature: FeatureId) -> str | None:
        """The label of a feature, or None."""

    def known(self, layer: int) -> Iterable[tuple[int, str]]:
        """(feature id, label) of every labelled feature of a layer."""


class Label(Frozen):
    """What is written about a feature, and how near to it."""

    text: str
    kind: Literal["direct", "proxy"]
    feature: int
    """The feature the text was written about: itself, or its neighbour."""
    cosine: float
    """Of both decoders; 1 for a direct label."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low_similarity(self) -> bool:
        """A proxy with a cosine under .3."""
        return self.kind == "proxy" and self.cosine < LOW_SIMILARITY


class Explained(Frozen):
    """Everything known about one feature."""

    layer: int
    feature: int
    label: Label | None
    density: float
    """Share of `positions` at which it fires."""
    positions: int
    """Of the text, the first of each document left out."""
    contexts: tuple[Context, ...]
    """The strongest first; none if the feature never fires in the text."""
    promoted: tuple[TokenPush, ...]
    """Most positive first."""
    suppressed: tuple[TokenPush, ...]
    """Most negative first."""


class Explanations(Frozen):
    """The object of `features explain --json`."""

    model: ModelName
    by: str
    """How the features were chosen."""
    features: tuple[Explained, ...]
    coverage: str
    """How many have a label of their own, and how many a neighbour's."""


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
    tokens = {feature: promoted_tokens(model, feature) for feature in wanted}
    return [
        Explained(
            layer=feature.layer,
            feature=feature.feature,
            label=found[feature] or label_of(model, labels, feature),
            density=contexts[feature].density,
            positions=contexts[feature].n_positions,
            contexts=contexts[feature].best,
            promoted=tokens[feature].promoted,
            suppressed=tokens[feature].suppressed,
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
    if text is None:
        return None
    return Label(text=text, kind="direct", feature=feature.feature, cosine=1.0)


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
    return [
        Label(text=known[i][1], kind="proxy", feature=known[i][0], cosine=float(cosines[i]))
        for i in order
    ]
