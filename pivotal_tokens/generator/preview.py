"""What exactly is a generator sent, and what of that came from where?

request = generator_request(store, kind="chat", n=8, model="o3", pair=None)
request.messages, request.sources, request.left_out, request.tokens
"""

from __future__ import annotations

from pivotal_tokens.generator.feedback import MOST, feedback_notes, feedback_text
from pivotal_tokens.generator.fill import fill
from pivotal_tokens.generator.history import history_notes
from pivotal_tokens.generator.instructions import INSTRUCTIONS_VERSION, instructions
from pivotal_tokens.generator.tokens import Counter, context_window, counter
from pivotal_tokens.llm import Message
from pivotal_tokens.schema import Frozen, PromptKind
from pivotal_tokens.store import Store

HISTORY_SHARE = 0.5
"""Of what the context window leaves, at most so much is filled with history and feedback."""
MOST_HISTORY_TOKENS = 8_000
"""And no more than this: longer histories cost more than they teach."""


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
    exact: bool
    """The counts are by the model's own tokenizer; else an estimate by bytes."""
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
    count: Counter | None = None,
) -> GeneratorRequest:
    """Compose what a generator is sent.

    Args:
        store: History and feedback come from here.
        kind: What is to be written.
        n: How many prompts.
        model: Whose context window is filled.
        pair: Learn from the verdicts on this pair of models; None: on any.
        output_tokens: Kept free for the answer.
        budget: Tokens for history and feedback; None: from the window.
        count: Counts tokens; by bytes where not given.
    """
    count = count or counter()
    window = context_window(model)
    fixed = count(instructions(kind, n=n)) + 200
    if budget is None:
        room = max(0, window - output_tokens - fixed)
        budget = min(MOST_HISTORY_TOKENS, int(HISTORY_SHARE * room))
    taught = fill(
        feedback_notes(store.queries.reviewed(pair)), budget=budget // 2, count=count, most=MOST
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
        exact=count.exact,
    )


_NAMES = {"raw": "raw completion", "chat": "chat", "cot": "chain-of-thought"}
