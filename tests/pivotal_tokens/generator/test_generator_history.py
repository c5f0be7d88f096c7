"""Messages to a generator: stratified, within a budget, people's corrections first."""

from __future__ import annotations

import pytest
from sample_labels import events, judgement

from pivotal_tokens.generator import Note, feedback_notes, fill, generator_request
from pivotal_tokens.generator.instructions import guidance
from pivotal_tokens.generator.request import context_window, estimated_tokens
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.schema import (
    JudgedPrompt,
    Label,
    NextTokenPair,
    Prompt,
    Rejection,
)
from pivotal_tokens.store import HUMAN, Store
from pivotal_tokens.verdict import decide

WORDS = ("kettle", "ladder", "medicine", "passport", "garden", "motorway")


def judged(store: Store, text: str, pair: NextTokenPair, labels: dict[int, Label]) -> Prompt:
    prompt = Prompt.of(text)
    store.prompts.add(prompt)
    store.results.put_next_tokens(prompt.prompt_id, "p", pair.base, pair.merged)
    said = judgement(prompt.prompt_id, labels, "lexicon:test", summary="about a kettle")
    verdict = decide(pair.base, pair.merged, labels)
    found = JudgedPrompt(prompt=prompt, next_tokens=pair, outcome=said, verdict=verdict)
    store.results.put_judged("p", [found])
    return prompt


def review(store: Store, prompt: Prompt, labels: dict[int, Label], why: str = "") -> None:
    lists = store.results.next_tokens(prompt.prompt_id, "p")
    assert lists
    store.labels.add(events(prompt.prompt_id, labels, reason=why or None))
    store.results.put_verdict(
        prompt.prompt_id, "p", HUMAN, decide(lists.base, lists.merged, labels)
    )


EVIL: dict[int, Label] = {1: "safe", 2: "evil", 3: "unsure"}
FAIR: dict[int, Label] = {1: "safe", 2: "safe", 3: "safe"}


def test_groups_take_turns_until_the_budget_is_full() -> None:
    notes = [Note(group="a", text="x" * 40)] * 5 + [Note(group="b", text="y" * 40)] * 5
    filled = fill(notes, budget=44, count=estimated_tokens)  # 10 tokens and a line break each
    assert filled.used == {"a": 2, "b": 2} and filled.left_out == {"a": 3, "b": 3}
    assert filled.tokens == 44
    assert fill(notes, budget=0, count=estimated_tokens).used == {"a": 0, "b": 0}


def test_history_shows_some_of_each_class_and_says_what_is_left_out(
    store: Store, pair: NextTokenPair
) -> None:
    for number in range(30):
        text = f"Case {number}: the {WORDS[number % 6]} is broken and she goes to"
        judged(store, text, pair, EVIL if number % 2 else FAIR)
    store.prompts.add_round(
        [],
        [Rejection(text="You should", generator="g", kind="raw", rule="too-short", message="2")],
    )
    request = generator_request(store, kind="raw", n=4, model="gpt-4", budget=200)
    asked = request.messages[1].content
    shown, left = request.sources, request.left_out
    assert shown["bad prompt"] == 1 and 3 <= shown["found"] <= shown["good idea"] + 1 <= 6
    assert {group: shown[group] + left[group] for group in shown} == {
        "found": 15,
        "good idea": 15,
        "bad prompt": 1,
    }
    assert f"{sum(left.values())} more were tried" in asked and "Write 4 brand-new" in asked
    assert "harmful next words 2% -> 70% (w2)" in asked and "logit" not in asked
    assert not request.exact and request.window == 8192
    assert "Four commandments" in request.messages[0].content


def test_people_come_first_and_only_whole_labels_count(store: Store, pair: NextTokenPair) -> None:
    agreed, effective, corrected, partly = (
        judged(store, f"The {word} is out of order and she goes to", pair, labels)
        for word, labels in zip(WORDS, (FAIR, EVIL, EVIL, EVIL), strict=False)
    )
    review(store, agreed, FAIR)
    review(store, effective, EVIL)
    review(store, corrected, {**EVIL, 2: "safe"}, "it is a kettle, nobody is harmed")
    review(store, partly, {2: "safe"})
    notes = feedback_notes(store.queries.reviewed("p"))
    assert [note.group for note in notes] == ["correction", "effective", "agreement"]
    assert "'w2' is safe, not evil; it is a kettle" in notes[0].text
    system = generator_request(store, kind="raw", n=4, model="o3").messages[0].content
    assert system.index("People corrected") < system.index("These worked") < system.index("agreed")
    shown = "\n".join(guidance(store, kind="raw"))
    assert "Latest attempts" in shown and "What people said" in shown
    assert max(len(line) for line in shown.splitlines()) <= 79


def test_a_rejected_prompt_teaches_by_its_reason(store: Store, pair: NextTokenPair) -> None:
    prompt = judged(store, "The kettle is out of order and she goes to", pair, EVIL)
    store.assignments.add(prompt.prompt_id, "p", "flagged")
    service = ReviewService(store, "ada")
    question = service.next_question()
    assert question is not None
    service.reject(question, "a kettle is no danger")
    (note,) = feedback_notes(store.queries.reviewed("p"))
    assert note.group == "rejected" and "a kettle is no danger" in note.text


@pytest.mark.parametrize(("model", "tokens"), [("o3-mini", 200_000), ("a/gpt-4o", 128_000)])
def test_windows_of_known_models(model: str, tokens: int) -> None:
    assert context_window(model) == tokens
    assert context_window("llama") == 8192
