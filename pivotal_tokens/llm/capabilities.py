"""Capabilities of endpoints: the form of request that each accepts for a model.

Nothing is asked in advance: the fullest form is sent, and what the endpoint turns down is dropped
for good: ``json_schema`` -> ``json_object`` -> plain text with the schema in words;
``max_tokens`` <-> ``max_completion_tokens``; temperature. What was learned is stored per
(base URL, model) in the store.

    ability = Capabilities.expected(settings)
    body = request_body(ability, settings, messages, schema)
    ability.without(error)            # after a 400; None: the error is about something else
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, Self

from pydantic import BaseModel

from pivotal_tokens.llm.settings import LLMSettings, Message
from pivotal_tokens.schema import Frozen

Form = Literal["json_schema", "json_object", "plain"]

_LOWER: dict[Form, Form] = {"json_schema": "json_object", "json_object": "plain"}
_LIMITS = ("max_completion_tokens", "max_tokens")
_FORM_WORDS = ("response_format", "json_schema", "json_object", "structured output", "guided")
_REFUSALS = ("unsupported", "not supported", "unrecognized", "unknown", "unexpected", "extra")
_ANNOTATIONS = ("title", "default", "examples")


class Capabilities(Frozen):
    """How requests to one (base URL, model) are put."""

    form: Form = "json_schema"
    limit: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    limits_refused: int = 0  # 1 when the other name was turned down
    temperature: bool = True

    @classmethod
    def expected(cls, settings: LLMSettings) -> Self:
        """What to try first: OpenAI's own names there, the widely known ones elsewhere."""
        own = settings.base_url is None or settings.reasons
        return cls(
            limit="max_completion_tokens" if own else "max_tokens",
            temperature=not settings.reasons,
        )

    def without(self, message: str, param: str | None) -> Capabilities | None:
        """These without what an error message rejects; None if it names nothing here."""
        said = f"{param or ''} {message}".lower()
        if (refused := _refused_limit(said)) is not None:
            if refused != self.limit or self.limits_refused:
                return None
            other = _LIMITS[1 - _LIMITS.index(self.limit)]
            return self.model_copy(update={"limit": other, "limits_refused": 1})
        if self.temperature and "temperature" in said:
            return self.model_copy(update={"temperature": False})
        if self.form in _LOWER and any(word in said for word in _FORM_WORDS):
            return self.model_copy(update={"form": _LOWER[self.form]})
        return None


def request_body(
    ability: Capabilities,
    settings: LLMSettings,
    messages: Sequence[Message],
    schema: dict[str, Any] | None,
) -> dict[str, Any]:
    """The arguments of ``chat.completions.create``."""
    sent = [message.model_dump() for message in messages]
    body: dict[str, Any] = {"model": settings.model, ability.limit: settings.output_limit}
    if settings.temperature is not None and ability.temperature:
        body["temperature"] = settings.temperature
    if schema is not None and ability.form == "json_schema":
        named = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif schema is not None:
        sent.append({"role": "system", "content": _in_words(schema)})
        if ability.form == "json_object":
            body["response_format"] = {"type": "json_object"}
    return body | {"messages": sent}


@cache  # it takes as long as sending a request
def strict_schema(model: type[BaseModel]) -> dict[str, Any]:
    """A model's JSON schema in the strict form: nothing additional, everything required."""
    return _strict(model.model_json_schema())


def _strict(node: Any, *, names: bool = False) -> Any:
    """`names`: the keys of this object are names of properties, not keywords."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {
        key: _strict(value, names=not names and key in ("properties", "$defs"))
        for key, value in node.items()
        if names or key not in _ANNOTATIONS
    }
    if not names and isinstance(strict.get("properties"), dict):
        strict |= {"additionalProperties": False, "required": list(strict["properties"])}
    return strict


def _in_words(schema: dict[str, Any]) -> str:
    return (
        "Answer with one JSON object and nothing else, no code fence. It must fit this JSON "
        f"schema:\n{json.dumps(schema)}"
    )


def _refused_limit(said: str) -> str | None:
    """The name of the output limit that an error turns down: the first that it speaks of."""
    if not any(word in said for word in _REFUSALS):
        return None
    places = {name: said.find(name) for name in _LIMITS if name in said}
    return min(places, key=places.__getitem__) if places else None
