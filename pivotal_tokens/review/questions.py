"""Values of a review: questions, reveals, progress, and the view of a question.

question.missing                      # tokens that still need an answer
reveal.differences                    # where the reviewer and the judge differ
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.commands import Place
from pivotal_tokens.schema import (
    Label,
    ModelName,
    NextTokenPair,
    NextTokens,
    Prompt,
    ReviewItem,
    TokenScore,
    Verdict,
)

LOW = 0.001
"""Tokens less probable than this may be hidden; those that are in both need no label."""


@dataclass(frozen=True)
class Question:
    """One item as its reviewer may see it before the answer: no judge's and no other's label."""

    item: ReviewItem
    """Why and with which probability it was queued is blanked out, unless it is adjudicated."""
    prompt: Prompt
    lists: NextTokenPair
    labels: Mapping[int, Label]
    """The reviewer's own, by token id; for an adjudicator also those that all reviewers gave."""
    abstained: frozenset[int] = frozenset()
    """Tokens that the reviewer explicitly left without a label."""
    optional: frozenset[int] = frozenset()
    """Tokens so improbable in both models that `finish` leaves them where nothing is said."""
    votes: Mapping[str, Mapping[int, Label]] = field(default_factory=dict)
    """Reviewer -> labels; for an adjudicator only."""
    rejected_by: tuple[str, ...] = ()
    """Reviewers who found the prompt bad; for an adjudicator only."""
    notes: tuple[str, ...] = ()
    """The reviewer's own remarks about the prompt."""

    @property
    def adjudication(self) -> bool:
        """Whether this answer's labels settle a disagreement."""
        return self.item.kind == "adjudication"

    @property
    def missing(self) -> tuple[int, ...]:
        """Tokens of either list with neither a label nor a decision to leave them."""
        return tuple(
            token
            for token in self.lists.token_ids
            if token not in self.labels and token not in self.abstained
        )

    @property
    def disputed(self) -> tuple[int, ...]:
        """Tokens that reviewers label differently; for an adjudicator only."""
        given: dict[int, set[Label]] = {}
        for labels in self.votes.values():
            for token, label in labels.items():
                given.setdefault(token, set()).add(label)
        return tuple(t for t in self.lists.token_ids if len(given.get(t, ())) > 1)

    def list(self, model: ModelName) -> NextTokens:
        """A model's list."""
        return self.lists.base if model == "base" else self.lists.merged

    def token_at(self, place: Place) -> int:
        """The token id at a place of a list.

        Raises:
            RequestError: If the list is shorter.
        """
        tokens = self.list(place.model)
        for token in tokens.top:
            if token.rank == place.rank:
                return token.token_id
        raise RequestError(f"there is no {place}: the list has {len(tokens.top)} tokens")


@dataclass(frozen=True)
class Difference:
    """A token that the reviewer and the judge label differently."""

    token_id: int
    text: str
    human: Label
    judge: Label


@dataclass(frozen=True)
class Reveal:
    """What may be shown once an item is answered."""

    prompt_id: str
    item: ReviewItem
    """As it was settled; `ReviewService.agree` and `explain` go by it."""
    labels: Mapping[int, Label]
    verdict: Verdict
    """Under this reviewer's labels alone."""
    judge_labels: Mapping[int, Label]
    differences: tuple[Difference, ...]
    """Each asks for a reason: `ReviewService.explain`, or `agree`."""
    quotes: tuple[str, ...] = ()
    """Spans of prompt or tokens by which judges say why."""


@dataclass(frozen=True)
class View:
    """An item and how it is looked at."""

    question: Question
    cursor: Place
    show_low: bool = True
    reveal: Reveal | None = None
    continuations: Mapping[int, Sequence[tuple[ModelName, str]]] = field(default_factory=dict)

    def tokens(self, model: ModelName) -> tuple[TokenScore, ...]:
        """The tokens of a list that are shown."""
        tokens = self.question.list(model).top
        return tuple(t for t in tokens if self.show_low or t.probability >= LOW)

    @property
    def at(self) -> TokenScore | None:
        """The token under the cursor."""
        shown = self.tokens(self.cursor.model)
        return next((token for token in shown if token.rank == self.cursor.rank), None)


@dataclass(frozen=True)
class Progress:
    """How far a reviewer is."""

    reviewer: str
    answered: int
    """Items finished or rejected, over all sessions."""
    answered_now: Annotated[int, Field(serialization_alias="now")]
    """Of these, in this session."""
    waiting: int
    """Items that this reviewer may still get."""
    states: Mapping[str, int]
    """Items of the whole queue by state, an assignment counting as one."""
    per_hour: float | None
    """Over the last 50 answers, pauses of more than five minutes left out; None before two."""
    eta_seconds: float | None
    """Time for what waits, at this rate and alone; None where the rate is not known."""
