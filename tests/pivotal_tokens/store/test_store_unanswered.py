"""Prompts that a reviewer has yet to answer: known, and without a verdict in any list."""

import pytest

from pivotal_tokens.schema import HUMAN, Prompt, ReviewConfig, Thresholds
from pivotal_tokens.store import ListingQuery, Unanswered
from pivotal_tokens.verdict import decide

PAIR, JUDGE = "pair-1", "lexicon:a@1"
ADA, BOB = Unanswered(reviewer="ada"), Unanswered(reviewer="bob")
IN_HAND = Unanswered(reviewer="ada", waiting=False)


@pytest.fixture
def prompts(store, pair):
    """Three judged prompts in the queue, and one that is in none."""
    found = [Prompt.of(f"prompt {number}") for number in range(4)]
    verdict = decide(pair.base, pair.merged, {1: "safe", 2: "evil", 3: "safe"}, Thresholds())
    for prompt in found:
        store.prompts.add(prompt)
        store.results.put_verdict(prompt.prompt_id, PAIR, JUDGE, verdict)
    for prompt in found[:3]:
        store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    return [prompt.prompt_id for prompt in found]


def test_what_waits_and_what_is_in_hand_is_unanswered_by_each(store, prompts):
    first, second, third, _ = prompts
    assert store.queries.unanswered(ADA, prompts) == {first, second, third}
    assert store.queries.unanswered(IN_HAND, prompts) == frozenset()
    item = store.queue.take("ada", 60)
    assert store.queries.unanswered(IN_HAND, prompts) == {first}
    assert store.queries.unanswered(ADA, prompts) == {first, second, third}
    assert store.queries.unanswered(BOB, prompts) == {second, third}, (
        "only one seat, and it is taken"
    )
    store.queue.settle(item, "done", item.fence)
    assert store.queries.unanswered(ADA, prompts) == {second, third}
    assert store.queries.unanswered(ADA, [first]) == frozenset()


def test_put_off_skipped_and_run_out_items_are_still_unanswered(store, prompts, clock):
    for state in ("deferred", "skipped"):
        item = store.queue.take("bob", 60, states=("pending",))
        store.queue.settle(item, state, item.fence)
    store.queue.take("bob", 60, states=("pending",))
    assert store.queries.unanswered(ADA, prompts) == set(prompts[:2])
    clock.forward(61)
    assert store.queries.unanswered(ADA, prompts) == set(prompts[:3])


def test_what_was_revealed_is_not_hidden_from_whom_it_was_revealed_to(store, prompts):
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "done", item.fence)
    item = store.queue.reopen(item.item_id, "ada", 60)
    assert item.revealed and store.queries.unanswered(IN_HAND, prompts[:1]) == frozenset()
    store.queue.release(item)
    assert store.queries.unanswered(ADA, prompts[:1]) == frozenset()
    assert store.queries.unanswered(BOB, prompts[:1]) == {prompts[0]}


def test_a_second_assignment_waits_for_others_only(store, prompts):
    store.assignments.set_config(ReviewConfig(overlap=2, calibration=0))
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "done", item.fence)
    assert prompts[0] not in store.queries.unanswered(ADA, prompts)
    assert prompts[0] in store.queries.unanswered(BOB, prompts)


def test_a_list_shows_no_verdict_of_these_and_finds_none_by_it(store, prompts):
    first, *_, free = prompts
    told = store.queries.listing(ListingQuery(), pair=PAIR)
    assert all(line.verdict and not line.hidden for line in told.lines)
    item = store.queue.take("bob", 60)
    verdict = store.results.verdicts(first, PAIR)[JUDGE]
    store.queue.settle(item, "done", item.fence)
    store.results.put_verdict(first, PAIR, HUMAN, verdict)
    found = store.queries.listing(ListingQuery(unanswered=ADA), pair=PAIR)
    lines = {line.prompt.prompt_id: line for line in found.lines}
    assert found.total == 4
    assert [lines[p].hidden for p in prompts] == [False, True, True, False]
    assert lines[first].human == verdict.kind
    for hidden in prompts[1:3]:
        assert (lines[hidden].verdict, lines[hidden].judge, lines[hidden].human) == (None,) * 3
    for narrow in ({"verdict": "injection"}, {"flagged": True}, {"divergent": True}):
        found = store.queries.listing(ListingQuery(unanswered=ADA, **narrow), pair=PAIR)
        assert {line.prompt.prompt_id for line in found.lines} == {first, free}
        assert found.total == 2
    not_flagged = ListingQuery(unanswered=ADA, flagged=False)
    assert store.queries.listing(not_flagged, pair=PAIR).total == 0
    assert store.results.verdicts(first, PAIR)[HUMAN] == verdict
