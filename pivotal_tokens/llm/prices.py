"""Prices of calls: the worst case before, the actual cost after.

Prices are USD per million tokens and stand, with their date, in ``prices.yaml``. They go by the
model's name, wherever it is served; ``--price-in`` and ``--price-out`` replace them.

    price = price_of(settings)                      # Price(usd_in=2.0, usd_out=8.0), or None
    price.nano_usd(Usage(1000, 200))                # 3_600_000 billionths of a dollar
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from pivotal_tokens.errors import RequestError
from pivotal_tokens.llm.replies import Usage
from pivotal_tokens.llm.settings import Budget, LLMSettings, Message
from pivotal_tokens.store.ledger import Limits

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")  # o3-2025-04-16, gpt-4-0613
_PER_MESSAGE = 16  # tokens that a chat template puts around a message, at most
_PER_REQUEST = 64


@dataclass(frozen=True)
class Price:
    """USD per million tokens."""

    usd_in: float
    usd_out: float

    def nano_usd(self, usage: Usage) -> int:
        """The price of tokens in billionths of a dollar, rounded up."""
        exact = usage.prompt_tokens * self.usd_in + usage.output_tokens * self.usd_out
        return math.ceil(round(exact * 1000, 6))


def price_of(settings: LLMSettings) -> Price | None:
    """The price of a model: as given, else the table's, else None.

    Raises:
        RequestError: If only one of the two prices is given.
    """
    given = settings.price_in, settings.price_out
    if (given[0] is None) != (given[1] is None):
        raise RequestError("give both --price-in and --price-out, or neither")
    if given[0] is not None and given[1] is not None:
        return Price(given[0], given[1])
    text = files("pivotal_tokens.llm").joinpath("prices.yaml").read_text(encoding="utf-8")
    table: dict[str, dict[str, float]] = yaml.safe_load(text)["usd_per_million_tokens"]
    found = table.get(settings.model) or table.get(_SNAPSHOT.sub("", settings.model))
    return Price(found["in"], found["out"]) if found else None


def limits_of(budget: Budget | None, settings: LLMSettings) -> Limits:
    """What a budget allows the ledger to come to.

    Raises:
        RequestError: If it is in dollars and the model's price is not known.
    """
    if budget is None:
        return Limits()
    if budget.max_usd is not None and price_of(settings) is None:
        raise RequestError(
            f"no price is known for {settings.model}: --max-usd needs --price-in and --price-out "
            "(USD per million tokens)"
        )
    nano = None if budget.max_usd is None else math.floor(budget.max_usd * 1e9)
    return Limits(nano_usd=nano, tokens=budget.max_tokens)


def worst_case(
    messages: Sequence[Message], schema: dict[str, Any] | None, settings: LLMSettings
) -> Usage:
    """No fewer tokens than a call can use.

    A tokenizer over bytes makes at most one token of a byte, so the bytes sent bound the prompt;
    the schema may be sent twice, once of it as an instruction.
    """
    sent = sum(len(message.content.encode()) + _PER_MESSAGE for message in messages)
    form = 2 * len(json.dumps(schema).encode()) + 400 if schema else 0
    return Usage(sent + form + _PER_REQUEST, settings.output_limit)
