"""Label records: labels outside the store, one flat record each.

One flat record per label event: the event's own fields, with the prompt's text and the token's
text beside its ids, so that a file can be read without the store. Only these are needed to read
one back: a prompt (`prompt_text`, or the `prompt_id` of a known one), a token (`token_id`, or a
`token_text` that the prompt's lists know), a `label` (or `to_label`) and an `author`.

    records = tuple(label_records(store))
    records[0]["prompt_text"], records[0]["token_text"], records[0]["to_label"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, LabelEvent, Prompt, first_problem, unstorable
from pivotal_tokens.store import Store

Record = Mapping[str, Any]

PROMPT_FIELDS = (
    "prompt_id",
    "prompt_text",
    "prompt_kind",
    "prompt_generator",
    "prompt_name",
    "prompt_category",
)
TOKEN_FIELDS = ("token_id", "token_text")
EVENT_FIELDS = tuple(
    name for name in LabelEvent.model_fields if name not in ("prompt_id", "token_id")
)
FIELDS = (*PROMPT_FIELDS, *TOKEN_FIELDS, *EVENT_FIELDS)
_ALIASES = {"label": "to_label"}
INTEGERS = ("token_id", "item_id")
_WHOLE = re.compile(r"[0-9]{1,18}(\.0*)?")
_TOKENS = 1 << 31
_NAME, _ID = 256, 64  # characters of an author and of an event's id
_NEEDED = {
    ("prompt_text", "prompt_id"): "no prompt_text and no prompt_id",
    ("token_id", "token_text"): "no token_id and no token_text",
    ("to_label", "from_label", "left", "was_left"): "no label; one of evil, safe, unsure",
    ("author",): "no author; give one for the whole file with --author",
}


def label_records(store: Store) -> Iterator[dict[str, Any]]:
    """Every label event of a store with its prompt and token, oldest first in each prompt."""
    store.chains.require_whole()
    for prompt in store.prompts.all():
        events = store.labels.events(prompt.prompt_id)
        texts = store.results.token_texts(prompt.prompt_id) if events else {}
        for event in events:
            yield record_of(event, prompt, texts.get(event.token_id))


def record_of(event: LabelEvent, prompt: Prompt, token_text: str | None) -> dict[str, Any]:
    """The flat record of one event."""
    values = event.model_dump(mode="json")
    values |= {
        "prompt_text": prompt.text,
        "prompt_kind": prompt.kind,
        "prompt_generator": prompt.generator,
        "prompt_name": prompt.name,
        "prompt_category": prompt.category,
        "token_text": token_text,
    }
    return {name: values[name] for name in FIELDS}


@dataclass(frozen=True)
class Incoming:
    """A label from outside, as far as it can be read without a store."""

    where: str  # "labels.csv, line 3"
    prompt: Prompt | None  # None: only the id of a known prompt was given
    prompt_id: str
    token_id: int | None
    token_text: str | None
    has_id: bool  # it came with an event id: an event of another store, not a bare statement
    event: Mapping[str, Any]  # fields of the event, without prompt and token; they are sound

    def as_event(self, token_id: int) -> LabelEvent:
        """The event, once its token is known."""
        values = dict(self.event)
        if not self.has_id:
            said = [self.prompt_id, token_id, values.get("to_label"), values.get("author")]
            said += [values.get("at"), values.get("reason")]
            values["event_id"] = content_key(said)[:32]
            values["batch"] = values["event_id"]
        return LabelEvent.model_validate(
            values | {"prompt_id": self.prompt_id, "token_id": token_id}
        )


def check_fields(records: Iterable[tuple[str, Record]], *, author: str | None = None) -> None:
    """Refuse records of another shape: what is wrong with all of them, not with one.

    Raises:
        RequestError: If a field is unknown, one fact has two fields, or no record has a field for
            prompt, token, label or author.
    """
    names: set[str] = set()
    where = ""
    for where, record in records:
        for alias, name in _ALIASES.items():
            if record.keys() >= {alias, name}:
                raise RequestError(
                    f"{where}: {alias} and {name} are both the label; keep one of them"
                )
        given = {_ALIASES.get(name, name) for name in record}
        if unknown := sorted(given - set(FIELDS)):
            known = ", ".join(FIELDS)
            raise RequestError(f"{where}: unknown field {unknown[0]!a}; known are {known}")
        names |= given
    if not where:
        return
    for needed, said in _NEEDED.items():
        if names.isdisjoint(needed) and not (author and needed == ("author",)):
            raise RequestError(f"{where}: {said}")


def whole_number(name: str, value: Any) -> int:
    """A number of a record: 490, "490", or the 490.0 that pandas writes beside an empty cell.

    Raises:
        ValueError: If it is anything else, true and false included.
    """
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value.partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{name} is no number: {value!a}")


def incoming(record: Record, where: str, *, author: str | None = None) -> Incoming:
    """Read one flat record, of known fields.

    Args:
        record: The record; fields that are absent, None or NaN take their defaults.

    Raises:
        RequestError: If prompt, token, label or author is missing, or a value cannot be kept.
    """
    given = {_ALIASES.get(n, n): v for n, v in record.items() if v is not None and v == v}
    try:
        given |= {n: whole_number(n, given[n]) for n in INTEGERS if n in given}
        prompt = _prompt(given)
        event = _event(given, author)
    except ValueError as error:
        raise RequestError(f"{where}: {error}") from error
    return Incoming(
        where=where,
        prompt=prompt,
        prompt_id=prompt.prompt_id if prompt is not None else given["prompt_id"],
        token_id=given.get("token_id"),
        token_text=given.get("token_text"),
        has_id="event_id" in event,
        event=event,
    )


def _event(given: Mapping[str, Any], author: str | None) -> dict[str, Any]:
    """The fields of the event, its token and prompt left out.

    Raises:
        ValueError: If one is missing, is wrong, or could not be kept.
    """
    token, text = given.get("token_id"), given.get("token_text")
    if token is None and text is None:
        raise ValueError("no token_id and no token_text")
    if text is not None and not isinstance(text, str):
        raise ValueError(f"token_text is no text: {text!a}")
    event = {name: given[name] for name in EVENT_FIELDS if name in given}
    event = {"from_label": None, "to_label": None} | event
    if "author" not in event:
        if author is None:
            raise ValueError("no author; give one for the whole file with --author")
        event["author"] = author
    event.setdefault("author_kind", "human")
    labels = (event["to_label"], event["from_label"])
    if labels == (None, None) and not (event.get("left") or event.get("was_left")):
        raise ValueError("no label; one of evil, safe, unsure")
    where = {"prompt_id": "0" * 12, "token_id": 0 if token is None else token}
    try:
        whole = LabelEvent.model_validate(event | where)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error
    if not 0 <= whole.token_id < _TOKENS:
        raise ValueError(f"token_id {whole.token_id} is no token's")
    _require_storable(whole, author=_NAME, event_id=_ID)
    return event


def _require_storable(value: Frozen, **columns: int | None) -> None:
    """Refuse what one of the two databases would refuse.

    Args:
        columns: Fields that are columns of their own, and how long they may be.

    Raises:
        ValueError: Naming the field, where one is to blame.
    """
    for name, longest in columns.items():
        text = getattr(value, name) or ""
        if "\0" in text:
            raise ValueError(f"{name} has a NUL in it")
        if longest is not None and len(text) > longest:
            raise ValueError(f"{name} is longer than {longest} characters")
    if why := unstorable(value):
        raise ValueError(f"it cannot be kept: {why}")


def _prompt(given: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a record that has its text.

    Raises:
        ValueError: If there is neither text nor id, they contradict, or it could not be kept.
    """
    text, named = given.get("prompt_text"), given.get("prompt_id")
    if text is None:
        if named is None:
            raise ValueError("no prompt_text and no prompt_id")
        if not isinstance(named, str):
            raise ValueError(f"prompt_id is no text: {named!a}")
        named.encode()  # half an emoji asks the store nothing
        return None
    if not isinstance(text, str):
        raise ValueError(f"prompt_text is no text: {text!a}")
    fields = {
        name: given[f"prompt_{name}"]
        for name in ("kind", "generator", "name", "category")
        if f"prompt_{name}" in given
    }
    try:
        prompt = Prompt.of(text, **fields)
    except ValidationError as error:
        raise ValueError(f"the prompt cannot be used: {first_problem(error)}") from error
    except UnicodeEncodeError as error:
        raise ValueError("the prompt cannot be used: it is not valid Unicode") from error
    if named not in (None, prompt.prompt_id):
        raise ValueError(f"prompt_id {named!a} is not the text's, {prompt.prompt_id}")
    _require_storable(prompt, generator=None, category=None)
    return prompt
