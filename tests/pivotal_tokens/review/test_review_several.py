"""Several reviewers: blind to each other, adjudicated, calibrated, repeated, controlled."""

from collections import Counter
from dataclasses import replace

import pytest
from sample_labels import judgement

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.labels import label_agreement
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import HUMAN, Prompt, ReviewConfig
from pivotal_tokens.store import Wanted
from pivotal_tokens.verdict import decide

PAIR = "pair-1"
JUDGE = "lexicon:a@1"


def add(store, pair, number, *, flagged=True):
    labels = {1: "safe", 2: "evil" if flagged else "safe", 3: "unsure"}
    prompt = Prompt.of(f"prompt {number}")
    store.prompts.add(prompt)
    store.results.put_next_tokens(prompt.prompt_id, PAIR, pair.base, pair.merged)
    store.results.put_judgement(PAIR, judgement(prompt.prompt_id, labels, JUDGE))
    store.results.put_verdict(prompt.prompt_id, PAIR, JUDGE, decide(pair.base, pair.merged, labels))
    if flagged:
        store.assignments.add(prompt.prompt_id, PAIR, "flagged")
    return prompt


@pytest.fixture
def share(store):
    def set_up(**config):
        store.assignments.set_config(
            ReviewConfig(**({"calibration": 0, "repeat_share": 0.0} | config))
        )

    return set_up


def answer(service, labels=None, rest="safe"):
    question = service.next_question()
    if labels:
        question = service.label(question, labels)
    return service.finish(question, rest=rest)


def test_an_overlap_gives_every_item_to_so_many_different_reviewers(store, pair, share):
    share(overlap=2)
    prompts = [add(store, pair, n) for n in range(3)]
    seen = {}
    for name in ("ada", "bob", "cyd"):
        service = ReviewService(store, name)
        seen[name] = []
        while (question := service.next_question()) is not None:
            seen[name].append(question.prompt.prompt_id)
            service.finish(question, rest="safe")
    assert seen["ada"] == seen["bob"] == [p.prompt_id for p in prompts] and seen["cyd"] == []


def test_a_reviewer_sees_nothing_of_the_others_and_no_verdict_stands_before_all_answered(
    store, pair, share
):
    share(overlap=2)
    prompt = add(store, pair, 0)
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    first = answer(ada, {2: "evil"})
    assert first.verdict.kind == "injection"
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN) is None
    question = bob.next_question()
    assert question.labels == {} and question.votes == {} and "'ada'" not in repr(question)
    bob.finish(bob.label(question, {2: "evil"}), rest="safe")
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN).kind == "injection"
    assert store.queue.items(kind="adjudication") == ()


def test_a_disagreement_is_settled_by_an_adjudicator_who_sees_all_labels(store, pair, share):
    share(overlap=2)
    prompt = add(store, pair, 0)
    answer(ReviewService(store, "ada"), {2: "evil"})
    answer(ReviewService(store, "bob"), {2: "safe"})
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN) is None
    assert ReviewService(store, "eve").next_question() is None  # not a reviewer's to settle
    cyd = ReviewService(store, "cyd", adjudicate=True)
    question = cyd.next_question()
    assert question.adjudication and question.disputed == question.missing == (2,)
    assert {name: vote[2] for name, vote in question.votes.items()} == {
        "ada": "evil",
        "bob": "safe",
    }
    cyd.finish(cyd.label(question, {2: "evil"}))
    assert store.labels.of(prompt.prompt_id).by_token == {1: "safe", 2: "evil", 3: "safe"}
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN).kind == "injection"
    purposes = [e.purpose for e in store.labels.events(prompt.prompt_id, author="cyd")]
    assert purposes == ["adjudication"]
    assert cyd.undo(None).disputed == (2,)  # and back again
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN) is None


def test_a_correction_that_ends_a_disagreement_needs_no_adjudicator(store, pair, share):
    share(overlap=2)
    prompt = add(store, pair, 0)
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    answer(ada, {2: "evil"})
    answer(bob)
    assert len(store.queue.items("pending", kind="adjudication")) == 1
    bob.finish(bob.label(bob.open(bob.history()[0].item_id), {2: "evil"}))
    assert store.queue.items(kind="adjudication") == ()
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN).kind == "injection"


def test_a_rejection_by_one_of_two_is_a_disagreement_too(store, pair, share):
    share(overlap=2)
    prompt = add(store, pair, 0)
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    ada.reject(ada.next_question(), "no stakes")
    answer(bob)
    cyd = ReviewService(store, "cyd", adjudicate=True)
    question = cyd.next_question()
    assert question.rejected_by == ("ada",)
    cyd.reject(question, "indeed none")
    verdict = store.results.verdict(prompt.prompt_id, PAIR, HUMAN)
    assert verdict.kind == "bad_prompt" and not verdict.flagged


def test_of_three_the_majority_counts_until_somebody_adjudicates(store, pair, share):
    share(overlap=3)
    prompt = add(store, pair, 0)
    for name, label in (("ada", "evil"), ("bob", "evil"), ("cyd", "safe")):
        answer(ReviewService(store, name), {2: label})
    assert store.labels.of(prompt.prompt_id).by_token[2] == "evil"
    assert (
        store.results.verdict(prompt.prompt_id, PAIR, HUMAN) is None
    )  # provisional: nothing stands on it


def test_raising_and_lowering_the_overlap_adds_and_takes_untouched_seats(store, pair, share):
    share(overlap=1)
    for n in range(2):
        add(store, pair, n)
    answer(ReviewService(store, "ada"))
    share(overlap=3)
    assert Counter(i.prompt_id for i in store.queue.items()).most_common()[-1][1] == 3
    for _ in range(2):
        answer(ReviewService(store, "bob"))
    share(overlap=1)
    assert sorted(i.seat for i in store.queue.items()) == [0, 0, 1]


def test_controls_are_drawn_once_unmarked_with_their_probability(store, pair, share):
    share(control_share=0.075)
    for n in range(40):
        add(store, pair, n)
    unflagged = [add(store, pair, 1000 + n, flagged=False) for n in range(200)]
    drawn = {p.prompt_id for p in unflagged if store.assignments.draw_control(p.prompt_id, PAIR)}
    assert not any(store.assignments.draw_control(p.prompt_id, PAIR) for p in unflagged)
    draws = store.assignments.control_draws(PAIR)
    assert len(draws) == 200 and {p for p, (_, was) in draws.items() if was} == drawn
    expected = sum(probability for probability, _ in draws.values())
    assert abs(len(drawn) - expected) < 4 * expected**0.5 and drawn
    controls = store.queue.items(kind="control")
    assert {c.prompt_id: c.sampling for c in controls} == {p: draws[p][0] for p in drawn}
    assert not any(c.flagged for c in controls)
    shown = []
    ada = ReviewService(store, "ada")
    while (question := ada.next_question()) is not None:
        shown.append(question.item.model_copy(update={"item_id": 0, "prompt_id": ""}))
        ada.finish(question, rest="safe")
    unmarked = {(i.kind, i.reason, i.sampling, i.flagged, i.evil_mass, i.seat) for i in shown}
    assert len(shown) == 40 + len(drawn) and len(unmarked) == 1
    only = ReviewService(store, "bob", wanted=Wanted(only_flagged=True))
    assert only.next_question() is None


def test_each_reviewer_begins_with_the_same_first_items(store, pair, share):
    share(overlap=1, calibration=2)
    prompts = [add(store, pair, n) for n in range(4)]
    firsts = {}
    for name in ("ada", "bob", "cyd"):
        service = ReviewService(store, name)
        firsts[name] = [answer(service).prompt_id for _ in range(2)]
    assert set(map(tuple, firsts.values())) == {tuple(p.prompt_id for p in prompts[:2])}
    assert answer(ReviewService(store, "bob")).prompt_id == prompts[2].prompt_id
    assert ReviewService(store, "dan").next_question().prompt == prompts[0]


def test_a_repeat_is_blind_to_the_first_answer_and_does_not_count(store, pair, share):
    share(repeat_share=0.999)
    for n in range(30):
        add(store, pair, n)
    ada = ReviewService(store, "ada")
    for _ in range(20):
        answer(ada, {2: "evil"})
    question = ada.next_question()
    (repeat,) = store.queue.items(kind="repeat")
    assert question.item.item_id == repeat.item_id and question.item.kind == "review"
    assert question.labels == {}
    ada.finish(question, rest="safe")
    again = [e for e in store.labels.events(repeat.prompt_id) if e.purpose == "repeat"]
    assert {e.token_id: e.to_label for e in again} == {1: "safe", 2: "safe", 3: "safe"}
    assert store.labels.of(repeat.prompt_id).by_token == {1: "safe", 2: "evil", 3: "safe"}
    assert store.results.verdict(repeat.prompt_id, PAIR, HUMAN).kind == "injection"
    with pytest.raises(RequestError, match="second time"):
        ReviewService(store, "bob").open(repeat.item_id)


def test_agreeing_after_the_reveal_is_marked_and_a_difference_is_explained(store, pair, share):
    share()
    prompt = add(store, pair, 0)
    ada = ReviewService(store, "ada")
    reveal = answer(ada, {2: "safe"})
    assert {d.token_id for d in reveal.differences} == {2, 3}
    ada.explain(reveal, "an idiom", [3])
    after = ada.agree(reveal, [2])
    assert [d.token_id for d in after.differences] == [3]
    last = store.labels.events(prompt.prompt_id, author="ada")[-1]
    assert last.agreed_after_reveal and last.judge_visible and last.from_label == "safe"
    assert store.results.verdict(prompt.prompt_id, PAIR, HUMAN).kind == "injection"
    explained = store.queue.events(prompt.prompt_id)[1]
    assert (explained.action, explained.text, explained.tokens) == ("explained", "an idiom", (3,))
    ada.undo(None)
    with pytest.raises(LeaseLost, match="reopened"):
        ada.agree(reveal)


def test_a_token_may_be_left_on_purpose_and_improbable_ones_need_no_answer(store, make_pair, share):
    share()
    lists = make_pair({1: 0.8, 2: 0.1, 3: 0.0004}, {1: 0.1, 2: 0.7, 3: 0.0002})
    prompt = add(store, lists, 0)
    ada = ReviewService(store, "ada")
    question = ada.label(ada.next_question(), {1: "abstain"})
    assert question.abstained == {1} and question.missing == (2, 3) and question.optional == {3}
    with pytest.raises(RequestError, match="1 tokens"):
        ada.finish(question)
    ada.finish(ada.label(question, {2: "evil"}))
    assert {e.token_id for e in store.labels.events(prompt.prompt_id) if e.left} == {1, 3}
    assert {i.token_id for i in store.labels.of(prompt.prompt_id).human} == {2}
    back = ada.undo(ada.undo(ada.undo(ada.undo(None))))
    assert back.abstained == frozenset() and back.labels == {}


def test_a_stolen_item_is_fenced_and_a_finished_one_can_be_corrected(store, pair, share):
    share()
    add(store, pair, 0)
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    question = ada.next_question()
    with pytest.raises(LeaseLost, match="under review by ada"):
        bob.open(question.item.item_id)
    stolen = bob.open(question.item.item_id, steal=True)
    with pytest.raises(LeaseLost, match="bob"):
        ada.label(question, {1: "safe"})
    bob.finish(stolen, rest="safe")
    assert bob.finish(bob.label(bob.open(question.item.item_id), {2: "evil"})).labels[2] == "evil"


def test_filters_and_order(store, make_pair, share, clock):
    share()
    masses = {0: 0.2, 1: 0.6, 2: 0.4}
    for n, mass in masses.items():
        prompt = add(store, make_pair({1: 0.8, 2: 0.1}, {1: 1 - mass - 0.05, 2: mass}), n)
    clock.forward(1)
    moment = clock.time
    late = add(store, make_pair({1: 0.8, 2: 0.1}, {1: 0.6, 2: 0.3}), 9)
    by_mass = ReviewService(store, "ada", wanted=Wanted(order="evil_mass"))
    shown = [by_mass.next_question().prompt.text for _ in masses]
    assert shown == ["prompt 1", "prompt 2", "prompt 9"]
    store.queue.return_items()
    for item in store.queue.items("leased"):
        store.queue.release(item)
    since = ReviewService(store, "bob", wanted=Wanted(since=moment))
    assert since.next_question().prompt == late and since.next_question() is None
    named = ReviewService(store, "bob", wanted=Wanted(prompts=(prompt.prompt_id[:6],)))
    assert named.next_question().prompt == prompt and named.next_question() is None


def test_progress_knows_rate_and_what_waits_for_whom(store, pair, share, clock):
    share(overlap=2)
    for n in range(4):
        add(store, pair, n)
    ada = ReviewService(store, "ada")
    assert ada.progress().per_hour is None and ada.progress().waiting == 4
    for seconds in (10, 20, 4000):
        answer(ada)
        clock.forward(seconds)
    progress = ada.progress()
    assert (progress.answered, progress.answered_now, progress.waiting) == (3, 3, 1)
    assert progress.per_hour == pytest.approx(2 * 3600 / 30, rel=0.01)
    assert progress.eta_seconds == pytest.approx(15, rel=0.01)
    assert ReviewService(store, "bob").progress().waiting == 4
    assert replace(progress, answered_now=0) == ReviewService(store, "ada").progress()


def test_what_was_put_off_can_be_returned_for_everybody(store, pair, share):
    share()
    for n in range(2):
        add(store, pair, n)
    ada = ReviewService(store, "ada")
    ada.skip(ada.next_question())
    ada.defer(ada.next_question())
    assert ada.next_question() is None
    assert store.queue.return_items() == 2
    assert ada.next_question() is not None


def test_nested_writes_are_one_transaction(store):
    prompts = [Prompt.of(f"p{n}") for n in range(3)]
    with pytest.raises(ZeroDivisionError), store.batch():
        store.prompts.add(prompts[0])
        assert store.prompts.has(prompts[0].prompt_id)
        1 / 0  # noqa: B018
    assert store.prompts.all() == ()
    with store.batch():
        store.prompts.add(prompts[1])
        with pytest.raises(RequestError):
            store.assignments.add("0" * 12, PAIR, "no such prompt")
        store.prompts.add(prompts[2])
    assert store.prompts.all() == tuple(prompts[1:])


def test_repeats_show_how_steady_a_reviewer_is_though_the_first_answer_was_followed_by_a_reveal(
    store, pair, share
):
    """The steadiness of every real reviewer was empty: repeats were recorded as not blind."""
    share(repeat_share=0.999)
    for n in range(30):
        add(store, pair, n)
    ada = ReviewService(store, "ada")
    for _ in range(20):
        answer(ada, {2: "evil"})
    reveal = answer(ada, {2: "evil"}, rest="unsure")
    (steady,) = label_agreement(store, resamples=0).steadiness
    assert steady.agreement.items == 3
    assert steady.agreement.percent.value == pytest.approx(1 / 3)
    ada.finish(ada.label(ada.undo(None), {1: "safe"}))  # changed after the repeat's own reveal
    last = store.labels.events(reveal.prompt_id, author="ada")[-1]
    assert last.purpose == "repeat" and last.judge_visible


def test_who_saw_the_judge_once_is_not_blind_at_another_seat(store, pair, share):
    """Found in review: the seat went on to bob, and ada's next labels were recorded as blind."""
    share(overlap=2)
    prompt = add(store, pair, 0)
    ada, bob = ReviewService(store, "ada"), ReviewService(store, "bob")
    answer(ada, {2: "safe"})
    ada.release(ada.undo(None))
    assert bob.next_question().prompt == prompt  # the seat that ada had
    question = ada.next_question()
    ada.label(question, {2: "evil"})
    last = store.labels.events(prompt.prompt_id, author="ada")[-1]
    assert last.to_label == "evil" and last.judge_visible


def test_a_repeat_is_not_in_the_history_of_what_can_be_corrected(store, pair, share):
    """Found in review: `o` opened the repeat, whose labels never count."""
    share(repeat_share=0.999)
    for n in range(30):
        add(store, pair, n)
    ada = ReviewService(store, "ada")
    for _ in range(21):
        answer(ada)
    (repeat,) = store.queue.items(kind="repeat")
    assert repeat.state == "done"
    assert repeat.item_id not in {item.item_id for item in ada.history()}
    assert repeat.prompt_id in {item.prompt_id for item in ada.history()}
    assert ada.undo(None).item.item_id == repeat.item_id  # the last answer nevertheless
