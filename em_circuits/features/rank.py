"""Which features push a prompt towards its evil tokens and away from its safe ones?

    contrast[s] = mean over evil targets of score[t, s] - mean over safe targets of score[t, s]

The score is named with every table: `gradient` (real model, every active feature, first order),
`refined` (the same, the features that could matter most really ablated), `measured` (every feature
really ablated), `joint` (its part when all that push the same way are ablated together), `forward`
(a set to ablate together, chosen one by one, each step measured), or `direct`, `total_effect` and
`signed_influence` (graph, selected features). Positive = the feature's presence raises evil
over safe.

    ranking = rank_features(graph, groups, method="gradient")
    ranking.top(10)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence import Method, Targets, influence
from em_circuits.statistics import standardised
from pivotal_tokens.artefacts import finite
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label

GRADIENT = "gradient"
REFINED = "refined"
MEASURED = "measured"
JOINT = "joint"
FORWARD = "forward"
GRAPH_METHODS = (Method.DIRECT, Method.TOTAL_EFFECT, Method.SIGNED)
STORED_METHODS = (GRADIENT, *(str(m) for m in GRAPH_METHODS))
"""Those a stored graph can answer."""
LIVE_METHODS = (REFINED, MEASURED, JOINT, FORWARD)
"""Those the model is run for."""
METHODS = (*STORED_METHODS, *LIVE_METHODS)


@dataclass(frozen=True)
class FeatureScores:
    """One score per target and feature of one prompt and model."""

    method: str
    coordinates: Int[Tensor, "feature 3"]
    """(layer, position, feature id)."""
    activations: Float[Tensor, " feature"]
    token_ids: Int[Tensor, " target"]
    scores: Float[Tensor, "target feature"]
    """In logits (normalised shares for `signed_influence`)."""
    measured: Bool[Tensor, " feature"] | None = None
    """Which features were really ablated; None for none of them."""
    first: Int[Tensor, " chosen"] | None = None
    """Features chosen as a set, which stand first, in this order, whatever their contrasts."""


@dataclass(frozen=True)
class RankedFeature:
    """One feature of one prompt with its contrast."""

    layer: int
    position: int
    feature: int
    contrast: float
    evil_mean: float
    safe_mean: float
    activation: float
    welch_t: float | None = None
    """Descriptive, as are the next two; None where there is no spread to measure by."""
    welch_df: float | None = None
    hedges_g: float | None = None
    measured: bool = False
    """Its scores are effects of really ablating it."""

    def to_json(self) -> dict[str, Any]:
        """The row of `features rank --json`."""
        return dict(self.__dict__)


@dataclass(frozen=True)
class Ranking:
    """Features of a prompt from the most positive contrast to the most negative.

    Those that `forward` chose stand first, in the order in which they were chosen.
    """

    method: str
    features: tuple[RankedFeature, ...]
    unmatched: tuple[int, ...]
    """Labelled token ids that are no target of the graph."""

    def top(self, n: int) -> tuple[RankedFeature, ...]:
        """The first n: the most positive contrasts."""
        return self.features[:n]

    def bottom(self, n: int) -> tuple[RankedFeature, ...]:
        """The n most negative contrasts, most negative first."""
        return tuple(reversed(self.features))[:n]

    def largest(self, n: int) -> tuple[RankedFeature, ...]:
        """The n largest by magnitude."""
        return tuple(sorted(self.features, key=lambda f: -abs(f.contrast))[:n])


def graph_scores(graph: AttributionGraph, method: str) -> FeatureScores:
    """Scores of a stored graph's features on each of its targets.

    Args:
        graph: With its gradient scores for ``gradient``, with its edges for the others.
        method: ``gradient``, ``direct``, ``total_effect`` or ``signed_influence``.

    Raises:
        RequestError: If the method is unknown, or the graph does not hold what it needs.
    """
    if method == GRADIENT:
        if graph.gradient is None:
            raise RequestError(
                f"graph {graph.header.key[:12]} has no gradient scores (an imported graph?); "
                "use --method total_effect"
            )
        return FeatureScores(
            method, graph.active, graph.activations, graph.targets.token_ids, graph.gradient
        )
    if method in LIVE_METHODS:
        raise RequestError(f"--method {method} runs the model; no stored graph can answer it")
    if method not in GRAPH_METHODS:
        raise RequestError(f"--method {method!r}: choose one of {', '.join(METHODS)}")
    result = influence(graph, Targets.each(graph), Method(method))
    return FeatureScores(
        method,
        graph.selected_features,
        graph.selected_activations,
        graph.targets.token_ids,
        result.values[:, graph.layout.features].float(),
    )


def rank(scores: FeatureScores, labels: Mapping[int, Label]) -> Ranking:
    """Rank features by their evil-minus-safe contrast, labels matched by token id.

    Features chosen as a set (`FeatureScores.first`) stand before the others.

    Args:
        scores: Of one prompt and model.
        labels: Token id -> label; unsure tokens take no part.

    Raises:
        RequestError: If no target is labelled evil, or none safe: there is no contrast.
    """
    is_evil, is_safe = sides_of(scores.token_ids, labels)
    evil = scores.scores[is_evil].double().mean(0)
    safe = scores.scores[is_safe].double().mean(0)
    spread = standardised(scores.scores, is_evil, is_safe)
    contrast = evil - safe
    ablated = scores.measured
    measured = ablated.tolist() if ablated is not None else [False] * len(contrast)
    order = torch.argsort(contrast, descending=True, stable=True).tolist()
    if scores.first is not None:
        first = scores.first.tolist()
        order = first + [i for i in order if i not in set(first)]
    columns = zip(
        scores.coordinates.tolist(),
        contrast.tolist(),
        evil.tolist(),
        safe.tolist(),
        scores.activations.tolist(),
        *([finite(v) for v in values.tolist()] for values in (spread.t, spread.df, spread.g)),
        measured,
        strict=True,
    )
    rows = [RankedFeature(*place, *numbers) for place, *numbers in columns]
    targets = set(scores.token_ids.tolist())
    unmatched = tuple(sorted(token for token in labels if token not in targets))
    return Ranking(scores.method, tuple(rows[i] for i in order), unmatched)


def sides_of(
    token_ids: Int[Tensor, " target"], labels: Mapping[int, Label]
) -> tuple[Bool[Tensor, " target"], Bool[Tensor, " target"]]:
    """Which targets are labelled evil, and which safe.

    Raises:
        RequestError: If no target is labelled evil, or none safe: there is no contrast.
    """
    given = [labels.get(token) for token in token_ids.tolist()]
    evil, safe = (
        torch.tensor([g == side for g in given], dtype=torch.bool) for side in ("evil", "safe")
    )
    if not (evil.any() and safe.any()):
        raise RequestError(
            f"no contrast: {int(evil.sum())} evil and {int(safe.sum())} safe targets are "
            "labelled; label the prompt first (em-circuits review)"
        )
    return evil, safe


def rank_features(
    graph: AttributionGraph, labels: Mapping[int, Label], *, method: str = GRADIENT
) -> Ranking:
    """Rank a stored graph's features by evil-minus-safe contrast; see `graph_scores`, `rank`."""
    return rank(graph_scores(graph, method), labels)
