"""A grader asks until an answer can be used, says what is wrong, and never presses a refusal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from pydantic import BaseModel

from pivotal_tokens.llm import BudgetExhausted, Grade, Grader, LLMSettings, Message, NoReply
from pivotal_tokens.llm.grade import every
from pivotal_tokens.store import Store

pytestmark = pytest.mark.usefixtures("api_key")

QUESTION = [Message(role="user", content="how many?")]


class Answer(BaseModel):
    n: int


def grade(store: Store, endpoint: FakeEndpoint, at_least: int = 0) -> Grade[Answer]:
    grader = Grader(LLMSettings(model="o3", base_url=endpoint.base_url, deadline_s=9), store)
    return grader.run(
        lambda client: grader.grade(
            client,
            QUESTION,
            Answer,
            check=lambda answer: "" if answer.n >= at_least else f"{answer.n} is too small",
            remind="a larger number",
        )
    )


def counting(first: int = 0):
    numbers = iter(range(first, 99))
    return lambda body: {"n": next(numbers)}


def test_an_answer_that_fails_the_check_is_sent_back_with_what_is_wrong(store: Store) -> None:
    with FakeEndpoint(answer=counting()) as endpoint:
        found = grade(store, endpoint, at_least=2)
        last = endpoint.requests[-1].body["messages"]
    assert found.value == Answer(n=2) and found.problem == "" and len(found.call_ids) == 3
    said = [m["content"] for m in last if m["role"] != "system"]
    again = "That answer cannot be used: {} is too small. Answer again: a larger number."
    assert [s for s in said if "too small" in s] == [again.format(0), again.format(1)]
    assert [m["role"] for m in last if m["role"] != "system"] == [
        "user",
        *["assistant", "user"] * 2,
    ]


def test_what_no_reply_settles_has_no_value_and_is_asked_anew_another_time(store: Store) -> None:
    with FakeEndpoint(answer=counting()) as endpoint:
        found = grade(store, endpoint, at_least=3)
        assert found.value is None and found.problem == "2 is too small"
        assert len(endpoint.requests) == 3
        # the three stored replies are read, found useless, and do not stand in for asking
        assert grade(store, endpoint, at_least=3).value == Answer(n=3)
        assert len(endpoint.requests) == 4


@pytest.mark.parametrize("script", ["refusal*9", "filter*9"])
def test_a_model_that_declines_is_not_pressed(store: Store, script: str) -> None:
    with FakeEndpoint(script) as endpoint:
        found = grade(store, endpoint)
        assert found.value is None and found.problem and len(endpoint.requests) == 1


def test_without_a_reply_there_is_no_grade(store: Store) -> None:
    with FakeEndpoint("400", cycle=True) as endpoint, pytest.raises(NoReply, match="400"):
        grade(store, endpoint)


def test_all_work_ends_before_an_error_is_raised_and_a_runs_end_comes_first() -> None:
    ended: list[int] = []

    async def work(number: int, error: Exception | None) -> int:
        await asyncio.sleep(0)
        ended.append(number)
        if error is not None:
            raise error
        return number

    async def both(*errors: Exception | None) -> Any:
        return await every(work(n, error) for n, error in enumerate(errors))

    assert asyncio.run(both(None, None)) == [0, 1]
    with pytest.raises(BudgetExhausted):
        asyncio.run(both(NoReply("late"), BudgetExhausted("spent"), None))
    assert ended == [0, 1, 0, 1, 2]


def asked_of(store: Store, endpoint: FakeEndpoint, **settings: Any) -> Grade[Answer]:
    given = {"model": "m", "base_url": endpoint.base_url, "deadline_s": 9} | settings
    grader = Grader(LLMSettings(**given), store)
    return grader.run(lambda client: grader.grade(client, QUESTION, Answer))


def limits(endpoint: FakeEndpoint) -> list[int]:
    names = ("max_tokens", "max_completion_tokens")
    return [seen.body[name] for seen in endpoint.requests for name in names if name in seen.body]


def test_a_reply_cut_off_at_the_limit_is_asked_for_once_more_with_more_room(store: Store) -> None:
    with FakeEndpoint("truncated,ok", answer=counting()) as endpoint:
        found = asked_of(store, endpoint)
        assert limits(endpoint) == [2000, 10_000]
        first, again = (seen.body["messages"] for seen in endpoint.requests)
    assert found.value is not None and first == again  # half an answer is not sent back


@pytest.mark.parametrize(
    ("settings", "paid"),
    [
        ({}, [2000, 10_000]),
        ({"max_output_tokens": 500}, [500]),  # what somebody gave is the last word
        ({"model": "o3"}, [10_000]),  # it has the room to think already
    ],
)
def test_a_reply_that_is_cut_off_again_is_not_paid_for_a_third_time(
    store: Store, settings: dict[str, Any], paid: list[int]
) -> None:
    with FakeEndpoint("truncated", cycle=True, answer=counting()) as endpoint:
        found = asked_of(store, endpoint, **settings)
        assert limits(endpoint) == paid
    assert found.value is None and "--max-output-tokens" in found.problem
    assert store.ledger.counts().calls == len(paid)


def test_an_unusable_answer_then_one_cut_off_is_asked_with_all_that_was_said(store: Store) -> None:
    with FakeEndpoint("prose,truncated,ok", answer=counting()) as endpoint:
        assert asked_of(store, endpoint).value is not None
        assert limits(endpoint) == [2000, 2000, 10_000]
        second, third = (seen.body["messages"] for seen in endpoint.requests[1:])
    assert second == third and "cannot be used" in third[-1]["content"]
