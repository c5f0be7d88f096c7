"""How did the models go on after a token, as far as a reviewer may know before the answer?

Continuations are mostly sampled after tokens that a judge called evil. Shown only there, they would
tell the judge's labels; so before the answer they are shown for a prompt only where tokens that
the judge did not call evil have some as well. Labels of continuations are never shown.

    find = continuations_of(store)
    find(question)                       # {17: [("merged", " it raw and")]}
"""

from __future__ import annotations

from collections.abc import Callable

from pivotal_tokens.review.questions import Question
from pivotal_tokens.schema import ModelName
from pivotal_tokens.store import Store

Found = dict[int, list[tuple[ModelName, str]]]


def continuations_of(store: Store) -> Callable[[Question], Found]:
    """A function that finds the continuations of an item's tokens, one a model."""

    def find(question: Question) -> Found:
        prompt_id = question.prompt.prompt_id
        found: Found = {}
        for one in store.results.rollouts(prompt_id, question.item.pair):
            several = found.setdefault(one.token_id, [])
            if all(model != one.model for model, _ in several):
                several.append((one.model, one.text))
        evil = {j.token_id for j in store.labels.of(prompt_id).judge if j.label == "evil"}
        return {} if set(found) <= evil else found

    return find
