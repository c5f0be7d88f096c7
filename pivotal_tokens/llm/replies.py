"""Outcomes of a question to a model, read from the body of a chat completion.

Models put JSON into code fences, after a line of thinking, or between sentences; all of that is
read. What was read is then validated against the schema: nothing is repaired, nothing guessed.

    match await client.ask(messages, schema=Answer, purpose="judge"):
        case Ok(value=answer): ...
        case CallFailed(error=error): ...
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_SHOWN_ERRORS = 3


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
    """The endpoint's content filter took the answer, or the question, away."""


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
            return "the answer was cut off at the limit of output tokens"
        case Filtered():
            return "the endpoint's content filter took the answer"
        case Invalid(error=error) | CallFailed(error=error):
            return error


def read_reply(body: str, schema: type[BaseModel] | None, *, cached: bool, call_id: str) -> Reply:
    """Read the body of a chat completion as an outcome, in whatever form it is."""
    completion = json_of(body)
    common: dict[str, Any] = {"usage": usage_of(completion), "cached": cached, "call_id": call_id}
    try:
        choice = completion["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Invalid(raw=body, error="the reply is no chat completion", **common)
    text = content if isinstance(content, str) else ""
    if refusal:
        return Refused(raw=text or str(refusal), reason=str(refusal), **common)
    if finish == "content_filter":
        return Filtered(raw=text, **common)
    if finish == "length":
        return Truncated(raw=text, **common)
    if not text:
        return Invalid(raw="", error="the reply is empty", **common)
    if schema is None:
        return Ok(raw=text, value=text, **common)
    try:
        return Ok(raw=text, value=schema.model_validate_json(_json_text(text)), **common)
    except ValidationError as error:
        return Invalid(raw=text, error=_in_words(error), **common)


def json_of(body: str) -> Any:
    """The JSON of a body; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def usage_of(completion: Any) -> Usage | None:
    """What a reply says it used; None where it does not, or says nonsense."""
    try:
        usage = completion["usage"]
        used = usage["prompt_tokens"], usage["completion_tokens"]
    except (LookupError, TypeError):
        return None
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**53 for n in used):
        return None
    return Usage(*used)


def _json_text(text: str) -> str:
    """The JSON object in a model's text: fenced, after its thinking, or between sentences."""
    rest = _THINKING.sub("", text).strip()
    if fenced := _FENCE.search(rest):
        rest = fenced.group(1).strip()
    start, end = rest.find("{"), rest.rfind("}")
    return rest[start : end + 1] if 0 <= start < end else rest


def _in_words(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)
    said = [f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in found]
    more = f" and {len(said) - _SHOWN_ERRORS} more" if len(said) > _SHOWN_ERRORS else ""
    return "; ".join(said[:_SHOWN_ERRORS]) + more
