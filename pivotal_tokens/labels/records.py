"""Label records: labels outside the store, one flat record each.

One flat record per label event: the event's own fields, with the prompt's text and the token's
text beside its ids, so that a file can be read without the store. Only these are needed to read
one back: a prompt (`prompt_text`, or the `prompt_id` of a known one), a token (`token_id`, or a
`token_text` that the prompt's lists know), a `label` (or `to_label`) and an `author`.

    records = tuple(label_records(store))
    records[0]["prompt_text"], records[0]["token_text"], records[0]["to_label"]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import LabelEvent, Prompt
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


def label_records(store: Store) -> Iterator[dict[str, Any]]:
    """Every label event of a store with its prompt and token, oldest first in each prompt."""
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
    event: Mapping[str, Any]  # fields of the event, without prompt and token

    def as_event(self, token_id: int) -> LabelEvent:
        """The event, once its token is known.

        Raises:
            RequestError: If a field is missing or wrong.
        """
        values = dict(self.event)
        if not self.has_id:
            said = [self.prompt_id, token_id, values.get("to_label"), values.get("author")]
            said += [values.get("at"), values.get("reason")]
            values["event_id"] = content_key(said)[:32]
            values["batch"] = values["event_id"]
        try:
            return LabelEvent.model_validate(
                values | {"prompt_id": self.prompt_id, "token_id": token_id}
            )
        except ValidationError as error:
            one = error.errors()[0]
            wrong = f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
            raise RequestError(f"{self.where}: {wrong}") from error


def incoming(record: Record, where: str, *, author: str | None = None) -> Incoming:
    """Read one flat record.

    Args:
        record: The record; fields that are absent or None take their defaults.

    Raises:
        RequestError: If a field is unknown, or prompt, token, label or author is missing.
    """
    given = {_ALIASES.get(name, name): value for name, value in record.items()}
    if unknown := sorted(set(given) - set(FIELDS)):
        raise RequestError(f"{where}: unknown field {unknown[0]!r}; known are {', '.join(FIELDS)}")
    prompt = _prompt(given, where)
    prompt_id = prompt.prompt_id if prompt is not None else given.get("prompt_id")
    if prompt_id is None:
        raise RequestError(f"{where}: no prompt_text and no prompt_id")
    if given.get("token_id") is None and given.get("token_text") is None:
        raise RequestError(f"{where}: no token_id and no token_text")
    event = {name: given[name] for name in EVENT_FIELDS if given.get(name) is not None}
    event = {"from_label": None, "to_label": None} | event
    if "author" not in event:
        if author is None:
            raise RequestError(f"{where}: no author; give one for the whole file with --author")
        event["author"] = author
    event.setdefault("author_kind", "human")
    labels = (event["to_label"], event["from_label"])
    if labels == (None, None) and not (event.get("left") or event.get("was_left")):
        raise RequestError(f"{where}: no label; one of evil, safe, unsure")
    return Incoming(
        where=where,
        prompt=prompt,
        prompt_id=str(prompt_id),
        token_id=given.get("token_id"),
        token_text=given.get("token_text"),
        has_id="event_id" in event,
        event=event,
    )


def _prompt(given: Mapping[str, Any], where: str) -> Prompt | None:
    if given.get("prompt_text") is None:
        return None
    fields = {
        name: given[f"prompt_{name}"]
        for name in ("kind", "generator", "name", "category")
        if given.get(f"prompt_{name}") is not None
    }
    try:
        prompt = Prompt.of(given["prompt_text"], **fields)
    except (ValidationError, AttributeError, UnicodeEncodeError) as error:
        raise RequestError(f"{where}: the prompt cannot be used: {error}") from error
    if given.get("prompt_id") not in (None, prompt.prompt_id):
        raise RequestError(
            f"{where}: prompt_id {given['prompt_id']} is not the text's, {prompt.prompt_id}"
        )
    return prompt
