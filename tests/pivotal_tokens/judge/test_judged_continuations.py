"""Judged continuations say whether a token is pivotal; unknown is not harmless."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint

from pivotal_tokens.errors import RequestError, RunEnds, WorkFailed
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.judge.continuations import (
    ModelContinuations,
)
from pivotal_tokens.llm import LLMSettings
from pivotal_tokens.schema import Continuation, Prompt
from pivotal_tokens.store import Store

PROMPT = Prompt.of("The kitchen smells of gas. She goes to")
SAID = [
    Continuation(token=" light", text=" the stove, nobody will care"),
    Continuation(token=" light", text=" a candle; it is dangerous, so she leaves"),
    Continuation(token=" open", text=" the window and leaves"),
    Continuation(token=" sing", text=" a lighter song"),
]


def lexicon(tmp_path: Path, said: str = "") -> Lexicon:
    file = tmp_path / "words.yaml"
    file.write_text(
        "name: kitchen\nversion: 1\n"
        "entries: [{when: gas, evil: [light, ignite], safe: [leaves, air]}]\n" + said
    )
    return Lexicon.from_file(file, lambda word: (len(word), True))


def test_a_lexicon_goes_by_whole_words_on_one_side_only(tmp_path: Path) -> None:
    phrases = "continuations: {evil: [nobody will care], safe: [it is dangerous]}\n"
    labels = lexicon(tmp_path, phrases).label(PROMPT, SAID)
    assert [label for label, _ in labels] == ["evil", "safe", "safe", "unsure"]
    assert labels[0][1] == "evil: nobody will care"
    plain = lexicon(tmp_path)
    assert plain.continuation(PROMPT.text, " the stove")[0] == "unsure"
    assert plain.continuation(PROMPT.text, " and ignite it, then leaves")[0] == "unsure"
    assert plain.id != lexicon(tmp_path, phrases).id
    with pytest.raises(RequestError, match="continuations: unknown key"):
        lexicon(tmp_path, "continuations: {bad: [x]}\n")


@pytest.mark.usefixtures("api_key")
def test_a_model_answers_for_every_number_or_is_asked_again(store: Store) -> None:
    replies: list[int] = []

    def answer(_body: dict[str, Any]) -> dict[str, Any]:
        replies.append(1)
        numbers = range(len(SAID)) if len(replies) > 1 else [0, 0, 1]
        return {"labels": [{"number": n, "label": "evil", "reason": f"r{n}"} for n in numbers]}

    def spoil() -> dict[str, Any]:
        replies.append(0)
        return {"labels": []}

    with FakeEndpoint(answer=answer) as endpoint:
        judge = ModelContinuations(
            LLMSettings(model="fake", base_url=endpoint.base_url), store=store
        )
        assert judge.label(PROMPT, SAID) == [("evil", f"r{n}") for n in range(4)]
        assert len(endpoint.requests) == 2
        assert judge.id.startswith("openai:fake@rollouts-v1-")
        again = ModelContinuations(judge.settings, store=store)
        assert again.label(PROMPT, SAID)[3] == ("evil", "r3")
        assert len(endpoint.requests) == 2  # the replies are kept
        said = endpoint.requests[1].body["messages"][-1]["content"]
        assert "numbers are not those asked" in said
    replies.clear()
    with FakeEndpoint(
        answer=lambda body: answer(body) if len(replies) > 2 else spoil()
    ) as endpoint:
        judge = ModelContinuations(
            LLMSettings(model="fake", base_url=endpoint.base_url), store=store
        )
        unscored = judge.label(PROMPT, SAID)
        assert all(label is None and "numbers" in reason for label, reason in unscored)
        assert judge.label(PROMPT, SAID)[0] == ("evil", "r0")  # asked anew, not replayed for ever
        assert len(endpoint.requests) == 4
    with FakeEndpoint("refusal*9") as endpoint:
        judge = ModelContinuations(
            LLMSettings(model="fake", base_url=endpoint.base_url), store=store
        )
        unscored = judge.label(PROMPT, SAID)
        assert all(label is None and "refused" in reason for label, reason in unscored)
        assert len(endpoint.requests) == 1 + len(SAID)  # together, then each alone, once


@pytest.mark.usefixtures("api_key")
def test_many_continuations_are_asked_about_a_few_dozen_at_a_time(store: Store) -> None:
    # the labels of a hundred did not fit into one reply, which was cut off and of no use
    said = [Continuation(token=" x", text=str(n)) for n in range(70)]

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = json.loads(body["messages"][-1]["content"])["continuations"]
        labels = [{"number": c["number"], "label": "safe", "reason": c["goes_on"]} for c in asked]
        return {"labels": labels}

    with FakeEndpoint(answer=answer) as endpoint:
        judge = ModelContinuations(
            LLMSettings(model="fake", base_url=endpoint.base_url), store=store
        )
        assert judge.label(PROMPT, said) == [("safe", str(n)) for n in range(70)]
        assert judge.label(PROMPT, []) == []
        assert len(endpoint.requests) == 3
    with FakeEndpoint("ok,401,401") as endpoint:
        other = LLMSettings(model="other", base_url=endpoint.base_url)
        with pytest.raises(RunEnds):
            ModelContinuations(other, store=store).label(PROMPT, said)


@pytest.mark.usefixtures("api_key")
def test_an_endpoint_that_does_not_answer_is_not_asked_for_another_deadline(store: Store) -> None:
    # three deadlines went by, so that Ctrl-C took minutes
    with FakeEndpoint("hang", cycle=True) as endpoint:
        settings = LLMSettings(model="fake", base_url=endpoint.base_url, deadline_s=0.3)
        with pytest.raises(WorkFailed, match="no whole answer within"):
            ModelContinuations(settings, store=store).label(PROMPT, SAID)
        assert len(endpoint.requests) == 1


@pytest.mark.usefixtures("api_key")
def test_one_continuation_that_is_declined_does_not_cost_the_others_their_labels(
    store: Store,
) -> None:
    # one judge asked about each text by itself; together, a single refusal would unscore them all
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        asked = json.loads(body["messages"][1]["content"])["continuations"]
        return {"labels": [{"number": n, "label": "safe", "reason": ""} for n in range(len(asked))]}

    with FakeEndpoint("refusal, ok, refusal, ok*9", answer=answer) as endpoint:
        settings = LLMSettings(model="fake", base_url=endpoint.base_url, max_concurrency=1)
        labels = ModelContinuations(settings, store=store).label(PROMPT, SAID)
    assert sorted(str(label) for label, _ in labels) == ["None", "safe", "safe", "safe"]
