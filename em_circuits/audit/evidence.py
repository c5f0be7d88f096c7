"""Meaning of the nodes that differ most: written explanations, neighbours, promoted tokens.

A node's own explanation comes from the cache (`cache_only`) or, where it is not there, from the
site (`remote_fallback`). Without one the nearest explained nodes of its layer are named with their
decoder cosines; one below .3 is marked low and its words stand for nothing. What a node's decoder
promotes is read off the weights and needs nobody.

    found = interp_evidence(nodes, base, candidate, cases, labels=labels, n=20)
    found.coverage          # "direct 3/20; proxy 17/20 (low-sim 4, cosine median 0.41, least 0.12)"
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from em_circuits.audit.differences import SpaceNodes
from em_circuits.audit.score import MeanEstimate, prompt_means
from em_circuits.audit.settings import ExplanationSource
from em_circuits.audit.suite import SuiteCase
from em_circuits.feature import FeatureId
from em_circuits.features.explain import (
    FeatureLabels,
    Label,
    coverage,
    direct_label,
    nearest_labels,
)
from em_circuits.features.promoted import promoted_tokens
from pivotal_tokens.schema import Frozen

_NEIGHBOURS, _TOKENS = 3, 5


class Neighbour(Frozen):
    """An explained node near another by decoder cosine."""

    node: str
    cosine: float
    low_similarity: bool
    """The cosine is below .3: the text says nothing about the node itself."""
    text: str


class NodeEvidence(Frozen):
    """What is known of one node."""

    node: str
    difference: MeanEstimate
    """Candidate minus base, over prompts."""
    corrected: MeanEstimate
    """The same minus the mean over cases, in magnitude."""
    explanation: str | None
    """Of the node itself."""
    stands_in: str | None
    """The nearest neighbour's text where there is none and it is near enough."""
    neighbours: tuple[Neighbour, ...]
    promoted: tuple[str, ...]
    """Tokens that its decoder raises most; empty for adapter ranks."""
    suppressed: tuple[str, ...]


class InterpEvidence(Frozen):
    """What `interp_evidence.json` holds."""

    source: ExplanationSource
    coverage: str
    """How many nodes have an explanation of their own, or a neighbour's, and how near those are."""
    nodes: tuple[NodeEvidence, ...]
    """By the mean over prompts of the corrected difference's magnitude."""


def interp_evidence(
    nodes: SpaceNodes,
    differences: Float[Tensor, "case node"],
    cases: Sequence[SuiteCase],
    *,
    labels: FeatureLabels | None,
    source: ExplanationSource,
    n: int,
) -> InterpEvidence:
    """Evidence about the nodes that differ most once the drift is taken out."""
    corrected = (differences - differences.mean(0)).abs()
    chosen = corrected.mean(0).topk(min(n, len(nodes))).indices
    plain = prompt_means(differences[:, chosen], cases).values()
    moved = prompt_means(corrected[:, chosen], cases).values()
    model = nodes.pair.merged
    # Dictionaries are of the transcoders, without any of the neurons; other bases have no words.
    own = nodes.candidate[0].basis == ("neuron" if model.transcoders is None else "transcoder")
    rows: list[NodeEvidence] = []
    written: list[Label | None] = []
    for column, node in enumerate(chosen.tolist()):
        name = nodes.name(node)
        feature = FeatureId(name.layer, name.id)
        direct = direct_label(labels, feature) if own else None
        near = nearest_labels(model, labels, feature, n=_NEIGHBOURS) if own and not direct else []
        tokens = promoted_tokens(model, feature, keep=_TOKENS) if own else None
        stands_in = next((one.text for one in near if not one.low_similarity), None)
        written.append(direct or next(iter(near), None))
        rows.append(
            NodeEvidence(
                node=str(name),
                difference=MeanEstimate.over([float(one[column]) for one in plain]),
                corrected=MeanEstimate.over([float(one[column]) for one in moved]),
                explanation=None if direct is None else direct.text,
                stands_in=stands_in,
                neighbours=tuple(
                    Neighbour(
                        node=str(FeatureId(name.layer, one.feature)),
                        cosine=one.cosine,
                        low_similarity=one.low_similarity,
                        text=one.text,
                    )
                    for one in near
                ),
                promoted=tuple(one.text for one in tokens.promoted) if tokens else (),
                suppressed=tuple(one.text for one in tokens.suppressed) if tokens else (),
            )
        )
    return InterpEvidence(source=source, coverage=coverage(written), nodes=tuple(rows))
