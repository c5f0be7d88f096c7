"""Many prompts at once: one transaction, whole or not at all, and the queue is part of it."""

from __future__ import annotations

import pytest

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import (
    JudgedPrompt,
    Judgement,
    NextTokenPair,
    Prompt,
    Thresholds,
    TokenLabel,
)
from pivotal_tokens.store import Screened, Store
from pivotal_tokens.verdict import decide


def prompts(n: int) -> list[Prompt]:
    return [Prompt.of(f"Prompt number {i} ends with", token_ids=(1, i + 2)) for i in range(n)]


def judged(prompt: Prompt, pair: NextTokenPair) -> JudgedPrompt:
    judgement = Judgement(
        prompt_id=prompt.prompt_id,
        judge="lexicon:test",
        labels=tuple(
            TokenLabel(token_id=t, label="evil" if t == 2 else "safe") for t in pair.token_ids
        ),
    )
    verdict = decide(pair.base, pair.merged, judgement.by_token, Thresholds())
    return JudgedPrompt(prompt=prompt, next_tokens=pair, outcome=judgement, verdict=verdict)


def test_a_batch_is_read_back_as_it_was_written(store: Store, pair: NextTokenPair) -> None:
    many = prompts(7)
    store.prompts.add(many[0].model_copy(update={"token_ids": None, "name": "known"}))
    store.results.put_screened("p", [Screened(prompt=p, next_tokens=pair) for p in many])
    ids = [p.prompt_id for p in many]
    assert store.results.next_tokens_of([*ids, "ffffffffffff"], "p") == dict.fromkeys(ids, pair)
    assert store.results.next_tokens_of(ids, "another pair") == {}
    stored = store.prompts.several(ids)
    assert stored[ids[0]].name == "known" and stored[ids[0]].token_ids == (1, 2)
    assert {i: stored[i].token_ids for i in ids} == {p.prompt_id: p.token_ids for p in many}


def test_other_token_ids_refuse_the_whole_batch(store: Store, pair: NextTokenPair) -> None:
    first, second = prompts(2)
    store.results.put_screened("p", [Screened(prompt=second, next_tokens=pair)])
    other = second.model_copy(update={"token_ids": (9, 9)})
    with pytest.raises(RequestError, match="tokenised to other ids"):
        store.results.put_screened(
            "p", [Screened(prompt=p, next_tokens=pair) for p in (first, other)]
        )
    assert not store.prompts.has(first.prompt_id)


def test_a_verdict_and_its_place_in_the_queue_come_together(
    store: Store, pair: NextTokenPair
) -> None:
    (prompt,) = prompts(1)
    store.results.put_screened("p", [Screened(prompt=prompt, next_tokens=pair)])
    store.results.fail(prompt.prompt_id, "p", "judge", "was away")
    item = judged(prompt, pair)
    for _ in range(2):  # the second time nothing is added
        store.results.put_judged("p", [item])
    assert store.results.verdict(prompt.prompt_id, "p", "lexicon:test") == item.verdict
    assert [i.reason for i in store.queue.items()] == ["flagged:injection"]
    assert len(store.labels.events(prompt.prompt_id)) == len(pair.token_ids)
    assert store.results.failures() == ()
