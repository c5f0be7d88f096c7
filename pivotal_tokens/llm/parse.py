"""Which outcome is a reply's body, whatever the endpoint made of the request?

Models put JSON into code fences, after a line of thinking, or between sentences; all of that is
read. What was read is then validated against the schema: nothing is repaired, nothing guessed.

    parse_body(body, schema=Answer)      # -> Parsed(outcome="ok", value=Answer(...), usage=...)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from pivotal_tokens.llm.outcomes import Usage

Outcome = Literal["ok", "refusal", "truncated", "filtered", "invalid"]

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_THINKING = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_SHOWN_ERRORS = 3


@dataclass(frozen=True)
class Parsed:
    """A body, read."""

    outcome: Outcome
    text: str = ""
    value: Any = None
    detail: str = ""  # the refusal, or what is wrong
    usage: Usage | None = None


def parse_body(body: str, schema: type[BaseModel] | None) -> Parsed:
    """Read the body of a chat completion.

    Args:
        body: As it came.
        schema: The form asked for; None takes any text.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return Parsed("invalid", text=body, detail="the reply's body is not JSON")
    usage = usage_of(reply)
    try:
        choice = reply["choices"][0]
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        finish = choice.get("finish_reason")
    except (KeyError, IndexError, TypeError, AttributeError):
        return Parsed("invalid", text=body, detail="the reply is no chat completion", usage=usage)
    text = content if isinstance(content, str) else ""
    if refusal:
        return Parsed("refusal", text=text or str(refusal), detail=str(refusal), usage=usage)
    if finish == "content_filter":
        return Parsed("filtered", text=text, usage=usage)
    if finish == "length":
        return Parsed("truncated", text=text, usage=usage)
    if not text:
        return Parsed("invalid", detail="the reply is empty", usage=usage)
    if schema is None:
        return Parsed("ok", text=text, value=text, usage=usage)
    value, error = _validated(text, schema)
    if error:
        return Parsed("invalid", text=text, detail=error, usage=usage)
    return Parsed("ok", text=text, value=value, usage=usage)


def usage_of(reply: object) -> Usage | None:
    """What a reply says it used; None where it does not, or says nonsense."""
    usage = reply.get("usage") if isinstance(reply, dict) else None
    if not isinstance(usage, dict):
        return None
    used = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**53 for n in used):
        return None
    return Usage(*used)  # type: ignore[arg-type]


def json_text(text: str) -> str:
    """The JSON object in a model's text: fenced, after its thinking, or between sentences."""
    rest = _THINKING.sub("", text).strip()
    if fenced := _FENCE.search(rest):
        rest = fenced.group(1).strip()
    start, end = rest.find("{"), rest.rfind("}")
    return rest[start : end + 1] if 0 <= start < end else rest


def _validated(text: str, schema: type[BaseModel]) -> tuple[BaseModel | None, str]:
    try:
        return schema.model_validate_json(json_text(text)), ""
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        told = [f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in found]
        more = f" and {len(told) - _SHOWN_ERRORS} more" if len(told) > _SHOWN_ERRORS else ""
        return None, "; ".join(told[:_SHOWN_ERRORS]) + more
