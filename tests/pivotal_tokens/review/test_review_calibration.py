"""Everybody begins with the same ten items, also where each is asked of one person only."""

import json
from collections import Counter

import pytest
from reviewing import PAIR, fill_queue
from sqlalchemy import update

from pivotal_tokens.labels import label_agreement
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import HUMAN, ReviewConfig
from pivotal_tokens.store import Store, Wanted, tables


@pytest.fixture
def prompts(store):
    store.assignments.set_config(ReviewConfig(repeat_share=0.0))
    return fill_queue(store, 14)


def answer(service, labels=None, rest="safe"):
    question = service.next_question()
    if labels:
        question = service.label(question, labels)
    return service.finish(question, rest=rest).prompt_id


def ids(prompts):
    return [prompt.prompt_id for prompt in prompts]


def test_ten_is_the_default_also_of_stores_where_nothing_was_said(store: Store):
    assert store.assignments.config().calibration == 10
    kept = ReviewConfig().model_dump() | {"calibration": None}
    store.assignments.set_config(ReviewConfig())
    with store.writing() as connection:
        connection.execute(
            update(tables.meta)
            .values(value=json.dumps(kept))
            .where(tables.meta.c.name == "review_config")
        )
    assert store.assignments.config() == ReviewConfig()


def test_each_begins_with_the_same_ten_and_goes_on_with_what_waits(store, prompts):
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    assert [answer(ada) for _ in range(12)] == ids(prompts[:12])
    assert bob.progress().waiting == 12, "two wait, ten are for everybody"
    assert [answer(bob) for _ in range(12)] == ids([*prompts[:10], *prompts[12:]])
    assert bob.next_question() is None and bob.progress().waiting == 0
    assert Counter(i.kind for i in store.queue.items()) == {"review": 14, "calibration": 10}
    (pair_of,) = label_agreement(store, resamples=0).people
    assert pair_of.agreement.groups == 10
    assert len(store.queries.reviewed()) == 14


def test_nobody_sees_another_ones_answer_or_what_is_on_anothers_screen(store, prompts):
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    first = ada.label(ada.next_question(), {2: "evil"})
    second = bob.next_question()
    assert (first.prompt, second.prompt) == (prompts[0], prompts[1])
    bob.finish(second, rest="safe")
    third = bob.next_question()
    assert third.prompt == prompts[2]
    ada.finish(first, rest="safe")
    assert ada.next_question().prompt == prompts[1]
    bob.finish(third, rest="safe")
    question = bob.next_question()
    assert question.prompt == prompts[0] and question.labels == question.votes == {}
    bob.label(question, {2: "evil"})
    blind = [e for e in store.labels.events(prompts[0].prompt_id) if e.author == "bob"]
    assert not any(event.judge_visible for event in blind)
    held = Counter(i.prompt_id for i in store.queue.items("leased"))
    assert max(held.values()) == 1


def test_one_opinion_more_settles_and_a_different_one_is_adjudicated(store, prompts):
    for name, label in (("ada", "evil"), ("bob", "evil"), ("cyd", "safe")):
        verdict_before = store.results.verdict(prompts[0].prompt_id, PAIR, HUMAN)
        answer(ReviewService(store, name), {2: label})
        if name == "bob":
            assert store.results.verdict(prompts[0].prompt_id, PAIR, HUMAN) == verdict_before
            assert store.queue.items(kind="adjudication") == ()
    assert store.labels.of(prompts[0].prompt_id).by_token[2] == "evil", "two of three"
    assert HUMAN not in store.results.verdicts(prompts[0].prompt_id, PAIR)
    eve = ReviewService(store, "eve", adjudicate=True)
    assert answer(eve, {2: "evil"}) == prompts[0].prompt_id
    assert store.results.verdict(prompts[0].prompt_id, PAIR, HUMAN) is not None
    assert ReviewService(store, "eve").next_question().prompt == prompts[1], "eve saw all labels"


def test_the_place_is_kept_where_an_item_was_given_back(store, prompts):
    """Found in review: the seat given back counted as answered, and the next item came."""
    for name in ("ada", "bob"):
        for _ in range(2):  # of bob's the second time it is a seat of his own
            service = ReviewService(store, name)
            question = service.next_question()
            assert question.prompt == prompts[0]
            service.release(service.label(question, {2: "evil"}))
        question = service.next_question()
        assert question.prompt == prompts[0] and question.labels == {2: "evil"}
        service.finish(question, rest="safe")
    assert Counter(i.kind for i in store.queue.items(prompt_id=prompts[0].prompt_id)) == {
        "review": 1,
        "calibration": 1,
    }


def test_an_open_assignment_is_taken_before_there_is_another(store, prompts, clock):
    """Else the prompt would wait for a person who went away, whatever the others answer."""
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    ada.next_question()
    clock.forward(3 * 60 * 60)
    assert answer(bob) == prompts[0].prompt_id
    dan = ReviewService(store, "dan")
    dan.defer(dan.open(store.queue.items(prompt_id=prompts[1].prompt_id)[0].item_id))
    assert answer(bob) == prompts[1].prompt_id
    for prompt in prompts[:2]:
        assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN) is not None
        assert len(store.queue.items(prompt_id=prompt.prompt_id)) == 1


def test_skipped_items_come_when_they_are_asked_for(store, prompts):
    ada = ReviewService(store, "ada")
    ada.skip(ada.next_question())
    bob = ReviewService(store, "bob")
    assert bob.progress().waiting == 13
    assert bob.next_question().prompt == prompts[1]


def test_filters_and_a_setting_of_0_ask_for_no_first_items(store, prompts):
    answer(ReviewService(store, "ada"))
    named = ReviewService(store, "bob", wanted=Wanted(prompts=(prompts[0].prompt_id,)))
    assert named.next_question() is None and named.progress().waiting == 13
    store.assignments.set_config(ReviewConfig(calibration=0))
    bob = ReviewService(store, "bob")
    assert bob.next_question().prompt == prompts[1] and bob.progress().waiting == 12
