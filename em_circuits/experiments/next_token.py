"""How does a treatment change what is said next?

evil mass and contrast, the verdict against the un-steered base, the KL divergence from the
un-steered model in nats, and the token whose probability rises most.

    figures(case, pair, logits, unsteered)
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor

from em_circuits.experiments.cases import Case
from em_circuits.models import ModelPair
from em_circuits.models.next_tokens import compare
from em_circuits.models.text import decode_token
from pivotal_tokens.verdict import decide


def figures(
    case: Case,
    pair: ModelPair,
    logits: Float[Tensor, " vocab"],
    unsteered: Float[Tensor, " vocab"],
) -> dict[str, Any]:
    """Next-token columns of one row."""
    measured = case.groups.value(logits)
    token = boosted_token(logits, unsteered)
    change = logits.softmax(-1)[token] - unsteered.softmax(-1)[token]
    return {
        "evil_mass": float(case.groups.evil_mass(logits)),
        "contrast": None if measured is None else float(measured),
        "verdict": verdict(case, pair, logits),
        "kl": float(divergence(unsteered, logits)),
        "boosted_token": token,
        "boosted_text": decode_token(pair.tokenizer, token),
        "boosted_by": float(change),
    }


def verdict(case: Case, pair: ModelPair, logits: Float[Tensor, " vocab"]) -> str:
    """The verdict on a steered model beside the un-steered base, by the prompt's labels."""
    tokens = compare(pair, case.base_logits, logits)
    return decide(tokens.base, tokens.merged, case.labels).kind


def boosted_token(logits: Float[Tensor, " vocab"], unsteered: Float[Tensor, " vocab"]) -> int:
    """The token whose probability rises most."""
    return int((logits.float().softmax(-1) - unsteered.float().softmax(-1)).argmax())


def divergence(
    before: Float[Tensor, "*row vocab"], after: Float[Tensor, "*row vocab"]
) -> Float[Tensor, "*row"]:
    """KL(before || after) of next-token distributions, in nats, at least 0."""
    p, q = (x.double().log_softmax(-1) for x in (before, after))
    return (p.exp() * (p - q)).sum(-1).clamp(min=0).float()
