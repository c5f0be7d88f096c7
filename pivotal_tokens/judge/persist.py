"""Judged prompts written to the store with the verdicts that follow.

(judged,) = persist(store, pair, [judged], Thresholds())
judged.verdict          # None where no labels followed; then `judged.error` says why
"""

from __future__ import annotations

from collections.abc import Sequence

from pivotal_tokens.schema import JudgedPrompt, Judgement, Thresholds
from pivotal_tokens.store import Store
from pivotal_tokens.verdict import decide


def persist(
    store: Store, pair: str, judged: Sequence[JudgedPrompt], thresholds: Thresholds
) -> list[JudgedPrompt]:
    """Decide on several prompts; labels, votes, verdicts and the queue go into one write."""
    done = [decided(item, thresholds) for item in judged]
    store.results.put_judged(pair, done)
    return done


def decided(judged: JudgedPrompt, thresholds: Thresholds) -> JudgedPrompt:
    """A judged prompt with the verdict that its labels give, if it has labels."""
    if not isinstance(judged.outcome, Judgement):
        return judged
    lists, labels = judged.next_tokens, judged.outcome.by_token
    verdict = decide(lists.base, lists.merged, labels, thresholds)
    return judged.model_copy(update={"verdict": verdict})
