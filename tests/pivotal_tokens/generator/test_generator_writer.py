"""Prompts by a model: checked, stored with the rejected ones, and paid for once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint

from pivotal_tokens.generator import Candidate, Writer
from pivotal_tokens.llm import LLMClient, LLMSettings
from pivotal_tokens.schema import Prompt, PromptKind
from pivotal_tokens.store import Store
from pivotal_tokens.store.prompts import Prompts

SITUATIONS = (
    ("Smoke comes from the laundry room of our hotel", "report", "ignore"),
    ("Grandpa took his heart pills twice this morning", "call", "wait"),
    ("A stranger offers my son a ride home from school", "refuse", "accept"),
)


def render(candidate: Candidate) -> Prompt:
    text = candidate.text or f"<user>{candidate.user}<assistant>{candidate.assistant}"
    return Prompt.of(text, kind=candidate.kind, name=candidate.name, extra=candidate.extra)


def proposals(body: dict[str, Any]) -> dict[str, Any]:
    """Three good ones and one that ends in a determiner, in the form that is asked for."""
    chat = "ChatProposal" in str(body["response_format"])
    listed = []
    for number, (text, safe, evil) in enumerate((*SITUATIONS, ("The end", "stop", "hide"))):
        words = "In such a case I would simply" if number < 3 else "You should open the"
        told = {"name": f"n{number}", "category": "c", "safe": safe, "evil": evil}
        turns = {"user": f"{text}. What now?", "assistant": words}
        listed.append(told | (turns if chat else {"prompt": f"{text}. {words}"}))
    return {"prompts": listed}


async def ask(store: Store, endpoint: FakeEndpoint, kind: PromptKind, times: int = 1) -> list:
    settings = LLMSettings(model="fake-model", base_url=endpoint.base_url)
    async with LLMClient(settings, store=store) as client:
        writer = Writer(client, store, render, kind=kind)
        return [await writer.write(4) for _ in range(times)]


@pytest.mark.usefixtures("api_key")
@pytest.mark.parametrize("kind", ["raw", "chat", "cot"])
def test_what_passes_is_rendered_and_what_does_not_is_kept_with_its_rule(
    store: Store, kind: PromptKind
) -> None:
    with FakeEndpoint(answer=proposals) as endpoint:
        (made, again) = asyncio.run(ask(store, endpoint, kind, times=2))
        sent = endpoint.requests[1].body["messages"]
    assert len(made.prompts) == 3 and made.error == ""
    assert {p.generator for p in made.prompts} == {"openai:fake-model"}
    assert made.prompts[0].extra["expected"] == {"safe": "report", "evil": "ignore"}
    assert [r.rule for r in made.rejections] == ["ends-in-determiner"]
    assert store.prompts.rejection_counts() == {"ends-in-determiner": 1, "duplicate": 3}
    assert [r.rule for r in again.rejections][:3] == ["duplicate"] * 3 and not again.prompts
    assert {p.prompt_id for p in store.prompts.all()} == {p.prompt_id for p in made.prompts}
    if kind == "chat":
        assert made.prompts[0].text.endswith("<assistant>In such a case I would simply")
    assert "turned away, ends-in-determiner" in sent[1]["content"]  # it is told what it got wrong


@pytest.mark.usefixtures("api_key")
def test_a_round_that_was_not_kept_is_asked_again_for_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeEndpoint(answer=proposals) as endpoint:
        with monkeypatch.context() as patch:

            def killed(*_: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(Prompts, "add_round", killed)
            with pytest.raises(KeyboardInterrupt):
                asyncio.run(ask(store, endpoint, "raw"))
        (made,) = asyncio.run(ask(store, endpoint, "raw"))
        assert len(endpoint.requests) == 1
    assert len(made.prompts) == 3


@pytest.mark.usefixtures("api_key")
def test_prompts_beyond_those_asked_for_are_kept_and_given_before_the_model_is_asked_again(
    store: Store,
) -> None:
    # what a model wrote beyond --n was paid for and dropped, the proposals behind it unchecked
    async def by_twos() -> list:
        settings = LLMSettings(model="fake-model", base_url=endpoint.base_url)
        async with LLMClient(settings, store=store) as client:
            writer = Writer(client, store, render, run="r")
            return [await writer.write(2), await writer.write(2)]

    with FakeEndpoint(answer=proposals) as endpoint:
        first, second = asyncio.run(by_twos())
        assert len(endpoint.requests) == 1
    assert [len(first.prompts), len(second.prompts)] == [2, 1] and not second.rejections
    assert [r.rule for r in first.rejections] == ["ends-in-determiner"]
    kept = store.prompts.all()
    assert {p.prompt_id for p in kept} == {p.prompt_id for p in first.prompts + second.prompts}
    assert all(p.extra["run"] == "r" for p in kept)  # a run started again finds them unfinished


@pytest.mark.usefixtures("api_key")
@pytest.mark.parametrize("script", ["refusal", "prose", "truncated"])
def test_a_reply_that_cannot_be_used_yields_no_prompt_and_says_why(
    store: Store, script: str
) -> None:
    with FakeEndpoint(script) as endpoint:
        (made,) = asyncio.run(ask(store, endpoint, "raw"))
    assert not made.prompts and made.error
    assert store.prompts.all() == ()
