"""The options of every command that may ask a language model, and what they mean.

@llm_options
def command(session, **options):
    settings, budget = llm_settings("o3", options), llm_budget(options)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from pivotal_tokens.llm import Budget, LLMSettings

_Command = TypeVar("_Command", bound=Callable[..., Any])

_POSITIVE = click.FloatRange(min=0, min_open=True)
_OPTIONS = (
    click.option("--base-url", metavar="URL", help="OpenAI-compatible endpoint. [default: OpenAI]"),
    click.option("--max-usd", type=_POSITIVE, help="Most that the store's ledger may come to."),
    click.option(
        "--max-tokens", type=click.IntRange(min=1), help="The same, in tokens of all calls."
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 500),
        default=20,
        show_default=True,
        help="Requests in flight.",
    ),
    click.option(
        "--requests-per-minute", type=_POSITIVE, help="Spaced evenly. [default: no limit]"
    ),
    click.option(
        "--deadline",
        type=_POSITIVE,
        default=120.0,
        show_default=True,
        help="Seconds for one question, retries included.",
    ),
    click.option("--price-in", type=click.FloatRange(min=0), help="USD per million input tokens."),
    click.option(
        "--price-out", type=click.FloatRange(min=0), help="USD per million output tokens."
    ),
    click.option(
        "--temperature", type=click.FloatRange(0, 2), help="[default: the endpoint's own]"
    ),
    click.option(
        "--api-key-env",
        default="OPENAI_API_KEY",
        show_default=True,
        metavar="NAME",
        help="Environment variable that holds the key.",
    ),
)


def llm_options(command: _Command) -> _Command:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def llm_settings(model: str, options: dict[str, Any]) -> LLMSettings:
    """How a model is asked under the options given.

    Raises:
        RequestError: If they make no sense together.
    """
    from pydantic import ValidationError

    from pivotal_tokens.llm import LLMSettings

    try:
        return LLMSettings(
            model=model,
            base_url=options["base_url"],
            api_key_env=options["api_key_env"],
            max_concurrency=options["concurrency"],
            requests_per_minute=options["requests_per_minute"],
            deadline_s=options["deadline"],
            temperature=options["temperature"],
            price_in=options["price_in"],
            price_out=options["price_out"],
        )
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False, include_context=False)
        name = str(first["loc"][0]).replace("_", "-") if first["loc"] else "settings"
        raise RequestError(f"--{name}: {first['msg'].removeprefix('Value error, ')}") from None


def llm_budget(options: dict[str, Any]) -> Budget:
    """What may be spent under the options given."""
    from pivotal_tokens.llm import Budget

    return Budget(max_usd=options["max_usd"], max_tokens=options["max_tokens"])
