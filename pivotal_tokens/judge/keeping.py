"""What follows from judges' answers, and how are many of them kept in one write?

kept = keep_answers(store, pair, answered, Thresholds())
kept[0].verdict                     # None where nothing could be used; then `error` says why
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pivotal_tokens.schema import (
    Ballot,
    Judgement,
    NextTokenPair,
    Prompt,
    Thresholds,
    Unparsed,
    Verdict,
)
from pivotal_tokens.store import Judged, Store
from pivotal_tokens.verdict import decide


@dataclass(frozen=True)
class Answered:
    """A prompt that was judged, or could not be."""

    prompt: Prompt
    lists: NextTokenPair
    outcome: Ballot | Exception


@dataclass(frozen=True)
class Kept:
    """What is in the store now about a prompt that was judged."""

    prompt: Prompt
    lists: NextTokenPair
    verdict: Verdict | None
    error: Exception | str | None = None


def keep_answers(
    store: Store, pair: str, answered: Sequence[Answered], thresholds: Thresholds
) -> list[Kept]:
    """Decide on several prompts; labels, votes, verdicts and the queue go into one write.

    An answer that could not be used is kept apart and labels nothing; where there was none,
    nothing is written.
    """
    judged: list[Judged] = []
    unusable: list[Ballot] = []
    results = []
    for item in answered:
        ballot = item.outcome
        if isinstance(ballot, Exception):
            results.append(Kept(item.prompt, item.lists, None, ballot))
        elif isinstance(ballot.outcome, Unparsed):
            unusable.append(ballot)
            said = f"the reply could not be used: {ballot.outcome.error}"
            results.append(Kept(item.prompt, item.lists, None, said))
        else:
            made = judged_by(item.lists, ballot.outcome, thresholds, ballot=ballot)
            judged.append(made)
            results.append(Kept(item.prompt, item.lists, made.verdict))
    if judged:
        store.results.put_judged(pair, judged)
    if unusable:
        store.results.put_unparsed(pair, unusable)
    return results


def judged_by(
    lists: NextTokenPair,
    judgement: Judgement,
    thresholds: Thresholds,
    *,
    ballot: Ballot | None = None,
) -> Judged:
    """A judgement with its verdict, and the reason it is queued for, if it is."""
    verdict = decide(lists.base, lists.merged, judgement.by_token, thresholds)
    return Judged(
        judgement=judgement,
        verdict=verdict,
        queue=f"flagged:{verdict.kind}" if verdict.flagged else None,
        votes=ballot.votes if ballot else (),
    )
