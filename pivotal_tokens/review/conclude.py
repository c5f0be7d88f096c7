"""Which verdict follows from everybody's answers to a prompt, or is an adjudicator to be asked?

conclude(store, item)          # after an answer to the item, a correction, or an import
"""

from __future__ import annotations

from collections.abc import Mapping

from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.judge.persist import verdict_under
from pivotal_tokens.review.consensus import consensus
from pivotal_tokens.schema import HUMAN, Label, ReviewItem, Thresholds, Verdict
from pivotal_tokens.store import Store


def conclude(store: Store, item: ReviewItem, thresholds: Thresholds | None = None) -> None:
    """Let the human verdict follow from everybody's answers, or ask an adjudicator.

    Args:
        store: Where the answers are.
        item: Any seat at the prompt; a repeat changes nothing.
        thresholds: Of the verdict; by default those the prompt was flagged under.
    """
    if item.kind == "repeat":
        return
    prompt_id, pair = item.prompt_id, item.pair
    items = [other for other in store.queue.items(prompt_id=prompt_id) if other.pair == pair]
    state = consensus(items, store.labels.events(prompt_id))
    if state.settled:
        labels = {one.token_id: one.label for one in store.labels.of(prompt_id).human}
        verdict = verdict_by(store, item, labels, thresholds, bad_prompt=state.bad_prompt)
        store.results.put_verdict(prompt_id, pair, HUMAN, verdict)
    else:
        store.results.drop_human_verdict(prompt_id, pair)
        if state.disagree and not state.open_seats:
            store.assignments.add_adjudication(item)
    if not state.disagree:
        store.assignments.drop_adjudication(item)


def verdict_by(
    store: Store,
    item: ReviewItem,
    labels: Mapping[int, Label],
    thresholds: Thresholds | None = None,
    *,
    bad_prompt: bool = False,
) -> Verdict:
    """The verdict under some labels, by default under the thresholds that flagged the prompt."""
    verdict = verdict_under(
        store, item.prompt_id, item.pair, labels, thresholds, bad_prompt=bad_prompt
    )
    if verdict is None:
        raise lists_lost(item)
    return verdict


def lists_lost(item: ReviewItem) -> WorkFailed:
    """An item's next tokens are not there any more."""
    return WorkFailed(f"prompt {item.prompt_id} lost its next tokens: run `em-circuits label`")
