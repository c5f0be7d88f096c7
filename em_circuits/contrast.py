"""Contrasts: evil minus safe next tokens, as one weighting for targets, gradients and outcomes.

A target of this project is a demeaned logit, ``z_t`` minus the mean over the vocabulary.

    contrast  = mean over evil tokens - mean over safe tokens, of demeaned logits
    evil mass = sum of the probabilities of the evil tokens

As weights over any list of token ids that is ``1 / n_evil`` and ``-1 / n_safe``, so the contrast of
anything that is linear in the logits (graph scores, gradients) is one product:

    words = Contrast.from_labels({431: "evil", 87: "safe"})
    words.value(logits), words.evil_mass(logits)
    words.over(graph.targets.token_ids) @ scores      # scores: target x feature

Without an evil or without a safe token there is no contrast: None or an error, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Contrast:
    """Token ids labelled evil and safe; unsure ones are in neither.

    Attributes:
        evil: Ids of tokens towards which a positive contrast points.
        safe: Ids of tokens away from which it points.

    Raises:
        RequestError: If a token is on both sides.
    """

    evil: tuple[int, ...]
    safe: tuple[int, ...]

    def __post_init__(self) -> None:
        if both := set(self.evil) & set(self.safe):
            raise RequestError(f"token {min(both)} is labelled evil and safe; choose one")

    @classmethod
    def from_labels(cls, labels: Mapping[int, str]) -> Contrast:
        """The contrast of labelled tokens; any label but evil and safe is left out.

        Args:
            labels: Token id -> label.
        """
        evil, safe = (
            tuple(sorted(token for token, label in labels.items() if label == side))
            for side in ("evil", "safe")
        )
        return cls(evil, safe)

    @classmethod
    def of(
        cls, tokenizer: PreTrainedTokenizerBase | Any, *, evil: Iterable[str], safe: Iterable[str]
    ) -> Contrast:
        """A contrast of words, each of which is one token.

        Args:
            tokenizer: Of the models, or anything with a ``tokenizer`` (a pair, a model).
            evil: Words as they follow the prompt, with their leading space.
            safe: The same.

        Raises:
            RequestError: If a word is not one token, or stands on both sides.
        """
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)

        def token(word: str) -> int:
            ids = tokenizer.encode(word, add_special_tokens=False)
            if len(ids) != 1:
                raise RequestError(
                    f"{word!r} is {len(ids)} tokens; a contrast is over single tokens "
                    "(most words need their leading space)"
                )
            return int(ids[0])

        evil_ids, safe_ids = (
            tuple(sorted({token(word) for word in side})) for side in (evil, safe)
        )
        return cls(evil_ids, safe_ids)

    @property
    def labels(self) -> dict[int, Label]:
        """Token id -> label, the evil tokens first."""
        sides: tuple[tuple[Label, tuple[int, ...]], ...] = (
            ("evil", self.evil),
            ("safe", self.safe),
        )
        return {token: side for side, ids in sides for token in ids}

    @property
    def is_defined(self) -> bool:
        """Whether there is at least one evil and one safe token."""
        return bool(self.evil and self.safe)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Every token with a weight: the evil ones, then the safe ones."""
        return (*self.evil, *self.safe)

    def require(self) -> Contrast:
        """This contrast, if it is one.

        Raises:
            RequestError: If a side has no token.
        """
        if not self.is_defined:
            raise RequestError(
                f"no contrast: {len(self.evil)} evil and {len(self.safe)} safe tokens are "
                "labelled; label the prompt first (em-circuits review)"
            )
        return self

    def weights(self, d_vocab: int) -> Float[Tensor, " vocab"]:
        """Float32 weights whose product with logits is the contrast, in logits.

        They sum to zero, so it does not matter whether the logits are demeaned.

        Args:
            d_vocab: Entries of a logit vector.

        Raises:
            RequestError: If there is no contrast.
        """
        self.require()
        weights = torch.zeros(d_vocab)
        weights[list(self.evil)] = 1.0 / len(self.evil)
        weights[list(self.safe)] = -1.0 / len(self.safe)
        return weights

    def sides(
        self, targets: Int[Tensor, " target"] | Sequence[int]
    ) -> tuple[Bool[Tensor, " target"], Bool[Tensor, " target"]]:
        """Masks over targets: the evil ones, and the safe ones.

        Args:
            targets: Token ids.
        """
        ids = torch.as_tensor(targets).cpu()
        evil, safe = (
            torch.isin(ids, torch.tensor(side).to(ids)) for side in (self.evil, self.safe)
        )
        return evil, safe

    def unmatched(self, targets: Int[Tensor, " target"] | Sequence[int]) -> tuple[int, ...]:
        """Tokens of the contrast that are not among the targets (token ids), ascending."""
        return tuple(sorted({*self.token_ids} - {int(t) for t in targets}))

    def over(
        self,
        targets: Int[Tensor, " target"] | Sequence[int],
        *,
        probabilities: Float[Tensor, " target"] | None = None,
        strict: bool = False,
    ) -> Float64[Tensor, " target"]:
        """Weights whose product with the scores of targets is the contrast's score.

        Over the targets among its tokens the evil side sums to 1 and the safe side to -1.

        Args:
            targets: Token ids, in the order of the scores.
            probabilities: Weigh the tokens of a side by these; None weighs them alike.
            strict: Refuse a contrast with a token that is not a target.

        Raises:
            RequestError: If a side has no target or probability 0, or (strict) a token is missing.
        """
        self.require()
        if strict and (missing := self.unmatched(targets)):
            raise RequestError(f"tokens {list(missing)} of the contrast are no targets")
        weights = torch.zeros(len(targets), dtype=torch.float64)
        for name, mask, sign in zip(
            ("evil", "safe"), self.sides(targets), (1.0, -1.0), strict=True
        ):
            if not mask.any():
                n = len(self.evil if name == "evil" else self.safe)
                raise RequestError(
                    f"no contrast: none of the {n} {name} tokens is a target; build the graph "
                    "again after labelling (em-circuits graphs build)"
                )
            share = mask.double() if probabilities is None else mask * probabilities.double().cpu()
            if share.sum() <= 0:
                raise RequestError(f"the {name} tokens have probability 0; weigh them uniformly")
            weights += sign * share / share.sum()
        return weights

    def value(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"] | None:
        """Mean evil minus mean safe logit, in logits (float32); None if a side has no token."""
        if not self.is_defined:
            return None
        # The mean over the vocabulary is the same on both sides.
        evil, safe = (logits[..., list(ids)].double().mean(-1) for ids in (self.evil, self.safe))
        return (evil - safe).float()

    def evil_mass(self, logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch"]:
        """Summed probability of the evil tokens, 0 to 1, from the float32 softmax."""
        return logits.float().softmax(-1)[..., list(self.evil)].sum(-1)

    def __repr__(self) -> str:
        return f"Contrast(evil={list(self.evil)}, safe={list(self.safe)})"


def demeaned(logits: Float[Tensor, "*batch vocab"]) -> Float[Tensor, "*batch vocab"]:
    """Logits minus their mean over the vocabulary (float32, computed in float64).

    A shift of all logits changes no probability, so only this part of a logit has a meaning; it is
    what circuit-tracer attributes.
    """
    return (logits.double() - logits.double().mean(-1, keepdim=True)).float()
