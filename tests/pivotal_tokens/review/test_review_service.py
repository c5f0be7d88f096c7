"""The review service: blind questions, labels, verdicts, undo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_labels import judgement

import pivotal_tokens
from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.review import ReviewService
from pivotal_tokens.review.commands import Place
from pivotal_tokens.schema import Prompt, ReviewConfig, Thresholds
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide

PAIR = "pair-1"
JUDGE = "lexicon:a@1"


@pytest.fixture
def queued(store, pair):
    """Three flagged prompts whose judge calls token 1 safe, 2 evil, 3 unsure."""
    prompts = [Prompt.of(f"prompt {number}") for number in range(3)]
    labels = {1: "safe", 2: "evil", 3: "unsure"}
    for prompt in prompts:
        store.prompts.add(prompt)
        store.results.put_next_tokens(prompt.prompt_id, PAIR, pair.base, pair.merged)
        store.results.put_judgement(PAIR, judgement(prompt.prompt_id, labels, JUDGE))
        verdict = decide(pair.base, pair.merged, labels, Thresholds(present=0.04))
        store.results.put_verdict(prompt.prompt_id, PAIR, JUDGE, verdict)
        store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    return prompts


@pytest.fixture
def ada(store):
    return ReviewService(store, "ada", lease_seconds=60)


def test_a_question_shows_no_judges_label(queued, ada):
    question = ada.next_question()
    assert question.prompt == queued[0]
    assert question.labels == {} and set(question.missing) == {1, 2, 3}
    assert "lexicon" not in repr(question)


def test_a_finished_item_has_a_label_for_every_token_and_a_verdict(store, queued, ada):
    question = ada.label(ada.next_question(), {2: "evil"}, reason="it burns")
    with pytest.raises(RequestError, match="2 tokens have no label"):
        ada.finish(question)
    reveal = ada.finish(question, rest="safe")
    assert reveal.labels == {1: "safe", 2: "evil", 3: "safe"}
    assert reveal.judge_labels == {1: "safe", 2: "evil", 3: "unsure"}
    assert [(one.token_id, one.human, one.judge) for one in reveal.differences] == [
        (3, "safe", "unsure")
    ]
    assert reveal.verdict == store.results.verdict(queued[0].prompt_id, PAIR, HUMAN)
    assert reveal.verdict.kind == "injection"
    assert reveal.verdict.thresholds.present == 0.04  # those the prompt was flagged under
    assert store.labels.of(queued[0].prompt_id).source == "human"
    events = store.labels.events(queued[0].prompt_id, author="ada")
    assert [(e.token_id, e.from_label, e.to_label, e.judge_visible) for e in events] == [
        (2, None, "evil", False),
        (1, None, "safe", False),
        (3, None, "safe", False),
    ]
    assert events[0].reason == "it burns" and events[0].rubric_version


def test_a_place_names_a_token_of_one_list(queued, ada):
    question = ada.next_question()
    assert question.token_at(Place("base", 1)) == 1
    assert question.token_at(Place("merged", 1)) == 2
    with pytest.raises(RequestError, match="no T4"):
        question.token_at(Place("merged", 4))
    with pytest.raises(RequestError, match="neither list"):
        ada.label(question, {77: "evil"})


def test_a_rejected_prompt_has_its_reason_and_verdict(store, queued, ada):
    question = ada.next_question()
    with pytest.raises(RequestError, match="reason"):
        ada.reject(question, " ")
    ada.reject(question, "low stakes")
    assert store.results.verdict(queued[0].prompt_id, PAIR, HUMAN).kind == "bad_prompt"
    assert store.queue.events(queued[0].prompt_id)[0].text == "low stakes"
    assert ada.next_question().prompt == queued[1]


def test_deferred_comes_in_a_later_session_and_skipped_when_asked(store, queued, ada):
    store.assignments.set_config(ReviewConfig(calibration=0))
    ada.defer(ada.next_question())
    ada.skip(ada.next_question())
    ada.finish(ada.next_question(), rest="safe")
    assert ada.next_question() is None
    later = ReviewService(store, "bob")
    assert later.next_question().prompt == queued[0]
    assert later.next_question() is None
    asked = ReviewService(store, "bob", states=("skipped",))
    assert asked.next_question().prompt == queued[1]


def test_undo_goes_back_answer_by_answer_over_items_and_restarts(store, queued, ada):
    first = ada.label(ada.next_question(), {2: "evil"})
    ada.finish(first, rest="safe")
    ada.reject(ada.next_question(), "no")
    third = ada.label(ada.next_question(), {1: "evil"})
    third = ada.label(third, {1: "unsure", 2: "safe"})

    again = ReviewService(store, "ada")  # as after a restart: nothing is kept in memory
    third = again.undo(third)
    assert third.labels == {1: "evil"}
    third = again.undo(third)
    assert third.labels == {}
    second = again.undo(third)
    assert second.prompt == queued[1]
    assert [item.item_id for item in store.queue.items("leased")] == [second.item.item_id]
    assert store.results.verdict(queued[1].prompt_id, PAIR, HUMAN) is None
    first = again.undo(second)
    assert first.prompt == queued[0] and first.missing == ()
    first = again.undo(first)
    assert first.labels == {2: "evil"}
    first = again.undo(first)
    assert first.labels == {}
    assert again.undo(first) is None
    assert [item.state for item in store.queue.items()] == ["leased", "pending", "pending"]
    answered = again.finish(first, rest="unsure")
    assert set(answered.labels.values()) == {"unsure"}
    last = store.labels.events(queued[0].prompt_id, author="ada")[-1]
    assert last.judge_visible  # the judge's labels had been shown before it was reopened


def test_a_killed_reviewer_finds_the_item_and_its_labels_again(store, store_path, queued, ada):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from pivotal_tokens.review import ReviewService; from pivotal_tokens.store import Store\n"
        "service = ReviewService(Store.open(Path(sys.argv[1])), 'ada')\n"
        "service.label(service.next_question(), {2: 'evil'})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    root = str(Path(pivotal_tokens.__file__).parents[1])
    killed = subprocess.run(
        [sys.executable, "-c", code, str(store_path)], env=os.environ | {"PYTHONPATH": root}
    )
    assert killed.returncode == -9
    assert ReviewService(store, "bob").next_question().prompt == queued[1]
    question = ada.next_question()
    assert question.prompt == queued[0] and question.labels == {2: "evil"}


def test_two_sessions_of_one_reviewer_are_asked_different_items(store, queued):
    one, two = ReviewService(store, "ada"), ReviewService(store, "ada")
    assert one.next_question().prompt != two.next_question().prompt


def test_a_reviewer_who_was_away_too_long_is_refused(store, queued, ada, clock):
    question = ada.next_question()
    clock.forward(61)
    bob = ReviewService(store, "bob")
    assert bob.next_question().prompt == queued[0]
    for late in (
        lambda: ada.label(question, {1: "safe"}),
        lambda: ada.finish(question, rest="safe"),
        lambda: ada.reject(question, "late"),
    ):
        with pytest.raises(LeaseLost):
            late()
    assert store.labels.events(queued[0].prompt_id, author="ada") == ()


def test_each_answer_prolongs_the_lease(queued, ada, clock, store):
    question = ada.next_question()
    for token in (1, 2, 3):
        clock.forward(50)
        question = ada.label(question, {token: "safe"})
    assert ReviewService(store, "bob").next_question().prompt == queued[1]


def test_an_item_without_next_tokens_is_put_off_and_not_lost(store, queued, ada):
    bare = Prompt.of("never screened")
    store.prompts.add(bare)
    store.assignments.add(bare.prompt_id, PAIR, "by hand")
    for _ in queued:
        ada.finish(ada.next_question(), rest="safe")
    assert ada.next_question() is None
    assert [item.prompt_id for item in store.queue.items("deferred")] == [bare.prompt_id]


def test_a_note_is_kept_with_its_author(store, queued, ada):
    ada.note(ada.next_question(), "look at rank 7")
    (event,) = store.queue.events(queued[0].prompt_id)
    assert (event.author, event.action, event.text) == ("ada", "note", "look at rank 7")


def test_a_reviewer_needs_a_name(store):
    with pytest.raises(RequestError):
        ReviewService(store, " ")
