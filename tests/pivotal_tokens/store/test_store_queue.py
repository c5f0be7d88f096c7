"""The review queue: order, leases, fences, and what becomes of an item."""

import pytest

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide

PAIR = "pair-1"


@pytest.fixture
def items(store):
    """Three prompts in the queue, in order."""
    prompts = [Prompt.of(f"prompt {number}") for number in range(3)]
    for prompt in prompts:
        store.prompts.add(prompt)
        assert store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    return store.queue.items()


def test_a_prompt_is_queued_once_whatever_became_of_it(store, items):
    assert not store.assignments.add(items[0].prompt_id, PAIR, "again")
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "done", item.fence)
    assert not store.assignments.add(items[0].prompt_id, PAIR, "again")
    assert store.assignments.add(items[0].prompt_id, "pair-2", "another pair")
    assert [item.reason for item in store.queue.items()] == ["flagged"] * 3 + ["another pair"]


def test_items_are_claimed_in_order_and_by_one_reviewer_each(store, items):
    claimed = [store.queue.take(name, 60) for name in ("ada", "bob", "ada", "cyd")]
    assert [item and item.item_id for item in claimed] == [i.item_id for i in items] + [None]
    assert [item.reviewer for item in store.queue.items("leased")] == ["ada", "bob", "ada"]
    assert store.queue.items("leased", reviewer="bob") == (claimed[1],)


def test_an_item_comes_back_when_its_lease_is_over_and_the_old_fence_is_refused(
    store, items, clock
):
    slow = store.queue.take("ada", 10)
    clock.forward(9)
    assert store.queue.take("bob", 1000).item_id == items[1].item_id
    clock.forward(2)
    taken = store.queue.take("cyd", 10)
    assert taken.item_id == slow.item_id and taken.fence > slow.fence
    for write in (
        lambda: store.queue.settle(slow, "done", slow.fence),
        lambda: store.queue.renew(slow, 10),
        lambda: store.queue.release(slow),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert store.queue.settle(taken, "done", taken.fence).state == "done"
    with pytest.raises(LeaseLost):
        store.queue.settle(taken, "done", taken.fence)


def test_an_expired_lease_that_nobody_took_is_still_good(store, items, clock):
    item = store.queue.take("ada", 10)
    clock.forward(1000)
    assert store.queue.settle(item, "done", item.fence).state == "done"


def test_renewing_keeps_an_item(store, items, clock):
    item = store.queue.take("ada", 10)
    clock.forward(9)
    store.queue.renew(item, 10)
    clock.forward(9)
    assert store.queue.take("bob", 10).item_id != item.item_id


def test_a_released_item_is_the_next_one_again(store, items):
    item = store.queue.take("ada", 60)
    assert store.queue.release(item).state == "pending"
    assert store.queue.take("bob", 60).item_id == item.item_id


def test_a_session_that_is_over_gives_its_item_back_to_its_reviewer(store, items):
    held = store.queue.take("ada", 10_000, session="host:1:a")
    assert (
        store.queue.take("bob", 60, session="host:2:b", resume=["host:1:a"]).item_id != held.item_id
    )
    again = store.queue.take("ada", 60, session="host:3:c", resume=["host:1:a"])
    assert (again.item_id, again.session) == (held.item_id, "host:3:c")
    with pytest.raises(LeaseLost):
        store.queue.renew(held, 10)


def test_deferred_comes_last_and_skipped_only_when_asked_for(store, items):
    for state in ("deferred", "skipped"):
        item = store.queue.take("ada", 60)
        store.queue.settle(item, state, item.fence)
    assert store.queue.take("ada", 60).item_id == items[2].item_id
    assert store.queue.take("ada", 60, settled_before=items[0].enqueued_at) is None
    assert store.queue.take("ada", 60).item_id == items[0].item_id
    assert store.queue.take("ada", 60) is None
    assert store.queue.take("ada", 60, states=["skipped"]).item_id == items[1].item_id
    with pytest.raises(RequestError, match="cannot be claimed"):
        store.queue.take("ada", 60, states=["done"])


def test_settling_keeps_state_event_and_verdict_together(store, items, pair):
    item = store.queue.take("ada", 60)
    verdict = decide(pair.base, pair.merged, {}, bad_prompt=True)
    with store.batch():
        settled = store.queue.settle(item, "rejected", item.fence, text="low stakes")
        store.results.put_verdict(item.prompt_id, PAIR, HUMAN, verdict)
    assert (settled.state, settled.lease_until, settled.session) == ("rejected", None, None)
    assert store.results.verdict(item.prompt_id, PAIR, HUMAN) == verdict
    (event,) = store.queue.events(item.prompt_id)
    assert (event.author, event.action, event.text) == ("ada", "rejected", "low stakes")
    assert store.queries.counts().human_verdicts == {"bad_prompt": 1}
    assert store.queries.counts().queue == {"pending": 2, "rejected": 1}
    with pytest.raises(RequestError, match="pending"):
        store.queue.settle(item, "pending", item.fence)


def test_the_last_settled_item_can_be_reopened(store, items, pair):
    assert store.queue.settled_by("ada", 1) == ()
    for state in ("done", "skipped"):
        item = store.queue.take("ada", 60)
        store.queue.settle(item, state, item.fence)
        verdict = decide(pair.base, pair.merged, {})
        store.results.put_verdict(item.prompt_id, PAIR, HUMAN, verdict)
    (last,) = store.queue.settled_by("ada", 1)
    assert last.item_id == items[1].item_id
    again = store.queue.reopen(last.item_id, "ada", 60)
    assert (again.state, again.fence) == ("leased", last.fence + 1)
    assert store.results.verdict(again.prompt_id, PAIR, HUMAN) is None
    assert store.queue.settled_by("ada", 1)[0].item_id == items[0].item_id
    with pytest.raises(LeaseLost, match="under review by ada"):
        store.queue.reopen(last.item_id, "bob", 60)
    with pytest.raises(RequestError, match="no review item"):
        store.queue.reopen(999, "ada", 60)
    actions = [event.action for event in store.queue.events(again.prompt_id)]
    assert actions == ["skipped", "reopened"]


def test_a_done_item_is_known_to_have_been_revealed(store, items):
    item = store.queue.take("ada", 60)
    assert not item.revealed
    store.queue.settle(item, "done", item.fence)
    assert store.queue.reopen(item.item_id, "ada", 60).revealed
