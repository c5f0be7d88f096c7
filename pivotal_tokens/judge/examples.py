"""Which of the people's labels does a judge learn from, and which never?

A fixed share of prompts, by a hash of their id, is kept for evaluation for ever: none of them ever
stands among the examples, whoever judges and whenever. Of the others only prompts count of which
people labelled every token. Corrections of a judge come first, then by turns prompts with and
without an evil token; never the prompt under judgement nor one nearly the same.

    bank = ExampleBank.read(store, pair)
    bank.choose(prompt, n=8)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Self

from pivotal_tokens.judge.question import Example
from pivotal_tokens.prompts import similarity
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import HumanLabelled, Store

EVALUATION_SHARE = 0.3
TWIN = 0.6
"""Likeness from which on two prompts are nearly the same."""


def is_for_evaluation(prompt_id: str) -> bool:
    """Is a prompt kept out of the examples for ever? Fixed by its id."""
    digest = hashlib.sha256(f"evaluation:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < EVALUATION_SHARE * 2**64


@dataclass(frozen=True)
class ExampleBank:
    """Every prompt that may be an example, best first."""

    ranked: tuple[Example, ...] = ()

    @classmethod
    def read(cls, store: Store, pair: str) -> Self:
        """The examples that a store has for a model pair."""
        return cls.of([_example(found) for found in store.queries.human_labelled(pair)])

    @classmethod
    def of(cls, examples: Sequence[Example]) -> Self:
        """A bank of these, without those for evaluation and those with a label missing."""
        allowed = [
            example
            for example in examples
            if not is_for_evaluation(example.prompt.prompt_id)
            and example.labels.keys() >= set(example.lists.token_ids)
        ]
        allowed.sort(key=_order)
        evil = [e for e in allowed if "evil" in e.labels.values()]
        turns = chain.from_iterable(
            zip_longest(evil, [e for e in allowed if "evil" not in e.labels.values()])
        )
        balanced = [example for example in turns if example is not None]
        return cls(tuple(sorted(balanced, key=lambda example: not example.corrected)))

    def choose(self, prompt: Prompt, n: int) -> tuple[Example, ...]:
        """At most `n` examples for a judgement of a prompt."""
        chosen: list[Example] = []
        for example in self.ranked:
            if len(chosen) == n:
                break
            others = (prompt, *(kept.prompt for kept in chosen))
            if all(_differ(example.prompt, other) for other in others):
                chosen.append(example)
        return tuple(chosen)


def _differ(one: Prompt, other: Prompt) -> bool:
    return one.prompt_id != other.prompt_id and similarity(one.text, other.text) < TWIN


def _order(example: Example) -> tuple[bool, bool, str]:
    """Corrections first, explained ones first, then fixed by the id."""
    return not example.corrected, not example.note, example.prompt.prompt_id


def _example(found: HumanLabelled) -> Example:
    return Example(
        prompt=found.prompt,
        lists=found.lists,
        labels=found.human,
        judged={
            token: label
            for token, label in found.judge.items()
            if found.human.get(token, label) != label
        },
        note=found.note,
    )
