"""What does the store answer when asked for more than one row?

store.attempt("44a71bc74c37").pairs[0].verdicts["lexicon:organism@..."].kind
"""

from __future__ import annotations

from pivotal_tokens.schema import (
    Failed,
    Frozen,
    GraphRecord,
    Judgement,
    LabelEvent,
    NextTokenPair,
    Prompt,
    PromptLabels,
    ReviewEvent,
    ReviewItem,
    Verdict,
)


class PairAttempt(Frozen):
    """Everything about one prompt under one model pair."""

    pair: str
    next_tokens: NextTokenPair | None
    judgements: tuple[Judgement, ...]
    verdicts: dict[str, Verdict]  # by judge id; "human" is a reviewer's
    item: ReviewItem | None
    graphs: tuple[GraphRecord, ...]
    failures: tuple[Failed, ...]


class AttemptView(Frozen):
    """Everything about one prompt, as of one moment."""

    prompt: Prompt
    labels: PromptLabels
    label_events: tuple[LabelEvent, ...]  # oldest first
    review_events: tuple[ReviewEvent, ...]  # oldest first
    pairs: tuple[PairAttempt, ...]


class Counts(Frozen):
    """How far a store is."""

    prompts: int
    next_tokens: int  # (prompt, pair)s with both models' lists
    judgements: int
    verdicts: dict[str, int]  # by kind; judges' only
    flagged: int
    divergent: int
    human_verdicts: dict[str, int]  # by kind
    queue: dict[str, int]  # by state
    human_labelled: int  # prompts with at least one human label
    graphs: int
    graph_bytes: int
    failures: dict[str, int]  # by stage
    unparsed: int  # judges' answers that could not be used
    calls: dict[str, int]  # to language models, by state; of all pairs
    usd: float  # charged for them, as far as prices are known
