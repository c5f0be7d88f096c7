"""What can come of asking a model?

match await client.ask(messages, schema=Answer, purpose="judge"):
    case Ok(value=answer): ...
    case CallFailed(error=error): ...
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Usage:
    """Tokens as the endpoint counted them; reasoning is within the output."""

    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class _Answered:
    raw: str  # the text of the reply; its whole body is in the store under `call_id`
    usage: Usage | None  # None where the endpoint did not say
    cached: bool  # no request was made
    call_id: str


@dataclass(frozen=True)
class Ok(_Answered):
    """An answer in the form that was asked for."""

    value: Any  # an instance of the schema, or the text where none was given


@dataclass(frozen=True)
class Refused(_Answered):
    """The model declined to answer."""

    reason: str


@dataclass(frozen=True)
class Truncated(_Answered):
    """The answer ended at the limit of output tokens."""


@dataclass(frozen=True)
class Filtered(_Answered):
    """The endpoint's content filter took the answer, or the question, away."""


@dataclass(frozen=True)
class Invalid(_Answered):
    """An answer that is not in the form asked for."""

    error: str


@dataclass(frozen=True)
class CallFailed:
    """No answer came within the deadline and the attempts allowed."""

    error: str
    call_id: str | None  # of the last attempt; None where none was made


Reply = Ok | Refused | Truncated | Filtered | Invalid | CallFailed


def explain(reply: Reply) -> str:
    """Why a reply cannot be used, in one line; "" for one that can."""
    match reply:
        case Ok():
            return ""
        case Refused(reason=reason):
            return f"the model refused: {reason}"
        case Truncated():
            return "the answer was cut off at the limit of output tokens"
        case Filtered():
            return "the endpoint's content filter took the answer"
        case Invalid(error=error) | CallFailed(error=error):
            return error
