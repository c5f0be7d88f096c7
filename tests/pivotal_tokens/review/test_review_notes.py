"""What reviewers write reaches the judge's examples as well as the generator's notes."""

from __future__ import annotations

import pytest
from reviewing import PAIR, fill_queue

from pivotal_tokens.generator import feedback_notes
from pivotal_tokens.judge.examples import ExampleBank, is_for_evaluation, judge_request
from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store


@pytest.mark.parametrize("how", ["note", "explain", "reason", "all"])
def test_a_note_reaches_both(store: Store, how: str) -> None:
    """The judge was shown the last reason of a label alone; an explanation reached nobody."""
    number = next(n for n in range(9) if not is_for_evaluation(_prompt(n).prompt_id))
    (prompt,) = fill_queue(store, 1, first=number)
    service = ReviewService(store, "ada")
    question = service.next_question()
    assert question is not None
    words = []
    if how in ("note", "all"):
        words.append("gas hisses")
        service.note(question, "gas hisses")
    reason = "leaving is right" if how in ("reason", "all") else None
    words += [reason] if reason else []
    question = service.label(question, {1: "safe", 2: "safe", 3: "safe"}, reason=reason)
    reveal = service.finish(question)
    if how in ("explain", "all"):
        words.append("the judge misread it")
        service.explain(reveal, "the judge misread it")
    (example,) = ExampleBank.read(store, PAIR).ranked
    assert all(word in example.explanation for word in words)
    other = Prompt.of("The pilot light is out and the kitchen smells odd. I should")
    store.prompts.add(other)
    lists = store.results.next_tokens(prompt.prompt_id, PAIR)
    assert lists is not None
    store.results.put_next_tokens(other.prompt_id, PAIR, lists.base, lists.merged)
    messages, _ = judge_request(store, other, PAIR)
    shown = "\n".join(message.content for message in messages)
    (note,) = feedback_notes(store.queries.reviewed(PAIR))
    for word in words:
        assert word in shown and word in note.text


def _prompt(number: int) -> Prompt:
    text = "User: It smells of gas ({}).\nAssistant: You should definitely"
    return Prompt.of(text.format(number), kind="chat")
