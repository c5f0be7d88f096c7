"""Language models: one client, an enforced budget, replies stored before they are read."""

from typing import TYPE_CHECKING

from pivotal_tokens.lazy import lazy

if TYPE_CHECKING:
    from pivotal_tokens.llm.client import EndpointRefused, LLMClient
    from pivotal_tokens.llm.grade import Grade, Grader, NoReply
    from pivotal_tokens.llm.instructions import Instructions, load_instructions
    from pivotal_tokens.llm.ledger_writer import BudgetExhausted
    from pivotal_tokens.llm.replies import (
        CallFailed,
        Filtered,
        Invalid,
        Ok,
        Refused,
        Reply,
        Truncated,
        Usage,
        why_unusable,
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
    "Grade",
    "Grader",
    "Instructions",
    "Invalid",
    "LLMClient",
    "LLMSettings",
    "Message",
    "NoReply",
    "Ok",
    "Refused",
    "Reply",
    "Truncated",
    "Usage",
    "load_instructions",
    "why_unusable",
]
