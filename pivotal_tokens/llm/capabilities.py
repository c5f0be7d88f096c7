"""Capabilities of endpoints: the form of request that each accepts for a model.

Nothing is asked in advance: the fullest form is sent, and what the endpoint turns down is dropped:
``max_tokens`` <-> ``max_completion_tokens`` and temperature where the error is about them; a system
turn where it is about roles; ``json_schema`` -> ``json_object`` -> plain text with the schema in
words, whatever the words of the error. What then succeeded is kept per (base URL, model) in the
store, with the endpoint's words, until ``judge reset`` forgets it; where the error did not name
what was left out, for the life of the client only.

    ability = Capabilities.expected(settings)
    body = request_body(ability, settings, messages, schema)
    ability.after(error)              # what to try next; None: nothing is left
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, Self

from pydantic import BaseModel

from pivotal_tokens.llm.endpoint_errors import EndpointError
from pivotal_tokens.llm.settings import LLMSettings, Message
from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import Store

Form = Literal["json_schema", "json_object", "plain"]

_LOWER: dict[Form, Form] = {"json_schema": "json_object", "json_object": "plain"}
_REFUSED = ("unsupported", "not supported", "unrecognized", "unknown", "unexpected", "extra")
_LIMITS = ("max_completion_tokens", "max_tokens")
_ROLES = re.compile(r"\broles?\b|\bsystem\b|alternat|chat.template", re.IGNORECASE)
_FORMS = re.compile(
    r"response_format|schema|json|grammar|structured|guided|constrained", re.IGNORECASE
)
_SHOWN = 160
_ANNOTATIONS = ("title", "default", "examples")


class Capabilities(Frozen):
    """How requests to one (base URL, model) are put."""

    form: Form = "json_schema"
    limit: Literal["max_completion_tokens", "max_tokens"] = "max_tokens"
    limits_refused: int = 0  # 1 when the other name was turned down
    temperature: bool = True
    system: bool = True  # a turn of its own; else it is the beginning of the user's
    turned_down: tuple[str, ...] = ()  # what was left out, and the endpoint's words
    guessed: bool = False  # an error did not name what it was about

    @classmethod
    def expected(cls, settings: LLMSettings) -> Self:
        """What to try first: OpenAI's own names there, the widely known ones elsewhere."""
        own = settings.base_url is None or settings.reasons
        return cls(
            limit="max_completion_tokens" if own else "max_tokens",
            temperature=not settings.reasons,
        )

    @classmethod
    def known(cls, store: Store, settings: LLMSettings) -> Self:
        """What a store knows of an endpoint's model, or what to try first."""
        found = store.ledger.capabilities(settings.url, settings.model)
        return cls.expected(settings) if found is None else cls.model_validate_json(found)

    def after(self, error: EndpointError) -> Self | None:
        """What to try after an error; None where everything was tried."""
        if refused := _refused_limit(error):
            if refused != self.limit or self.limits_refused:
                return None
            other = _LIMITS[1 - _LIMITS.index(self.limit)]
            return self._without(self.limit, error, limit=other, limits_refused=1)
        if self.temperature and error.rejects("temperature"):
            return self._without("temperature", error, temperature=False)
        if self.system and _ROLES.search(error.message):
            return self._without("system turn", error, system=False)
        if self.form in _LOWER:
            guessed = self.guessed or not _FORMS.search(f"{error.param} {error.message}")
            return self._without(self.form, error, form=_LOWER[self.form], guessed=guessed)
        if self.system:
            return self._without("system turn", error, system=False, guessed=True)
        return None

    @property
    def sure(self) -> Self:
        """These without what was only guessed."""
        if not self.guessed:
            return self
        named = tuple(said for said in self.turned_down if said.startswith(("temperature", "max_")))
        whole = {"form": "json_schema", "system": True, "guessed": False, "turned_down": named}
        return self.model_copy(update=whole)

    def _without(self, what: str, error: EndpointError, **update: Any) -> Self:
        said = f"{what}: {error.status} {error.message[:_SHOWN]}"
        return self.model_copy(update=update | {"turned_down": (*self.turned_down, said)})


def request_body(
    ability: Capabilities,
    settings: LLMSettings,
    messages: Sequence[Message],
    schema: dict[str, Any] | None,
    *,
    limit: int | None = None,
) -> dict[str, Any]:
    """The arguments of ``chat.completions.create``.

    Args:
        limit: Output tokens at most; None for those of the settings.
    """
    body: dict[str, Any] = {"model": settings.model, ability.limit: limit or settings.output_limit}
    if settings.temperature is not None and ability.temperature:
        body["temperature"] = settings.temperature
    words = ""
    if schema is not None and ability.form == "json_schema":
        named = {"name": "answer", "strict": True, "schema": schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif schema is not None:
        words = _in_words(schema)
        if ability.form == "json_object":
            body["response_format"] = {"type": "json_object"}
    return body | {"messages": _turns(messages, words, system=ability.system)}


def _turns(messages: Sequence[Message], words: str, *, system: bool) -> list[dict[str, str]]:
    """Turns that every chat template takes: at most one of the system, then user and assistant in
    alternation; `words` about the form stand within the first of them."""
    first = [message.content for message in messages if message.role == "system"]
    rest: list[dict[str, str]] = []
    for message in messages:
        if message.role == "system":
            continue
        if rest and rest[-1]["role"] == message.role:
            rest[-1]["content"] += f"\n\n{message.content}"
        else:
            rest.append({"role": message.role, "content": message.content})
    if words and first:
        first.append(words)
    elif words:
        rest[0]["content"] += f"\n\n{words}"
    if not first:
        return rest
    if system:
        return [{"role": "system", "content": "\n\n".join(first)}, *rest]
    rest[0]["content"] = "\n\n".join([*first, rest[0]["content"]])
    return rest


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


def _refused_limit(error: EndpointError) -> str | None:
    """The name of the output limit that an error turns down: the first that it speaks of."""
    if error.param in _LIMITS:
        return error.param
    said = error.message.lower()
    if not any(word in said for word in _REFUSED):
        return None
    places = {name: said.find(name) for name in _LIMITS if name in said}
    return min(places, key=places.__getitem__) if places else None
