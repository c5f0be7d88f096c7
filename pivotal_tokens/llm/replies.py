"""Outcomes of a question to a model, read from the body of a chat completion.

Where the answer stands in a reply is `grammar`'s; here it is told what came of a question.

    match await client.ask(messages, schema=Answer, purpose="judge"):
        case Ok(value=answer): ...
        case CallFailed(error=error): ...
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from pivotal_tokens.llm.endpoint_errors import EndpointError, error_in, json_of
from pivotal_tokens.llm.grammar import Unreadable, answer_text, read_object, without_surrogates

_FILTERED = frozenset({"content_filter", "safety", "prohibited_content", "blocklist"})
_MOST_TOKENS = 2**53


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
    """An answer in the requested form."""

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
    """The endpoint's content filter took the answer, or this one question, away."""

    reason: str


@dataclass(frozen=True)
class Invalid(_Answered):
    """An answer that is not in the requested form."""

    error: str


@dataclass(frozen=True)
class CallFailed:
    """No answer came within the deadline and the attempts allowed."""

    error: str
    call_id: str | None  # of the last attempt; None where none was made


Reply = Ok | Refused | Truncated | Filtered | Invalid | CallFailed


def why_unusable(reply: Reply) -> str:
    """Why a reply cannot be used, in one line; "" for one that can."""
    match reply:
        case Ok():
            return ""
        case Refused(reason=reason):
            return f"the model refused: {reason}"
        case Truncated():
            return "the answer was cut off at the limit of output tokens (--max-output-tokens)"
        case Filtered(reason=reason):
            return f"filtered by the endpoint: {reason}"
        case Invalid(error=error) | CallFailed(error=error):
            return error


def read_reply(
    body: str,
    schema: type[BaseModel] | None,
    *,
    cached: bool,
    call_id: str,
    reasoning: bool = False,
) -> Reply:
    """Read the body of a chat completion as an outcome, in whatever form it is.

    Args:
        reasoning: Read an answer that stands in the reasoning alone.
    """
    completion = json_of(body)
    common: dict[str, Any] = {"usage": usage_of(completion), "cached": cached, "call_id": call_id}
    if (error := error_in(200, body)) is not None:
        if replace(error, status=400).refuses_input:
            return Filtered(raw=without_surrogates(body), reason=error.message, **common)
        return Invalid(raw="", error=f"an error came for a reply: {error.message}", **common)
    try:
        choice = completion["choices"][0]
        message, finish = choice["message"], str(choice.get("finish_reason")).lower()
        refusal = message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        raw = without_surrogates(body)
        return Invalid(raw=raw, error="the reply is no chat completion", **common)
    try:
        text, nothing = answer_text(message, reasoning=reasoning), ""
    except Unreadable as error_of_message:
        text, nothing = "", str(error_of_message)
    raw = without_surrogates(text)
    if refusal:
        said = without_surrogates(str(refusal))
        return Refused(raw=raw or said, reason=said, **common)
    if finish in _FILTERED:
        return Filtered(raw=raw, reason="the content filter took the answer away", **common)
    if finish == "length":
        return Truncated(raw=raw, **common)
    if nothing:
        return Invalid(raw="", error=nothing, **common)
    if schema is None:
        return Ok(raw=raw, value=raw, **common)
    try:
        return Ok(raw=raw, value=read_object(text, schema), **common)
    except Unreadable as problem:
        return Invalid(raw=raw, error=str(problem), **common)


def usage_of(completion: Any) -> Usage | None:
    """What a reply says it used; None where it does not, or says nonsense.

    Some endpoints count thinking in the total alone, so the output is never less than what the
    total leaves of it.
    """
    try:
        usage = completion["usage"]
        said = {name: usage.get(name) for name in _COUNTS}
    except (LookupError, TypeError, AttributeError):
        return None
    counts = {name: _count(value) for name, value in said.items() if value is not None}
    if None in counts.values() or "prompt_tokens" not in counts or len(counts) < 2:
        return None
    prompt, output, total = (counts.get(name) or 0 for name in _COUNTS)
    output = max(output, total - prompt)
    return Usage(prompt, output) if prompt + output else None


_COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")


def _count(value: object) -> int | None:
    """A number of tokens; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < _MOST_TOKENS and value == int(value) else None


def filtered_body(error: EndpointError, body: str) -> str:
    """A refusal of one input as it is kept in place of a reply, with what came."""
    kept = {"message": error.message, "code": "content_filter", "status": error.status}
    return json.dumps({"error": kept | {"body": body}})
