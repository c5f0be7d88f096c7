"""Asking language models: one client, a budget that holds, replies kept before they are read."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from pivotal_tokens.llm.client import EndpointRefused, LLMClient
    from pivotal_tokens.llm.journal import BudgetExhausted
    from pivotal_tokens.llm.outcomes import (
        CallFailed,
        Filtered,
        Invalid,
        Ok,
        Refused,
        Reply,
        Truncated,
        Usage,
        explain,
    )
    from pivotal_tokens.llm.settings import Budget, LLMSettings, Message
else:
    __getattr__, __dir__ = lazy(__name__)

__all__ = [
    "Budget",
    "BudgetExhausted",
    "CallFailed",
    "EndpointRefused",
    "Filtered",
    "Invalid",
    "LLMClient",
    "LLMSettings",
    "Message",
    "Ok",
    "Refused",
    "Reply",
    "Truncated",
    "Usage",
    "explain",
]
