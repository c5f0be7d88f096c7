"""Next tokens that a feature pushes up or down, read straight off its decoder.

    direct[v] = W_dec[f] . (g * W_U[:, v]),   then minus the mean over the vocabulary

with g the final norm's weight: the feature's output as if nothing stood between it and the logits
(the logit lens, nostalgebraist 2020). The norm's scale is left out, so values compare within a
feature, not between two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.feature import FeatureId
from em_circuits.models import Model
from em_circuits.models.text import decode_token


@dataclass(frozen=True)
class TokenPush:
    """One token and how much a unit of the feature pushes its demeaned logit."""

    token_id: int
    text: str
    value: float


@dataclass(frozen=True)
class Promoted:
    """The tokens at both ends."""

    promoted: tuple[TokenPush, ...]
    """Most positive first."""
    suppressed: tuple[TokenPush, ...]
    """Most negative first."""


@torch.no_grad()
def promoted_tokens(model: Model, feature: FeatureId, *, keep: int = 8) -> Promoted:
    """Tokens that a feature promotes and suppresses most, by its decoder alone.

    Args:
        model: Whose unembedding is meant.
        feature: (layer, feature id).
        keep: Tokens at either end.
    """
    return strongest(model, decoder_logits(model, feature), keep=keep)


def strongest(model: Model, push: Float[Tensor, " vocab"], *, keep: int = 8) -> Promoted:
    """The tokens at either end of a push on the logits."""
    order = torch.argsort(push, descending=True, stable=True)

    def rows(ids: Tensor) -> tuple[TokenPush, ...]:
        return tuple(
            TokenPush(i, decode_token(model.tokenizer, i), float(push[i])) for i in ids.tolist()
        )

    return Promoted(rows(order[:keep]), rows(order.flip(0)[:keep]))


@torch.no_grad()
def decoder_logits(model: Model, feature: FeatureId) -> Float[Tensor, " vocab"]:
    """Demeaned effect of one unit of a feature on every logit, the final norm's scale left out."""
    layer, index = feature
    dictionary, ids = model.dictionaries[layer], torch.tensor([index])
    writes = [dictionary.decoder(ids, k)[0].float() for k in range(dictionary.n_writes)]
    return push_of(model, torch.stack(writes).sum(0))


@torch.no_grad()
def push_of(model: Model, vector: Float[Tensor, " d_model"]) -> Float[Tensor, " vocab"]:
    """Demeaned effect of a vector of the residual stream on every logit; that scale left out."""
    unembedding = model.hf.get_output_embeddings().weight.float()  # type: ignore[operator]
    norm = model.decoder.final_norm
    push = unembedding @ (norm.centred(vector.float()) * norm.gain.float())
    return (push - push.mean()).cpu()
