"""Every way in which an endpoint can answer badly has one outcome, in time and written down."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from fake_endpoint import FakeEndpoint
from pydantic import BaseModel, ConfigDict

from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.llm import (
    Budget,
    BudgetExhausted,
    CallFailed,
    EndpointRefused,
    Filtered,
    Invalid,
    LLMClient,
    LLMSettings,
    Message,
    Ok,
    Refused,
    Reply,
    Truncated,
)
from pivotal_tokens.store import Store

pytestmark = pytest.mark.usefixtures("api_key")


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    colour: Literal["red", "green"]
    why: str = ""


def ask(
    store: Store,
    endpoint: FakeEndpoint,
    n: int = 1,
    *,
    budget: Budget | None = None,
    same: bool = False,
    **settings: object,
) -> list[Reply | BaseException]:
    """Ask n questions at once."""
    given = LLMSettings(
        **{"model": "o3", "base_url": endpoint.base_url, "deadline_s": 20.0} | settings
    )

    async def run() -> list[Reply | BaseException]:
        async with LLMClient(given, store=store, budget=budget, seed=0) as client:
            asked = [
                client.ask(
                    [Message(role="user", content=f"question {0 if same else i}")],
                    schema=Answer,
                    purpose="test",
                )
                for i in range(n)
            ]
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("ok", Ok),
        ("fenced", Ok),
        ("no_usage", Ok),
        ("429:0.05,500,ok", Ok),
        ("cut,ok", Ok),
        ("refusal", Refused),
        ("truncated", Truncated),
        ("filter", Filtered),
        ("prose", Invalid),
        ("not_json", Invalid),
        ("huge", CallFailed),
        ("400*9", CallFailed),
        ("400,ok", Ok),
    ],
)
def test_every_answer_has_an_outcome(store: Store, script: str, outcome: type) -> None:
    with FakeEndpoint(script) as endpoint:
        (reply,) = ask(store, endpoint)
    assert isinstance(reply, outcome), reply
    if isinstance(reply, Ok):
        assert isinstance(reply.value, Answer) and not reply.cached
    if not isinstance(reply, CallFailed):  # kept whole, before it was read
        assert reply.call_id and store.ledger.counts().calls == len(endpoint.requests)
    assert store.ledger.counts().calls == len(endpoint.requests)


@pytest.mark.parametrize("script", ["hang", "drip:0.2", "429:30", "500*50", "ok"])
def test_the_deadline_is_kept(store: Store, script: str) -> None:
    """Without one each of these ends in an answer, never, or after fifty attempts."""
    with FakeEndpoint(script, latency_s=30 if script == "ok" else 0) as endpoint:
        (reply,) = ask(store, endpoint, deadline_s=1.0, max_attempts=50)
        assert len(endpoint.requests) < 50
    assert isinstance(reply, CallFailed)


def test_a_repeat_makes_no_request(store: Store) -> None:
    with FakeEndpoint() as endpoint:
        (first,) = ask(store, endpoint)
        (again,) = ask(store, endpoint)
        ask(store, endpoint, temperature=0.5)
    assert isinstance(first, Ok) and isinstance(again, Ok)
    assert again.cached and again.value == first.value and again.call_id == first.call_id
    assert len(endpoint.requests) == 2  # another parameter is another question


def test_what_an_endpoint_turns_down_is_left_out_for_good(store: Store) -> None:
    script = "unsupported_parameter:max_completion_tokens,no_json_schema,no_json_object,ok"
    with FakeEndpoint(script) as endpoint:
        (reply,) = ask(store, endpoint)
        ask(store, endpoint, n=2)
    assert isinstance(reply, Ok)
    assert len(endpoint.requests) == 4 + 1  # question 0 is kept; nothing is tried a second time
    last = endpoint.requests[-1].body
    assert "max_tokens" in last and "response_format" not in last
    assert "JSON schema" in last["messages"][-1]["content"]


def test_the_o_series_gets_no_temperature_and_its_own_limit(store: Store) -> None:
    with FakeEndpoint() as endpoint:
        ask(store, endpoint, temperature=0.0)
        ask(store, endpoint, temperature=0.0, model="llama")
    first, second = (seen.body for seen in endpoint.requests)
    assert "temperature" not in first and "max_completion_tokens" in first
    assert second["temperature"] == 0.0 and "max_tokens" in second


def test_a_refused_key_ends_the_run(store: Store) -> None:
    with FakeEndpoint("401") as endpoint:
        (reply,) = ask(store, endpoint)
    assert isinstance(reply, EndpointRefused) and "OPENAI_API_KEY" in str(reply)


def test_without_a_key_or_a_price_nothing_is_sent(store: Store, monkeypatch) -> None:
    with pytest.raises(RequestError, match="--price-in"):
        LLMClient(
            LLMSettings(model="nobody-knows", base_url="http://127.0.0.1:9/v1"),
            store=store,
            budget=Budget(max_usd=1),
        )
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RequestError, match="OPENAI_API_KEY"):
        LLMClient(LLMSettings(model="o3"), store=store)


@pytest.mark.parametrize("script", ["ok", "ok,500,no_usage,429:0.01,fenced"])
def test_fifty_in_flight_do_not_overspend(store: Store, script: str) -> None:
    budget = Budget(max_usd=0.2)
    with FakeEndpoint(script, cycle=True, latency_s=0.02) as endpoint:
        replies = ask(store, endpoint, n=120, budget=budget, max_concurrency=50, model="gpt-4o")
    counts = store.ledger.counts()
    assert counts.usd <= 0.2
    assert counts.calls == len(endpoint.requests)
    refused = [r for r in replies if isinstance(r, BudgetExhausted)]
    if script == "ok":  # small answers: far more fit than their worst cases together
        assert not refused and counts.by_state == {"settled": 120}
    else:  # those without usage stay charged as reserved
        assert refused and "--max-usd" in str(refused[0])
        assert all(isinstance(r, Ok | CallFailed | BudgetExhausted) for r in replies)


def test_a_budget_in_tokens_holds_over_clients(store: Store) -> None:
    with FakeEndpoint() as endpoint:
        budget = Budget(max_tokens=1500)
        small = {"model": "llama", "max_output_tokens": 100}
        for heat in (0.0, 0.5):
            replies = ask(store, endpoint, n=40, budget=budget, temperature=heat, **small)
    assert any(isinstance(r, BudgetExhausted) for r in replies)
    assert 0 < store.ledger.counts().tokens <= 1500


def test_requests_are_spaced(store: Store) -> None:
    with FakeEndpoint() as endpoint:
        ask(store, endpoint, n=4, requests_per_minute=600)
    times = [seen.at for seen in endpoint.requests]
    assert times[-1] - times[0] >= 0.2


def test_no_more_than_allowed_are_in_flight(store: Store) -> None:
    with FakeEndpoint(latency_s=0.05) as endpoint:
        ask(store, endpoint, n=12, max_concurrency=4)
    assert endpoint.most_in_flight == 4


def test_a_store_that_fails_ends_every_question(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a question waited for ever for a call whose settling could not be written."""
    exchange = store.ledger.exchange

    def failing(openings, closings, **options):  # type: ignore[no-untyped-def]
        if closings:
            raise WorkFailed("the disk is full")
        return exchange(openings, closings, **options)

    monkeypatch.setattr(store.ledger, "exchange", failing)
    with FakeEndpoint() as endpoint:
        replies = ask(store, endpoint, n=6, budget=Budget(max_usd=0.3))
    assert all(isinstance(reply, WorkFailed) for reply in replies)
    assert store.ledger.counts().usd <= 0.3  # what was sent stays charged
