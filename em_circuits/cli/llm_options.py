"""Options of every command that may ask a language model.

@llm_options
def command(session, **options):
    settings, budget = llm_settings("o3", options), llm_budget(options)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from em_circuits.cli.options import Command, Flag, OptionSet
from pivotal_tokens.llm.settings import Budget, LLMSettings

_ENDPOINT = OptionSet(
    LLMSettings,
    omit=("model", "max_attempts", "max_output_tokens", "max_body_bytes"),
    base_url=Flag(metavar="URL"),
    max_concurrency=Flag("--concurrency"),
    deadline_s=Flag("--deadline"),
    api_key_env=Flag(metavar="NAME"),
)
_BUDGET = OptionSet(Budget)


def llm_options(command: Command) -> Command:
    """Add the options to a command."""
    return _ENDPOINT(_BUDGET(command))


def llm_settings(model: str, options: Mapping[str, Any]) -> LLMSettings:
    """How a model is asked under the options given.

    Raises:
        RequestError: If they make no sense together.
    """
    return _ENDPOINT.read(options, model=model)


def llm_budget(options: Mapping[str, Any]) -> Budget:
    """What may be spent under the options given."""
    return _BUDGET.read(options)
