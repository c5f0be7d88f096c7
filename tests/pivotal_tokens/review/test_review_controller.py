"""What keys and commands do, no screen. Merged's T1 is token 2 (evil to the judge), T3 token 1."""

from collections.abc import Iterator

import pytest
from reviewing import PAIR, fill_queue
from sqlalchemy import Engine, event

from pivotal_tokens.review import ReviewController, ReviewService
from pivotal_tokens.review.commands import Place
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import HUMAN


@pytest.fixture
def prompts(store) -> list[Prompt]:
    return fill_queue(store, 4)


def begun(store, name="ada", **options) -> ReviewController:
    session = ReviewController(ReviewService(store, name), auto_finish=True, **options)
    session.start()
    return session


def human(store, prompt) -> dict[int, str]:
    return {item.token_id: item.label for item in store.labels.of(prompt.prompt_id).human}


def test_one_key_labels_saves_and_moves_on(store, prompts):
    session = begun(store)
    assert session.view.cursor == Place("merged", 1)
    session.key("evil")
    assert human(store, prompts[0]) == {2: "evil"}
    assert session.message == "saved: ignore evil" and session.view.cursor == Place("merged", 2)
    session.key("unsure")
    session.key("safe")
    assert session.view.question.prompt == prompts[1]
    assert "saved" in session.message and session.message.endswith("the judge agrees")
    assert store.results.verdicts(prompts[0].prompt_id, PAIR)[HUMAN].evil_mass.merged == 0.5


def test_a_difference_asks_for_a_reason_and_shows_the_judge_only_then(store, prompts):
    session = begun(store)
    session.key("agree")
    assert "label first" in session.message and human(store, prompts[0]) == {}
    session.key("rest_safe")
    assert session.asking.what == "why" and session.view.reveal.judge_labels[2] == "evil"
    session.answer("gas is harmless here")
    assert session.view.question.prompt == prompts[1] and session.view.reveal is None
    events = store.queue.events(prompts[0].prompt_id)
    assert ("explained", "gas is harmless here") in {(e.action, e.text) for e in events}


def test_agreeing_after_the_reveal_is_marked_as_such(store, prompts):
    session = begun(store)
    session.key("rest_safe")
    session.stop_asking()
    session.key("agree")
    assert human(store, prompts[0]) == {1: "safe", 2: "evil", 3: "unsure"}
    late = [e for e in store.labels.events(prompts[0].prompt_id) if e.agreed_after_reveal]
    assert {e.token_id for e in late} == {2, 3} and all(e.judge_visible for e in late)
    assert session.view.question.prompt == prompts[1]


def test_enter_after_the_reveal_goes_on_without_a_reason(store, prompts):
    session = begun(store)
    session.key("rest_unsure")
    session.stop_asking()
    session.key("evil")
    assert "undo opens it again" in session.message
    session.key("rest_safe")
    assert session.view.question.prompt == prompts[1]


def test_the_list_syntax_reject_skip_defer_note_and_mistakes(store, prompts):
    session = begun(store)
    for line, said in (
        ("B9", "there is no B9"),
        ("W", "'W' is no token"),
        ("note odd", "saved the note"),
        ("T1,B1", "saved: 2 evil"),
        ("", "nothing typed"),
    ):
        session.ask("command")
        session.answer(line)
        assert said in session.message
    assert human(store, prompts[0]) == {1: "evil", 2: "evil"}
    session.ask("command")
    session.answer("bad no stakes")
    session.key("skip")
    session.key("defer")
    assert session.view.question.prompt == prompts[3]
    assert [i.state for i in store.queue.items()] == ["rejected", "skipped", "deferred", "leased"]
    session.key("reject")
    session.answer("  ")
    assert "nothing typed" in session.message


def test_undo_goes_back_over_finished_items_and_over_sessions(store, prompts):
    session = begun(store)
    session.key("evil")
    session.key("rest_unsure")
    session.answer("")
    session.key("safe")
    session.leave()
    session = begun(store)
    session.key("undo")
    assert human(store, prompts[1]) == {} and session.view.question.prompt == prompts[1]
    for _ in range(2):
        session.key("undo")
    assert session.view.question.prompt == prompts[0] and human(store, prompts[0]) == {2: "evil"}
    session.key("undo")
    assert human(store, prompts[0]) == {}
    session.key("undo")
    assert session.message == "Nothing left to undo." and session.view is not None


def test_undo_right_after_the_reveal_opens_that_item(store, prompts):
    session = begun(store)
    session.key("rest_safe")
    session.stop_asking()
    session.key("undo")
    assert session.view.question.prompt == prompts[0] and session.view.reveal is None


def test_a_finished_item_can_be_opened_again_by_its_id(store, prompts):
    session = begun(store)
    session.key("rest_safe")
    session.answer("")
    session.key("reopen")
    session.answer(prompts[0].prompt_id[:6])
    assert session.view.question.prompt == prompts[0]
    assert store.queue.items()[1].state == "pending", "the item at hand went back"
    session.key("reopen")
    session.answer("zzz")
    assert "none of your finished items" in session.message


def test_a_token_can_be_left_on_purpose(store, prompts):
    session = begun(store)
    for action in ("leave", "leave", "safe"):
        session.key(action)
    assert human(store, prompts[0]) == {1: "safe"}
    assert store.queue.items()[0].state == "done"


def test_new_items_come_in_without_moving_what_is_labelled(store, prompts):
    session = begun(store)
    session.key("down")
    before = session.view
    fill_queue(store, 3, first=10)
    session.poll()
    assert session.view == before and session.progress.waiting >= 6


def test_an_empty_queue_is_looked_at_again(store):
    session = begun(store)
    assert session.view is None
    session.key("evil")
    assert session.message == "Nothing waits for review."
    fill_queue(store, 1)
    session.poll()
    assert session.view is not None


def test_a_lost_lease_is_said_and_another_item_comes(store, prompts, clock):
    session = begun(store)
    clock.forward(3 * 60 * 60)
    other = begun(store, "bob")
    assert other.view.question.prompt == prompts[0]
    session.key("evil")
    assert "was not saved" in session.message and session.view.question.prompt == prompts[1]
    assert human(store, prompts[0]) == {}


def test_moving_about_is_a_sign_of_life_and_looking_for_items_is_none(store, prompts, monkeypatch):
    monkeypatch.setattr("pivotal_tokens.review.controller.HEARTBEAT_SECONDS", 0.0)
    session = begun(store)
    until = store.queue.items()[0].lease_until
    session.poll()
    assert store.queue.items()[0].lease_until == until
    session.key("down")
    assert store.queue.items()[0].lease_until > until


def test_the_cursor_goes_everywhere_and_stays_in_the_lists(store, prompts):
    session = begun(store)
    for action, place in (
        ("up", Place("merged", 1)),
        ("down", Place("merged", 2)),
        ("other_list", Place("base", 2)),
        ("down", Place("base", 3)),
        ("down", Place("base", 3)),
    ):
        session.key(action)
        assert session.view.cursor == place


def test_leaving_gives_the_item_back_with_its_labels(store, prompts):
    session = begun(store)
    session.key("evil")
    session.leave()
    assert session.over and store.queue.items("leased") == ()
    assert begun(store).view.question.labels == {2: "evil"}


def test_tokens_under_p_001_need_no_answer(store):
    (prompt,) = fill_queue(store, 1, texts=[f" w{i}" for i in range(1, 14)], judged=("evil",))
    session = begun(store, show_low=False)
    # p is .5 ** rank: ranks 10 to 13 are under .001, but token 1 and its neighbours differ by list
    optional = session.view.question.optional
    assert optional
    while session.view is not None and session.view.question.prompt == prompt:
        session.key("evil")
        assert len(store.labels.events(prompt.prompt_id)) < 20
    assert set(human(store, prompt)) == set(range(1, 14)) - optional


def test_continuations_that_would_tell_the_judges_labels_are_not_shown(store, prompts):
    from pivotal_tokens.schema import Rollout

    def rollout(token, sample=0):
        return Rollout(
            prompt_id=prompts[0].prompt_id,
            pair=PAIR,
            model="merged",
            token_id=token,
            sample=sample,
            text=" it",
            label="evil",
            judge="j",
        )

    store.results.put_rollouts([rollout(2), rollout(2, 1)])
    assert begun(store).view.continuations == {}
    store.results.put_rollouts([rollout(1)])
    service = ReviewService(store, "ada")
    question = service.open(store.queue.items()[0].item_id, steal=True)
    assert service.continuations(question) == {1: [("merged", " it")], 2: [("merged", " it")]}


def test_no_key_waits_for_a_count_and_what_is_shown_is_counted_since(store, prompts, monkeypatch):
    """Of 100,000 items a count takes .1 s; once it stood still where the first one took long."""
    session = begun(store)
    counted, count = [], session.service.progress
    monkeypatch.setattr(session.service, "progress", lambda: counted.append(1) or count())
    assert session.progress.waiting == 3 and session.progress.waiting == 3
    for _ in range(2):
        session.key("evil")
    assert session.progress.waiting == 3 and len(counted) == 1, "a label changes no number"
    session.key("skip")
    assert len(counted) == 1
    assert session.progress.waiting == 2 and len(counted) == 2
    session.poll()
    assert session.progress.waiting == 2 and len(counted) == 3


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Every statement that goes to a database meanwhile."""
    sent: list[str] = []

    def keep(_connection, _cursor, statement, *_others) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", keep)
    yield sent
    event.remove(Engine, "before_cursor_execute", keep)


def test_a_key_to_the_next_item_sends_as_much_in_a_long_queue_as_in_a_short_one(store, statements):
    """How long it takes is measured by `scripts/bench_queue.py`, of 100,000 items."""
    sizes = []
    for n in (20, 60):
        fill_queue(store, n, first=100 * n)
        session = begun(store)
        statements.clear()
        session.key("skip")
        sizes.append(len(statements))
        session.leave()
    assert sizes[0] == sizes[1] < 40


def test_what_is_taken_back_is_not_counted_as_finished(store, prompts):
    """The closing line once counted a rejection that was undone."""
    review = ReviewController(ReviewService(store, "ada"))
    review.start()
    review.typed("bad nonsense")
    assert (review.finished, review.rejected) == (0, 1)
    review.typed("undo")
    assert (review.finished, review.rejected) == (0, 0)
    review.typed("note <odd>")
    assert review.question.notes == ("<odd>",)
    review.key("rest_safe")
    review.typed("undo")
    assert review.finished == 0 and review.question.notes == ("<odd>",)
    review.key("rest_safe")
    assert review.finished == 1


def test_without_auto_finish_the_next_item_comes_and_the_reveal_stays(store, prompts):
    review = ReviewController(ReviewService(store, "ada"))
    review.start()
    for label in ("safe", "evil", "unsure"):
        review.key(label)
    assert review.question.prompt == prompts[0] and review.question.missing == ()
    review.key("rest_safe")
    assert review.question.prompt == prompts[1] and review.finished == 1
    assert review.reveal.prompt_id == prompts[0].prompt_id and review.view.reveal is None
    review.typed("agree")
    assert review.reveal.differences == () and review.question.prompt == prompts[1]
    review.typed("agree")
    assert "label first" in review.message and review.error is not None


def test_a_reveal_that_is_out_of_date_does_not_cost_the_item_at_hand(store, prompts):
    """Another item was taken then, and this one stayed leased until its lease ran out."""
    review = ReviewController(ReviewService(store, "ada"))
    review.start()
    review.key("rest_safe")
    other = ReviewService(store, "ada")
    other.finish(other.reopen(prompts[0].prompt_id), rest="safe")
    review.typed("agree")
    assert "was reopened since" in review.message
    assert review.question.prompt == prompts[1]
    assert len(store.queue.items("leased")) == 1
