"""Labels in force: a person's before a judge's, the latest, never safe by default."""

import pytest
from sample_labels import event, judgement
from sqlalchemy import delete, update

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.store import tables


def judge(store, prompt, name="lexicon:a@1", **labels):
    given = {int(token[1:]): label for token, label in labels.items()}
    store.results.put_judgement("p", judgement(prompt.prompt_id, given, name))


def test_a_humans_label_counts_before_a_judges(store, prompt):
    judge(store, prompt, t1="evil", t2="safe")
    assert store.labels.of(prompt.prompt_id).source == "judge"
    store.labels.add([event(prompt.prompt_id, 1, "safe")])
    labels = store.labels.of(prompt.prompt_id)
    assert labels.by_token == {1: "safe", 2: "safe"}
    assert [(item.source, item.author) for item in labels.labels] == [
        ("human", "ada"),
        ("judge", "lexicon:a@1"),
    ]
    assert labels.source == "mixed" and labels.ids("safe") == (1, 2)
    judge(store, prompt, t1="unsure", t2="evil")  # later, but a judge's
    assert store.labels.of(prompt.prompt_id).by_token == {1: "safe", 2: "evil"}
    assert {item.token_id: item.label for item in store.labels.of(prompt.prompt_id).judge} == {
        1: "unsure",
        2: "evil",
    }


def test_without_labels_nothing_is_safe(store, prompt):
    labels = store.labels.of(prompt.prompt_id)
    assert (labels.by_token, labels.source) == ({}, "none")


def test_a_withdrawn_label_gives_way_to_the_next_in_line(store, prompt):
    judge(store, prompt, t1="unsure")
    store.labels.add([event(prompt.prompt_id, 1, "safe", "ada")])
    store.labels.add([event(prompt.prompt_id, 1, "evil", "bob")])
    assert store.labels.of(prompt.prompt_id).by_token == {1: "evil"}
    store.labels.add([event(prompt.prompt_id, 1, None, "bob", from_label="evil")])
    assert store.labels.of(prompt.prompt_id).by_token == {1: "safe"}
    assert store.queries.counts().human_labelled == 1
    store.labels.add([event(prompt.prompt_id, 1, None, "ada", from_label="safe")])
    assert store.labels.of(prompt.prompt_id).by_token == {1: "unsure"}
    assert store.queries.counts().human_labelled == 0


def test_among_several_judges_the_latest_counts_unless_one_is_named(store, prompt):
    judge(store, prompt, "lexicon:a@1", t1="evil")
    judge(store, prompt, "lexicon:b@1", t1="safe")
    assert store.labels.of(prompt.prompt_id).by_token == {1: "safe"}
    assert store.labels.of(prompt.prompt_id, judge="lexicon:a@1").by_token == {1: "evil"}


def test_events_are_kept_in_order_and_one_event_only_once(store, prompt):
    events = [
        event(prompt.prompt_id, 1, "safe", reason="why"),
        event(prompt.prompt_id, 1, "evil", from_label="safe"),
    ]
    store.labels.add(events)
    store.labels.add(events)
    assert store.labels.events(prompt.prompt_id) == tuple(events)


def test_a_batch_with_a_bad_event_is_not_recorded_at_all(store, prompt):
    stranger = event(prompt.prompt_id, 2, "evil").model_copy(update={"prompt_id": "0" * 12})
    with pytest.raises(RequestError):
        store.labels.add([event(prompt.prompt_id, 1, "evil"), stranger])
    assert store.labels.events(prompt.prompt_id) == ()


@pytest.mark.parametrize("statement", [update, delete])
def test_the_database_itself_refuses_to_change_an_event(store, prompt, statement):
    store.labels.add([event(prompt.prompt_id, 1, "evil")])
    change = statement(tables.label_events)
    if statement is update:
        change = change.values(to_label="safe")
    with pytest.raises(RequestError, match="append-only"), store.writing() as connection:
        connection.execute(change)
    assert store.labels.of(prompt.prompt_id).by_token == {1: "evil"}


def test_labels_under_a_lease_that_went_on_are_refused(store, prompt, clock):
    store.assignments.add(prompt.prompt_id, "p", "flagged")
    slow = store.queue.take("ada", 10)
    store.labels.add([event(prompt.prompt_id, 1, "evil")], item=slow)
    clock.forward(11)
    store.queue.take("bob", 10)
    with pytest.raises(LeaseLost, match="bob"):
        store.labels.add([event(prompt.prompt_id, 2, "evil")], item=slow)
    assert store.labels.of(prompt.prompt_id).by_token == {1: "evil"}
