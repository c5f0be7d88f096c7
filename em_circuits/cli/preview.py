"""How is shown what a generator or a judge would be sent?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from em_circuits.cli.output import emit
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from pivotal_tokens.llm import Message
    from pivotal_tokens.schema import PromptKind
    from pivotal_tokens.store import Store

_ESTIMATED = "estimated: a quarter of the bytes"


def show_generator(
    store: Store, generator: str, n: int, kind: PromptKind, *, as_json: bool
) -> None:
    """The messages for a generator, with the account of history and feedback.

    Raises:
        RequestError: If the generator is no language model.
    """
    from pivotal_tokens.generator import generator_request
    from pivotal_tokens.llm import LLMSettings

    name, _, model = generator.partition(":")
    if name != "openai" or not model:
        raise RequestError(f"{generator!r} is sent nothing; give openai:MODEL")
    room = LLMSettings(model=model).output_limit
    request = generator_request(store, kind=kind, n=n, model=model, output_tokens=room)
    if as_json:
        emit(request.to_json())
        return
    how = "by its tokenizer" if request.exact else _ESTIMATED
    _show(
        request.messages,
        f"{request.tokens} tokens ({how}) of {request.window}; "
        f"{request.budget} for history and feedback",
        {
            source: f"{number} shown, {request.left_out[source]} left out"
            for source, number in request.sources.items()
        },
    )


def show_judge(store: Store, prefix: str, *, as_json: bool) -> None:
    """The first vote's messages about a prompt.

    Raises:
        RequestError: If there is no such prompt, or the models were not asked about it.
    """
    from pivotal_tokens.generator.tokens import counter
    from pivotal_tokens.judge.examples import judge_request

    prompt = store.prompts.get(prefix)
    pairs = [
        view.pair for view in store.queries.attempt(prompt.prompt_id).pairs if view.next_tokens
    ]
    if not pairs:
        raise RequestError(
            f"prompt {prompt.prompt_id} has no next tokens yet; run em-circuits label first"
        )
    messages, sources = judge_request(store, prompt, pairs[-1])
    tokens = sum(counter()(message.content) for message in messages)
    if as_json:
        shown = [message.model_dump() for message in messages]
        emit({"messages": shown, "sources": sources, "tokens": tokens, "exact": False})
        return
    _show(
        messages,
        f"{tokens} tokens ({_ESTIMATED}); the first vote, other votes shuffle the tokens anew",
        {source: f"{number} shown" for source, number in sources.items()},
    )


def _show(messages: Sequence[Message], account: str, sources: Mapping[str, str]) -> None:
    for message in messages:
        click.echo(f"--- {message.role} ---\n{message.content}\n")
    click.echo(account, err=True)
    for source, said in sources.items():
        click.echo(f"{source:<12} {said}", err=True)
