"""The request to a generator, with the sources of its parts.

request = generator_request(store, kind="chat", n=8, model="o3", pair=None)
request.messages, request.sources, request.left_out, request.tokens
"""

from __future__ import annotations

from pivotal_tokens.generator.instructions import INSTRUCTIONS_VERSION, instructions
from pivotal_tokens.generator.notes import (
    MOST_FEEDBACK,
    feedback_notes,
    feedback_text,
    fill,
    history_notes,
)
from pivotal_tokens.llm import Message
from pivotal_tokens.schema import Frozen, PromptKind
from pivotal_tokens.store import Store

HISTORY_SHARE = 0.5
"""Of what the context window leaves, at most so much is filled with history and feedback."""
MOST_HISTORY_TOKENS = 8_000
"""And no more than this: longer histories cost more than they teach."""
_BYTES_A_TOKEN = 4
_DEFAULT_WINDOW = 8192
# Tokens that a model reads and writes together, as its vendor states; the first prefix that fits.
_WINDOWS = (
    ("gpt-3.5-turbo", 16_385),
    ("gpt-4o", 128_000),
    ("gpt-4.1", 1_047_576),
    ("gpt-4-turbo", 128_000),
    ("gpt-4", 8_192),
    ("gpt-5", 400_000),
    ("o1-mini", 128_000),
    ("o1", 200_000),
    ("o3", 200_000),
    ("o4", 200_000),
)


class GeneratorRequest(Frozen, use_attribute_docstrings=True):
    """The messages for a generator, with the account of their tokens."""

    messages: tuple[Message, ...]
    sources: dict[str, int]
    """Notes shown, by source."""
    left_out: dict[str, int]
    """Notes that found no room, by source."""
    tokens: int
    budget: int
    """Tokens that history and feedback may take together."""
    window: int
    """Tokens that the model can take."""
    exact: bool = False
    """The counts are an estimate by bytes."""
    version: int = INSTRUCTIONS_VERSION
    """Of the instructions."""


def generator_request(
    store: Store,
    *,
    kind: PromptKind,
    n: int,
    model: str,
    pair: str | None = None,
    output_tokens: int = 2_000,
    budget: int | None = None,
) -> GeneratorRequest:
    """Compose what a generator is sent.

    Args:
        pair: Learn from the verdicts on this pair of models; None: on any.
        output_tokens: Reserved for the answer.
        budget: Tokens for history and feedback; None: from the window.
    """
    count = estimated_tokens
    window = context_window(model)
    fixed = count(instructions(kind, n=n)) + 200
    if budget is None:
        room = max(0, window - output_tokens - fixed)
        budget = min(MOST_HISTORY_TOKENS, int(HISTORY_SHARE * room))
    taught = fill(
        feedback_notes(store.queries.reviewed(pair)),
        budget=budget // 2,
        count=count,
        most=MOST_FEEDBACK,
    )
    past = fill(
        history_notes(store.queries.outcomes(pair, kind=kind), store.prompts.rejections(limit=200)),
        budget=budget - taught.tokens,
        count=count,
    )
    history = [f"- [{note.group}] {note.text}" for note in past.notes]
    missing = sum(past.left_out.values())
    if missing:
        history.append(f"({missing} more were tried and are left out here)")
    asked = [
        "Tried so far, the newest first in each class:" if history else "Nothing was tried yet.",
        *history,
        "",
        f"Write {n} brand-new {_NAMES[kind]} prompts now.",
    ]
    messages = (
        Message(role="system", content=instructions(kind, n=n, feedback=feedback_text(taught))),
        Message(role="user", content="\n".join(asked)),
    )
    return GeneratorRequest(
        messages=messages,
        sources=taught.used | past.used,
        left_out=taught.left_out | past.left_out,
        tokens=sum(count(message.content) for message in messages),
        budget=budget,
        window=window,
    )


def estimated_tokens(text: str) -> int:
    """A quarter of a text's bytes, rounded up."""
    return -(-len(text.encode()) // _BYTES_A_TOKEN)


def context_window(model: str) -> int:
    """Tokens a model can take; a cautious 8,192 for one that is not known."""
    name = model.rsplit("/", 1)[-1].lower()
    return next((size for prefix, size in _WINDOWS if name.startswith(prefix)), _DEFAULT_WINDOW)


_NAMES = {"raw": "raw completion", "chat": "chat", "cot": "chain-of-thought"}
