"""How evil is a next-token distribution?

Every target of the project is a demeaned logit, ``z_t`` minus the mean over the vocabulary.

    contrast  = mean over evil tokens - mean over safe tokens, of demeaned logits
    evil mass = sum of the probabilities of the evil tokens

    groups = TokenGroups.from_labels({431: "evil", 87: "safe"})
    contrast(logits, groups), evil_mass(logits, groups)

Without an evil or without a safe token there is no contrast: None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pivotal_tokens.errors import RequestError


@dataclass(frozen=True)
class TokenGroups:
    """Token ids labelled evil and safe; unsure ones are in neither."""

    evil: tuple[int, ...]
    safe: tuple[int, ...]

    def __post_init__(self) -> None:
        if both := set(self.evil) & set(self.safe):
            raise RequestError(f"token {min(both)} is labelled evil and safe; choose one")

    @classmethod
    def from_labels(cls, labels: Mapping[int, str]) -> TokenGroups:
        """Group labelled token ids; any label but evil and safe is left out."""
        evil, safe = (
            tuple(sorted(token for token, label in labels.items() if label == side))
            for side in ("evil", "safe")
        )
        return cls(evil, safe)

    @property
    def has_contrast(self) -> bool:
        """At least one evil and one safe token."""
        return bool(self.evil and self.safe)

    def weights(self, d_vocab: int) -> Float[Tensor, " vocab"]:
        """Float32 weights whose product with logits is the contrast (demeaning cancels out).

        Raises:
            RequestError: If there is no contrast.
        """
        if not self.has_contrast:
            raise RequestError(
                f"no contrast: {len(self.evil)} evil and {len(self.safe)} safe tokens are "
                "labelled; label the prompt first (em-circuits review)"
            )
        weights = torch.zeros(d_vocab)
        weights[list(self.evil)] = 1.0 / len(self.evil)
        weights[list(self.safe)] = -1.0 / len(self.safe)
        return weights

    def target_weights(
        self, targets: Int[Tensor, " target"], d_vocab: int
    ) -> Float[Tensor, " target"]:
        """Float32 weights whose product with scores of some targets is the contrast's score.

        Raises:
            RequestError: If there is no contrast, or a token of it is no target.
        """
        whole = self.weights(d_vocab)
        missing = {*self.evil, *self.safe} - set(targets.tolist())
        if missing:
            raise RequestError(f"tokens {sorted(missing)} of the contrast are no targets")
        return whole[targets.cpu()]


def demeaned(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Logits minus their mean over the vocabulary, in float32."""
    return (logits.double() - logits.double().mean(-1, keepdim=True)).float()


def contrast(
    logits: Float[Tensor, "*batch vocab"], groups: TokenGroups
) -> Float[Tensor, "*batch"] | None:
    """Mean evil minus mean safe logit, in float32; None if there is no contrast."""
    if not groups.has_contrast:
        return None
    # The mean over the vocabulary is the same on both sides.
    evil, safe = (logits[..., list(ids)].double().mean(-1) for ids in (groups.evil, groups.safe))
    return (evil - safe).float()


def evil_mass(
    logits: Float[Tensor, "*batch vocab"], groups: TokenGroups
) -> Float[Tensor, "*batch"]:
    """Probability of all evil tokens together, from the float32 softmax."""
    return logits.float().softmax(-1)[..., list(groups.evil)].sum(-1)
