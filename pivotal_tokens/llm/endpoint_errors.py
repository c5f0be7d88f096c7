"""Errors of endpoints, as their bodies word them.

Every vendor has a form of its own; here is what the client must know of any of them: whether the
model's input was refused (moderation), or the account, which parameter it is about, how many output
tokens would fit. An error may stand in a reply of status 200, with the status as its code.

    error = error_in(200, body)               # None: a reply
    error.status, error.refuses_input, error.fitting(limit=2000)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_SHOWN = 500
_INPUT_CODES = frozenset(
    {
        "content_filter",
        "content_filtered",
        "content_policy_violation",
        "data_inspection_failed",
        "invalid_prompt",
        "moderation_blocked",
        "prohibited_content",
        "responsibleaipolicyviolation",
    }
)
_MODERATED = re.compile(
    r"\b(flagged|moderat\w+|content (management|filtering|safety|usage)? ?polic\w+|"
    r"content filter\w*|usage polic\w+|safety (system|filter)\w*)",
    re.IGNORECASE,
)
_ACCOUNT = re.compile(
    r"\b(account|organi[sz]ation|api key|project|suspended|banned|deactivated|terminated|credits?|"
    r"billing|permission|access)\b",
    re.IGNORECASE,
)
_REFUSALS = (
    r"unsupported|not supported|not support|unrecognized|unknown|unexpected|extra|deprecated|"
    r"not allowed|not permitted|only the default|must be 1|is fixed"
)
_WINDOW = re.compile(
    r"context (?:length|size|window)\D{0,40}(\d{3,})|(\d{3,})[- ]tokens? context|"
    r"n_ctx\D{1,4}(\d{3,})|(\d{3,}) maximum context",
    re.IGNORECASE,
)
_PROMPT = re.compile(
    r"(\d+)(?: tokens)?(?: are)? (?:of|in|from) (?:the )?(?:text |your )?(?:messages|prompt|input)|"
    r"(\d+) (?:input|prompt)(?: tokens)?|"
    r"(?:prompt|input|messages)\D{0,40}?(\d+) tokens",
    re.IGNORECASE,
)
_TOO_LONG = ("context_length_exceeded", "exceed_context_size_error")
_MOST_OUTPUT = re.compile(
    r"at most (\d+) (?:completion|output)|"
    r"(?:less than or equal to|<=|maximum (?:value|of)(?: is)?)\s*(\d+)|"
    r"> (\d+), which is the maximum",
    re.IGNORECASE,
)
_LEAST_OUTPUT = 16


@dataclass(frozen=True)
class EndpointError:
    """What an endpoint says is wrong."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    moderated: bool = False
    """It has the details that only a moderation gives."""

    @property
    def refuses_input(self) -> bool:
        """Whether this one input was turned down, and another would not be."""
        if self.status not in (400, 403, 422, 451):
            return False
        if self.moderated or (self.code or "").lower() in _INPUT_CODES:
            return True
        said = self.message
        return bool(_MODERATED.search(said)) and not _ACCOUNT.search(said)

    @property
    def too_long(self) -> bool:
        """Whether prompt and answer do not fit into the model's context."""
        return (self.code or "") in _TOO_LONG or _WINDOW.search(self.message) is not None

    def rejects(self, parameter: str) -> bool:
        """Whether it is about this parameter of the request, not merely a text with its name."""
        if self.param is not None:
            return self.param == parameter
        name = rf"['\"`]?\b{parameter}\b['\"`]?"
        near = rf"{name}\W[^.;]{{0,40}}?\b({_REFUSALS})|({_REFUSALS})\b[^.;]{{0,40}}?{name}"
        return re.search(near, self.message, re.IGNORECASE) is not None

    def fitting(self, limit: int) -> int | None:
        """Output tokens that would fit, in place of `limit`; None where it does not say so."""
        said = self.message
        if found := _WINDOW.search(said):
            window = int(next(filter(None, found.groups())))
            numbers = {int(number) for number in re.findall(r"\d+", said)}
            # Where the sum of both is named, the prompt is what the limit leaves of it.
            prompts = {total - limit for total in numbers} & numbers
            named = _PROMPT.search(said)
            if not prompts and named:
                prompts = {int(next(filter(None, named.groups())))}
            fits = window - max(prompts) if prompts else 0
        elif found := _MOST_OUTPUT.search(said):
            about = "token" in f"{self.param or ''} {said}".lower()
            fits = int(next(filter(None, found.groups()))) if about else 0
        else:
            return None
        return fits if _LEAST_OUTPUT <= fits < limit else None


def json_of(body: str) -> Any:
    """The JSON of a body; None where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def error_in(status: int, body: str) -> EndpointError | None:
    """The error that a response holds; None for a reply.

    An error within a 200 has the status that its code names, or 502: someone behind the endpoint
    failed.
    """
    said = json_of(body)
    if status != 200:
        return _error(status, said.get("error", said) if isinstance(said, dict) else body, body)
    if not isinstance(said, dict):
        return None
    details = said.get("error")
    if not details and said.get("object") == "error":
        details = said
    if not details:
        choices = said.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        details = first.get("error") if isinstance(first, dict) else None
    if not details:
        return None
    code = details.get("code") if isinstance(details, dict) else None
    named = int(code) if isinstance(code, int) or (isinstance(code, str) and code.isdigit()) else 0
    error = _error(named if 400 <= named <= 599 else 502, details, body)
    return error if named or not _names_input(error) else _error(400, details, body)


def _names_input(error: EndpointError) -> bool:
    return error.moderated or (error.code or "").lower() in _INPUT_CODES


def _error(status: int, details: Any, body: str) -> EndpointError:
    if not isinstance(details, dict):
        return EndpointError(status, _one_line(str(details or body)) or "no message")
    message = details.get("message") or details.get("detail") or body
    about = details.get("metadata")
    about = about if isinstance(about, dict) else {}
    if raw := about.get("raw"):  # what the provider behind a router said
        message = f"{message}: {raw}"
    inner = details.get("innererror")
    inner_code = inner.get("code") if isinstance(inner, dict) else None
    code = details.get("code")
    return EndpointError(
        status,
        _one_line(str(message)),
        _text(details.get("param")),
        _text(inner_code) or _text(code),
        moderated="flagged_input" in about or bool(about.get("reasons")),
    )


def _one_line(message: str) -> str:
    """A message cut and without what no database takes: line breaks, NUL, half characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in message).split())[:_SHOWN]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
