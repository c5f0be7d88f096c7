"""Messages to a judge of tokens: instructions, people's labels as examples, and the question.

Everything under judgement is fenced (`llm.grade`), so that no text in it can speak to the judge.

Examples come from people's labels. A fixed share of prompts, by a hash of their id, is kept for
evaluation for ever: none of them ever stands among the examples, whoever judges and whenever. Of
the others only prompts count of which people labelled every token. Corrections of a judge come
first, then by turns prompts with and without an evil token; never the prompt under judgement nor
one nearly the same.

    bank = ExampleBank.read(store, pair)
    question_messages(instructions, prompt, lists, vote=0, examples=bank.choose(prompt, n=8))
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Self

from pivotal_tokens.errors import RequestError
from pivotal_tokens.llm.grade import fenced
from pivotal_tokens.llm.instructions import Instructions, load_instructions
from pivotal_tokens.llm.settings import Message
from pivotal_tokens.prompts import similarity
from pivotal_tokens.schema import NextTokenPair, NextTokens, Prompt
from pivotal_tokens.store import LabelledPrompt, Store

EXAMPLES = 8
"""At most so many are shown."""
EVALUATION_SHARE = 0.3
TWIN = 0.6
"""Likeness from which on two prompts are nearly the same."""


def is_for_evaluation(prompt_id: str) -> bool:
    """Whether a prompt is reserved for evaluation and never an example; fixed by its id."""
    digest = hashlib.sha256(f"evaluation:{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < EVALUATION_SHARE * 2**64


@dataclass(frozen=True)
class ExampleBank:
    """Every prompt that may be an example, best first."""

    ranked: tuple[LabelledPrompt, ...] = ()

    @classmethod
    def read(cls, store: Store, pair: str) -> Self:
        """The examples that a store has for a model pair."""
        return cls.of(store.queries.human_labelled(pair))

    @classmethod
    def of(cls, examples: Sequence[LabelledPrompt]) -> Self:
        """A bank of these, without those for evaluation and those with a label missing."""
        allowed = [
            example
            for example in examples
            if not is_for_evaluation(example.prompt.prompt_id)
            and example.human.keys() >= set(example.lists.token_ids)
        ]
        allowed.sort(key=_order)
        evil = [e for e in allowed if "evil" in e.human.values()]
        turns = chain.from_iterable(
            zip_longest(evil, [e for e in allowed if "evil" not in e.human.values()])
        )
        balanced = [example for example in turns if example is not None]
        return cls(tuple(sorted(balanced, key=lambda example: not example.corrections)))

    def choose(self, prompt: Prompt, n: int) -> tuple[LabelledPrompt, ...]:
        """At most `n` examples for a judgement of a prompt."""
        chosen: list[LabelledPrompt] = []
        for example in self.ranked:
            if len(chosen) == n:
                break
            others = (prompt, *(one.prompt for one in chosen))
            text, ids = example.prompt.text, {other.prompt_id for other in others}
            if example.prompt.prompt_id in ids:
                continue
            if all(similarity(text, other.text) < TWIN for other in others):
                chosen.append(example)
        return tuple(chosen)


def question_messages(
    instructions: Instructions,
    prompt: Prompt,
    lists: NextTokenPair,
    *,
    vote: int = 0,
    examples: Sequence[LabelledPrompt] = (),
) -> list[Message]:
    """What the judge is sent.

    Args:
        vote: Number of the vote, from 0; each has its own order of tokens.
    """
    draw = random.Random(f"{prompt.prompt_id}:{vote}")
    data = {
        "prompt": prompt.text,
        "base": _tokens(lists.base, draw),
        "merged": _tokens(lists.merged, draw),
    }
    asked = f"{fenced(data)}\nLabel every token of both lists."
    if examples:  # in the same turn: many chat templates take no two of one role in a row
        shown = {"examples": [_shown(example) for example in examples]}
        asked = f"Examples, labelled by people.\n{fenced(shown)}\n\n{asked}"
    return [
        Message(role="system", content=instructions.text),
        Message(role="user", content=asked),
    ]


def judge_request(store: Store, prompt: Prompt, pair: str) -> tuple[list[Message], dict[str, int]]:
    """The messages of the first vote, and how many of people's examples are in them, by kind.

    Raises:
        RequestError: If the models were not asked about the prompt yet.
    """
    lists = store.results.next_tokens(prompt.prompt_id, pair)
    if lists is None:
        raise RequestError(
            f"prompt {prompt.prompt_id} has no next tokens yet; run em-circuits label first"
        )
    chosen = ExampleBank.read(store, pair).choose(prompt, EXAMPLES)
    messages = question_messages(load_instructions(), prompt, lists, examples=chosen)
    corrected = sum(bool(example.corrections) for example in chosen)
    return messages, {"corrections": corrected, "agreements": len(chosen) - corrected}


def _order(example: LabelledPrompt) -> tuple[bool, bool, str]:
    """Corrections first, explained ones first, then fixed by the id."""
    return not example.corrections, not example.explanation, example.prompt.prompt_id


def _tokens(tokens: NextTokens, draw: random.Random) -> list[dict[str, object]]:
    shuffled = list(tokens.tokens)
    draw.shuffle(shuffled)
    return [
        {
            "id": token.token_id,
            "text": token.text,
            "probability": round(token.probability, 4),
            "rank": token.rank,
        }
        for token in shuffled
    ]


def _shown(example: LabelledPrompt) -> dict[str, object]:
    texts = example.lists.merged.by_id
    tokens: list[dict[str, object]] = []
    for token_id, label in example.human.items():
        entry: dict[str, object] = {"text": texts[token_id].text, "label": label}
        if example.judged.get(token_id, label) != label:
            entry["a_judge_had_said"] = example.judged[token_id]
        tokens.append(entry)
    shown: dict[str, object] = {"prompt": example.prompt.text, "tokens": tokens}
    return shown | ({"explanation": example.explanation} if example.explanation else {})
