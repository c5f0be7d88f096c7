"""Which label counts for a token of a prompt, and how did it come about?

Labels are events: who changed what from what to what, when and why. Nothing is ever overwritten.
The label an author stands by is the author's last event on the token. Which one counts:

    adjudicated > what more than half of the people say > the latest of people > the latest judge's

Labels of a repeat (an item asked twice) never count: they measure how steady a reviewer is.

    store.record_labels([LabelEvent(prompt_id=..., token_id=17, ...)])
    store.labels(prompt_id).by_token      # {17: "evil", ...}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, insert, select

from pivotal_tokens.schema import (
    AuthorKind,
    EffectiveLabel,
    Judgement,
    Label,
    LabelEvent,
    PromptLabels,
    Purpose,
    ReviewItem,
    TokenLabel,
    new_id,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.leases import require_lease


class LabelRows(Database):
    """Append-only label events, and the labels that follow from them."""

    def record_labels(
        self, events: Sequence[LabelEvent], *, item: ReviewItem | None = None
    ) -> None:
        """Add events, all or none; an event recorded before is not added again.

        Args:
            events: What changed.
            item: The queue item they answer: its lease must still be this one.

        Raises:
            LeaseLost: If somebody else holds the item now.
        """
        with self.writing() as connection:
            if item is not None:
                require_lease(connection, item)
            add_events(connection, events)

    def label_events(self, prompt_id: str, *, author: str | None = None) -> tuple[LabelEvent, ...]:
        """Every event of a prompt, oldest first; of one author if given."""
        with self.reading() as connection:
            events = events_of(connection, prompt_id)
        return tuple(event for event in events if author is None or event.author == author)

    def labels(self, prompt_id: str, *, judge: str | None = None) -> PromptLabels:
        """The labels that count for a prompt: a human's where there is one, else a judge's.

        Args:
            prompt_id: The whole id.
            judge: Take only this judge's labels; by default the latest of any judge.
        """
        with self.reading() as connection:
            return effective(prompt_id, events_of(connection, prompt_id), judge=judge)


def add_events(connection: Connection, events: Iterable[LabelEvent]) -> None:
    """Add events within a transaction."""
    for event in events:
        insert_new(connection, tables.label_events, _row(event), ["event_id"])


def _insert_fresh(connection: Connection, events: Iterable[LabelEvent]) -> None:
    """Add events whose ids were made just now, all in one statement."""
    if rows := [_row(event) for event in events]:
        connection.execute(insert(tables.label_events), rows)


def _row(event: LabelEvent) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "prompt_id": event.prompt_id,
        "token_id": event.token_id,
        "author": event.author,
        "author_kind": event.author_kind,
        "to_label": event.to_label,
        "purpose": event.purpose,
        "payload": event.model_dump_json(),
    }


def add_judgement_events(connection: Connection, judgement: Judgement) -> None:
    """Add an event for every label of a judgement that is not the judge's label already."""
    events = events_of(connection, judgement.prompt_id)
    before = {item.token_id: item.label for item in _standing(events, "judge", judgement.judge)}
    batch = new_id()
    _insert_fresh(
        connection,
        (
            LabelEvent(
                prompt_id=judgement.prompt_id,
                token_id=item.token_id,
                from_label=before.get(item.token_id),
                to_label=item.label,
                author=judgement.judge,
                author_kind="judge",
                batch=batch,
                at=judgement.created,
            )
            for item in judgement.labels
            if before.get(item.token_id) != item.label
        ),
    )


def events_of(connection: Connection, prompt_id: str) -> tuple[LabelEvent, ...]:
    """A prompt's events, oldest first, within a transaction."""
    query = (
        select(tables.label_events.c.payload)
        .where(tables.label_events.c.prompt_id == prompt_id)
        .order_by(tables.label_events.c.seq)
    )
    return tuple(map(LabelEvent.model_validate_json, connection.execute(query).scalars()))


def effective(
    prompt_id: str, events: Sequence[LabelEvent], *, judge: str | None = None
) -> PromptLabels:
    """The labels that count, from a prompt's events in order."""
    humans = tuple(_counting(votes) for votes in _votes(events).values())
    judges = _standing(events, "judge", judge)
    chosen = {item.token_id: item for item in (*judges, *humans)}  # a human's is set last
    return PromptLabels(
        prompt_id=prompt_id,
        labels=tuple(chosen[token] for token in sorted(chosen)),
        human=_plain(humans),
        judge=_plain(judges),
    )


def labels_by_author(
    events: Sequence[LabelEvent], kind: AuthorKind = "human", *, purpose: Purpose = "review"
) -> dict[str, dict[int, Label]]:
    """Author -> token id -> the label that the author stands by."""
    found: dict[str, dict[int, Label]] = {}
    for (token, author), event in _last_events(events, kind).get(purpose, {}).items():
        if event.to_label is not None:
            found.setdefault(author, {})[token] = event.to_label
    return found


def left_by_author(
    events: Sequence[LabelEvent], *, purpose: Purpose = "review"
) -> dict[str, frozenset[int]]:
    """Author -> the tokens that the author explicitly left without a label."""
    found: dict[str, set[int]] = {}
    for (token, author), event in _last_events(events, "human").get(purpose, {}).items():
        if event.left:
            found.setdefault(author, set()).add(token)
    return {author: frozenset(tokens) for author, tokens in found.items()}


def _last_events(
    events: Iterable[LabelEvent], kind: AuthorKind, author: str | None = None
) -> dict[Purpose, dict[tuple[int, str], LabelEvent]]:
    """Purpose -> (token, author) -> the last event, in the order of these last events."""
    latest: dict[Purpose, dict[tuple[int, str], LabelEvent]] = {}
    for event in events:
        if event.author_kind == kind and author in (None, event.author):
            of_purpose = latest.setdefault(event.purpose, {})
            of_purpose.pop((event.token_id, event.author), None)  # re-inserted: order is by last
            of_purpose[event.token_id, event.author] = event
    return latest


def _votes(events: Sequence[LabelEvent]) -> dict[int, list[LabelEvent]]:
    """Token id -> what people stand by, latest last; an adjudicator's alone where there is one."""
    latest = _last_events(events, "human")
    votes: dict[int, list[LabelEvent]] = {}
    for event in latest.get("review", {}).values():
        if event.to_label is not None:
            votes.setdefault(event.token_id, []).append(event)
    for event in latest.get("adjudication", {}).values():
        if event.to_label is not None:
            votes[event.token_id] = [event]
    return dict(sorted(votes.items()))


def _counting(votes: Sequence[LabelEvent]) -> EffectiveLabel:
    """The label of more than half of the votes, else of the latest."""
    last = votes[-1]
    for event in reversed(votes):
        if 2 * sum(other.to_label == event.to_label for other in votes) > len(votes):
            last = event
            break
    return _effective(last)


def _standing(
    events: Sequence[LabelEvent], kind: AuthorKind, author: str | None = None
) -> tuple[EffectiveLabel, ...]:
    """One label a token: the latest among those that their authors stand by."""
    latest = _last_events(events, kind, author).get("review", {})
    labels = {e.token_id: _effective(e) for e in latest.values() if e.to_label is not None}
    return tuple(labels[token] for token in sorted(labels))


def _effective(event: LabelEvent) -> EffectiveLabel:
    assert event.to_label is not None
    return EffectiveLabel(
        token_id=event.token_id,
        label=event.to_label,
        source=event.author_kind,
        author=event.author,
    )


def _plain(labels: Iterable[EffectiveLabel]) -> tuple[TokenLabel, ...]:
    return tuple(TokenLabel(token_id=item.token_id, label=item.label) for item in labels)
