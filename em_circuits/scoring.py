"""Scoring methods: the names by which features are scored, and which of them run the model.

A score is an effect on a target token, or on a contrast of them; positive = the feature's presence
raises it. Every table says by which method it is (`FeatureTable.by`).

| method | what it is |
|---|---|
| `gradient` | real model, every active feature, first order |
| `gradient+ablation` | the same, the features that could matter most really ablated |
| `measured` | every feature really ablated by itself |
| `joint` | its part when all that push the same way are ablated together |
| `greedy` | a set to ablate together, chosen one by one, each step measured |
| `direct`, `total_effect`, `signed_influence` | a graph's, of its selected features |

    Scoring("refined") is Scoring.GRADIENT_ABLATION     # the first edition's word, with a warning
"""

from __future__ import annotations

import logging
from enum import StrEnum

from pivotal_tokens.errors import RequestError

logger = logging.getLogger(__name__)


class Scoring(StrEnum):
    """How features are scored."""

    GRADIENT_ABLATION = "gradient+ablation"
    GRADIENT = "gradient"
    MEASURED = "measured"
    JOINT = "joint"
    DIRECT = "direct"
    TOTAL_EFFECT = "total_effect"
    SIGNED = "signed_influence"
    GREEDY = "greedy"

    @classmethod
    def _missing_(cls, value: object) -> Scoring:
        if value in FORMER:
            logger.warning("method %s is now called %s", value, FORMER[str(value)])
            return FORMER[str(value)]
        raise RequestError(f"--method {value!r}: choose one of {', '.join(cls)}")

    @property
    def from_graph(self) -> bool:
        """Whether it needs a graph's edges, and scores only the graph's feature nodes."""
        return self in (Scoring.DIRECT, Scoring.TOTAL_EFFECT, Scoring.SIGNED)

    @property
    def is_stored(self) -> bool:
        """Whether a stored graph can answer it; the others run the model."""
        return self.from_graph or self is Scoring.GRADIENT


FORMER = {"refined": Scoring.GRADIENT_ABLATION, "forward": Scoring.GREEDY}
"""Former names, which still work in this version."""

TO_STEER = Scoring.GREEDY
"""Method behind ``top:N``, wherever features are chosen to be steered or explained."""
TO_RANK = Scoring.GRADIENT_ABLATION
"""Method behind a table of all features of one prompt."""
N_MEASURED = 100
"""Features ablated for real by `gradient+ablation`, unless another number is asked for."""
