"""Hash chains of label events: each prompt's events, in order, so that none can change unnoticed.

    chain(n) = SHA-256(chain(n - 1), newline, JSON of event n)          chain(0) = ""

The last hash of a prompt and the number of its events stand in `label_chains`, so that a missing
last event is noticed, too. Next tokens are replaced rather than added to: theirs is a plain hash
over prompt, pair and lists. Events and lists of older stores have no hash and are counted as such.

    append(connection, events)                    # within the transaction that adds them
    store.chains.check().problems                 # ("label event 1f0c... of prompt 44a7...: ...",)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, Row, Select, Text, insert, select, type_coerce

from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Frozen, LabelEvent
from pivotal_tokens.seal import DamagedText, unsealed
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import lock_name, upsert
from pivotal_tokens.store.rows import row_of

_COLUMNS = ("event_id", "prompt_id", "token_id", "author", "author_kind", "to_label", "purpose")
_AT_ONCE = 10_000
"""Rows in memory at a time."""
_NAMED = 100
"""Problems that are told; there may be more."""


class Checked(Frozen):
    """What was compared with its hash."""

    label_events: int = 0  # with a hash
    next_tokens: int = 0
    unhashed: int = 0  # of either, written before there were hashes
    problems: tuple[str, ...] = ()  # the first hundred


class Chains(Repository):
    """The hashes of a store's label events and next tokens."""

    def check(self) -> Checked:
        """Compare every label event and every list of next tokens with its hash."""
        counts = {"label_events": 0, "next_tokens": 0, "unhashed": 0}
        problems: list[str] = []
        with self._reading() as connection:
            for found in (_events(connection, counts), _lists(connection, counts)):
                for problem in found:
                    problems.append(problem)
                    if len(problems) == _NAMED:
                        break
        return Checked(**counts, problems=tuple(problems[:_NAMED]))

    def require_whole(self) -> None:
        """Before an export: nothing that a hash covers has changed.

        Raises:
            WorkFailed: Naming the first that has.
        """
        if problems := self.check().problems:
            raise WorkFailed(
                f"{problems[0]}; nothing was exported: `em-circuits verify` names all that changed"
            )


def append(connection: Connection, events: Sequence[LabelEvent]) -> frozenset[str]:
    """Add events that are not there yet to the chains of their prompts; the ids of those."""
    added: set[str] = set()
    by_prompt = sorted(events, key=lambda event: event.prompt_id)  # stable: a prompt's order stays
    for prompt_id, some in groupby(by_prompt, key=lambda event: event.prompt_id):
        own = list(some)
        lock_name(connection, f"label chain {prompt_id}")
        column = tables.label_events.c.event_id
        known = select(column).where(column.in_([event.event_id for event in own]))
        there = set(connection.execute(known).scalars())
        rows = []
        number, head = _head(connection, prompt_id)
        for event in own:
            if event.event_id not in there:
                there.add(event.event_id)
                row = row_of(tables.label_events, event)
                head = _link(head, row["payload"])
                rows.append(row | {"chain": head})
        if rows:
            connection.execute(insert(tables.label_events), rows)
            last = {"prompt_id": prompt_id, "events": number + len(rows), "chain": head}
            upsert(connection, tables.label_chains, last)
            added.update(row["event_id"] for row in rows)
    return frozenset(added)


def hash_of_lists(prompt_id: str, pair: str, payload: str) -> str:
    """SHA-256 of next tokens where they belong."""
    return hashlib.sha256(f"{prompt_id}\n{pair}\n{payload}".encode()).hexdigest()


def _head(connection: Connection, prompt_id: str) -> tuple[int, str]:
    columns = tables.label_chains.c
    query = select(columns.events, columns.chain).where(columns.prompt_id == prompt_id)
    row = connection.execute(query).first()
    return (0, "") if row is None else (row.events, row.chain)


def _link(head: str, payload: str) -> str:
    return hashlib.sha256(f"{head}\n{payload}".encode()).hexdigest()


def _events(connection: Connection, counts: dict[str, int]) -> Iterator[str]:
    """What is wrong with label events, prompt by prompt."""
    heads = {
        row.prompt_id: (row.events, row.chain)
        for row in _stream(connection, select(tables.label_chains))
    }
    events = tables.label_events.c
    query = select(
        *(events[name] for name in _COLUMNS), events.chain, _raw(events.payload)
    ).order_by(events.prompt_id, events.seq)
    for prompt_id, rows in groupby(_stream(connection, query), key=lambda row: row.prompt_id):
        head, number, before = "", 0, counts["unhashed"]
        for row in rows:
            where = f"label event {row.event_id} of prompt {prompt_id}"
            problem, payload = _differs(row)
            if row.chain is None and not number:
                counts["unhashed"] += 1
            elif row.chain is None:
                problem = problem or "it has no hash, unlike one before it"
            else:
                head, number = _link(head, payload), number + 1
                if head != row.chain:
                    problem = problem or "it, or one before it, is not what was written"
                    head = row.chain  # each is named once
            if problem:
                yield f"{where}: {problem}"
        counts["label_events"] += number
        expected, last = heads.pop(prompt_id, (0, ""))
        if number != expected:
            unhashed = counts["unhashed"] - before
            yield (
                f"label events of prompt {prompt_id}: {number} with a hash and {unhashed} without, "
                f"but {expected} were written with one"
            )
        elif head != last:
            yield f"label events of prompt {prompt_id}: the last is not what was written"
    for prompt_id, (expected, _) in heads.items():
        yield f"label events of prompt {prompt_id}: none of the {expected} that were written"


def _differs(row: Row[Any]) -> tuple[str | None, str]:
    """What is wrong with an event by itself, and its JSON."""
    try:
        payload = unsealed(row.payload)
        value = from_json(payload)
        wrong = [name for name in _COLUMNS if value[name] != getattr(row, name)]
    except (DamagedText, LookupError, TypeError, ValueError):
        return "it is not what was written", row.payload
    return (f"its column {wrong[0]} is not what was written" if wrong else None), payload


def _lists(connection: Connection, counts: dict[str, int]) -> Iterator[str]:
    """What is wrong with next tokens."""
    columns = tables.next_tokens.c
    query = select(columns.prompt_id, columns.pair, columns.sha256, _raw(columns.payload))
    for row in _stream(connection, query):
        if row.sha256 is None:
            counts["unhashed"] += 1
            continue
        counts["next_tokens"] += 1
        try:
            same = hash_of_lists(row.prompt_id, row.pair, unsealed(row.payload)) == row.sha256
        except DamagedText:
            same = False
        if not same:
            yield f"next tokens of prompt {row.prompt_id}, pair {row.pair}: not what was written"


def _raw(payload: Any) -> Any:
    """Sealed JSON with its seal: what is damaged is named here."""
    return type_coerce(payload, Text).label("payload")


def _stream(connection: Connection, query: Select[Any]) -> Iterator[Row[Any]]:
    yield from connection.execution_options(yield_per=_AT_ONCE).execute(query)
