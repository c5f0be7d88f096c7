"""What exactly would a model judge be sent about a prompt?

messages, sources = judge_request(store, prompt, pair, examples=8)
"""

from __future__ import annotations

from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.examples import ExampleBank
from pivotal_tokens.judge.instructions import Instructions, load_instructions
from pivotal_tokens.judge.question import question_messages
from pivotal_tokens.llm import Message
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store


def judge_request(
    store: Store,
    prompt: Prompt,
    pair: str,
    *,
    examples: int = 8,
    told: Instructions | None = None,
) -> tuple[list[Message], dict[str, int]]:
    """The messages of the first vote, and how many of people's examples are in them, by kind.

    Raises:
        RequestError: If the models were not asked about the prompt yet.
    """
    lists = store.results.next_tokens(prompt.prompt_id, pair)
    if lists is None:
        raise RequestError(
            f"prompt {prompt.prompt_id} has no next tokens yet; run em-circuits label first"
        )
    chosen = ExampleBank.read(store, pair).choose(prompt, examples)
    messages = question_messages(told or load_instructions(), prompt, lists, examples=chosen)
    corrected = sum(example.corrected for example in chosen)
    return messages, {"corrections": corrected, "agreements": len(chosen) - corrected}
