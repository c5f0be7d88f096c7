"""Asking language models: one client, a budget that holds, replies kept before they are read."""

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
