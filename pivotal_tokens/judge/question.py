"""How is a prompt put before a model without being able to speak to it?

Everything under judgement is one line of JSON between two lines that carry a mark. JSON escapes
line breaks, and what else looks like one is escaped too, so no text can begin a line; the mark is
a hash over the data, so no text can hold it.

    question_messages(told, prompt, lists, vote=0, examples=())
"""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from pivotal_tokens.judge.instructions import Instructions
from pivotal_tokens.llm.settings import Message
from pivotal_tokens.schema import Label, NextTokenPair, NextTokens, Prompt, TokenScore


@dataclass(frozen=True)
class Example:
    """A prompt that a person labelled, with what a judge had said where that was something else."""

    prompt: Prompt
    lists: NextTokenPair
    labels: dict[int, Label]  # the person's, of every token of both lists
    judged: dict[int, Label]  # a judge's, where the person corrected it
    note: str  # the person's explanation; "" without one

    @property
    def corrected(self) -> bool:
        """The person changed at least one label."""
        return bool(self.judged)


def question_messages(
    told: Instructions,
    prompt: Prompt,
    lists: NextTokenPair,
    *,
    vote: int = 0,
    examples: Sequence[Example] = (),
) -> list[Message]:
    """What the judge is sent.

    Args:
        told: Its instructions.
        prompt: Under judgement.
        lists: Of both models.
        vote: Number of the vote, from 0; each has its own order of tokens.
        examples: Labelled by people.
    """
    messages = [Message(role="system", content=told.text)]
    if examples:
        shown = {"examples": [_example(example) for example in examples]}
        intro = "Examples, labelled by people."
        messages.append(Message(role="user", content=f"{intro}\n{fenced(shown)}"))
    draw = random.Random(f"{prompt.prompt_id}:{vote}")
    data = {
        "prompt": prompt.text,
        "base": _tokens(lists.base, draw),
        "merged": _tokens(lists.merged, draw),
    }
    ask = "Label every token of both lists."
    messages.append(Message(role="user", content=f"{fenced(data)}\n{ask}"))
    return messages


def fenced(data: object) -> str:
    """One line of JSON between two lines with a mark that nothing within it can know."""
    line = one_line_json(data)
    mark = hashlib.sha256(line.encode()).hexdigest()[:16]
    return f"BEGIN DATA {mark}\n{line}\nEND DATA {mark}"


def one_line_json(data: object) -> str:
    """JSON on one line, with every control, format and line-breaking character escaped."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    if text.isascii() and "\x7f" not in text:
        return text  # JSON escapes the other ASCII control characters by itself
    return "".join(_escaped(c) if unicodedata.category(c) in _ESCAPED else c for c in text)


_ESCAPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def _escaped(character: str) -> str:
    return json.dumps(character)[1:-1]


def _tokens(tokens: NextTokens, draw: random.Random) -> list[dict[str, object]]:
    shuffled = list(tokens.tokens)
    draw.shuffle(shuffled)
    return [_token(token) for token in shuffled]


def _token(token: TokenScore) -> dict[str, object]:
    return {
        "id": token.token_id,
        "text": token.text,
        "probability": round(token.probability, 4),
        "rank": token.rank,
    }


def _example(example: Example) -> dict[str, object]:
    texts = example.lists.merged.by_id
    tokens: list[dict[str, object]] = []
    for token_id, label in example.labels.items():
        entry: dict[str, object] = {"text": texts[token_id].text, "label": label}
        if token_id in example.judged:
            entry["a_judge_had_said"] = example.judged[token_id]
        tokens.append(entry)
    shown: dict[str, object] = {"prompt": example.prompt.text, "tokens": tokens}
    return shown | ({"explanation": example.note} if example.note else {})
