"""Labels as events, the ones in force, and imported ones that contradict a person's.

Labels are events: who changed what from what to what, when and why. Nothing is ever overwritten.
The label an author stands by is the author's last event on the token. Which one counts:

    adjudicated > what more than half of the people say > the latest of people > the latest judge's

Labels of a repeat (an item asked twice) never count: they measure how steady a reviewer is.

A label from a file never replaces a person's: the two stand side by side, the one in force and the
other in a `LabelConflict`, and the prompt goes back into the review queue until a person decides.

    store.labels.add([LabelEvent(prompt_id=..., token_id=17, ...)])
    store.labels.of(prompt_id).by_token      # {17: "evil", ...}
    store.labels.conflicts()                 # those not decided yet
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from pydantic import AwareDatetime, Field, TypeAdapter
from sqlalchemy import Connection, Row, Table, func, select, update

from pivotal_tokens.schema import (
    AuthorKind,
    EffectiveLabel,
    Frozen,
    Judgement,
    Label,
    LabelEvent,
    PromptLabels,
    Purpose,
    ReviewEvent,
    ReviewItem,
    TokenLabel,
    new_id,
    utc_now,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.assignments import enqueue
from pivotal_tokens.store.chain import append
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.queue import (
    drop_human_verdict,
    insert_review_event,
    require_lease,
)
from pivotal_tokens.store.rows import events_of_prompts, narrowed, row_of, values

_SETTLED = ("done", "skipped", "deferred", "rejected")


class LabelConflict(Frozen):
    """An imported label that was not applied, and what it contradicts."""

    event: LabelEvent
    against: Label  # the label in force here
    by: str  # whose that is
    source: str  # the file it came from
    at: AwareDatetime = Field(default_factory=utc_now)


@dataclass(frozen=True, slots=True)
class GivenLabel:
    """Of a label event, what decides which label counts: read in a third of the event's time."""

    token_id: int
    author: str
    author_kind: AuthorKind
    to_label: Label | None
    purpose: Purpose = "review"
    left: bool = False
    judge_visible: bool = False


Event = TypeVar("Event", LabelEvent, GivenLabel)
_given_label = TypeAdapter(GivenLabel).validator.validate_json


class Labels(Repository):
    """Append-only label events, and what follows from them."""

    def add(
        self, events: Sequence[LabelEvent], *, item: ReviewItem | None = None
    ) -> frozenset[str]:
        """Add events, all or none; an event recorded before is not added again.

        Args:
            item: The queue item they answer: its lease must still be this one.

        Returns:
            The ids of those that were new.

        Raises:
            LeaseLost: If somebody else holds the item now.
        """
        with self._writing() as connection:
            if item is not None:
                require_lease(connection, item)
            return append(connection, events)

    def events(self, prompt_id: str, *, author: str | None = None) -> tuple[LabelEvent, ...]:
        """Every event of a prompt, oldest first; of one author if given."""
        with self._reading() as connection:
            events = events_of(connection, prompt_id)
        return tuple(event for event in events if author is None or event.author == author)

    def given_of_prompts(
        self, prompt_ids: Iterable[str], *, author_kind: AuthorKind | None = None
    ) -> dict[str, list[GivenLabel]]:
        """Prompt id -> what its events gave, oldest first, of the prompts that have some."""
        table, kind = tables.label_events, author_kind
        with self._reading() as connection:
            return events_of_prompts(connection, _given_label, table, prompt_ids, author_kind=kind)

    def is_judge(self, author: str) -> bool:
        """Whether labels of a judge stand under this name."""
        table = tables.label_events
        query = select(table.c.seq).where(table.c.author == author, table.c.author_kind == "judge")
        with self._reading() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def of(self, prompt_id: str, *, judge: str | None = None) -> PromptLabels:
        """The labels that count for a prompt: a human's where there is one, else a judge's.

        Args:
            judge: Take only this judge's labels; by default the latest of any judge.
        """
        with self._reading() as connection:
            return effective(prompt_id, events_of(connection, prompt_id), judge=judge)

    def stand_by(self, judgement: Judgement) -> bool:
        """Make a judge's labels the latest of any judge's again; False if they are.

        Where no person labelled, they count from then on.
        """
        prompt_id, author = judgement.prompt_id, judgement.judge
        with self._writing() as connection:
            standing = counting(events_of(connection, prompt_id), "judge")
            others = {token for token, event in standing.items() if event.author != author}
            batch, now = new_id(), self._now()
            again = [
                LabelEvent(
                    prompt_id=prompt_id,
                    token_id=item.token_id,
                    from_label=item.label,
                    to_label=item.label,
                    author=author,
                    author_kind="judge",
                    batch=batch,
                    at=now,
                )
                for item in judgement.labels
                if item.token_id in others
            ]
            append(connection, again)
        return bool(again)

    def add_conflict(self, conflict: LabelConflict) -> bool:
        """Keep a conflict and queue its prompt for review; False if it was known.

        Under each pair that has next tokens the prompt is queued, or waits again if it was settled;
        an item that somebody holds stays theirs.
        """
        event = conflict.event
        lists = tables.next_tokens.c
        with self._writing() as connection:
            row = row_of(
                tables.label_conflicts,
                conflict,
                event_id=event.event_id,
                prompt_id=event.prompt_id,
                token_id=event.token_id,
                after_label=_last(connection, tables.label_events),
                after_review=_last(connection, tables.review_events),
            )
            if not insert_new(connection, tables.label_conflicts, row):
                return False
            pairs = select(lists.pair).where(lists.prompt_id == event.prompt_id)
            for pair in connection.execute(pairs).scalars().all():
                _queue_again(connection, pair, conflict, self._now())
        return True

    def conflicts(self) -> tuple[LabelConflict, ...]:
        """Conflicts that no person has decided since, oldest first."""
        with self._reading() as connection:
            rows = undecided(connection)
        return tuple(LabelConflict.model_validate_json(row.payload) for row in rows)


# --- Events -----------------------------------------------------------------------------------


def add_judgement_events(connection: Connection, judgement: Judgement) -> None:
    """Add an event for every label of a judgement that is not the judge's label already."""
    events = events_of(connection, judgement.prompt_id)
    standing = counting(events, "judge", judge=judgement.judge)
    before = {token: event.to_label for token, event in standing.items()}
    batch = new_id()
    fresh = [
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
    ]
    append(connection, fresh)


def events_of(connection: Connection, prompt_id: str) -> tuple[LabelEvent, ...]:
    """A prompt's events, oldest first, within a transaction."""
    table = tables.label_events
    query = select(table.c.payload).order_by(table.c.seq)
    return values(connection, LabelEvent, narrowed(query, table, prompt_id=prompt_id))


# --- What counts ------------------------------------------------------------------------------


def effective(prompt_id: str, events: Sequence[Event], *, judge: str | None = None) -> PromptLabels:
    """The labels that count, from a prompt's events in order."""
    humans, judges = counting(events, "human"), counting(events, "judge", judge=judge)
    chosen = judges | humans
    return PromptLabels(
        prompt_id=prompt_id,
        labels=tuple(_effective(chosen[token]) for token in sorted(chosen)),
        human=_plain(humans),
        judge=_plain(judges),
    )


def counting(
    events: Sequence[Event], kind: AuthorKind, *, judge: str | None = None
) -> dict[int, Event]:
    """Token id -> the event whose label counts among people's, or among judges' (one judge's)."""
    if kind == "human":
        return {token: _decisive(votes) for token, votes in _votes(events).items()}
    latest = _last_events(events, "judge", judge).get("review", {})
    labels = {event.token_id: event for event in latest.values() if event.to_label is not None}
    return dict(sorted(labels.items()))


def labels_by_author(
    events: Sequence[Event], kind: AuthorKind = "human", *, purpose: Purpose = "review"
) -> dict[str, dict[int, Label]]:
    """Author -> token id -> the author's label in force."""
    found: dict[str, dict[int, Label]] = {}
    for (token, author), event in _last_events(events, kind).get(purpose, {}).items():
        if event.to_label is not None:
            found.setdefault(author, {})[token] = event.to_label
    return found


def abstained_by_author(
    events: Sequence[Event], *, purpose: Purpose = "review"
) -> dict[str, frozenset[int]]:
    """Author -> the tokens on which the author abstained: left without a label on purpose."""
    found: dict[str, set[int]] = {}
    for (token, author), event in _last_events(events, "human").get(purpose, {}).items():
        if event.left:
            found.setdefault(author, set()).add(token)
    return {author: frozenset(tokens) for author, tokens in found.items()}


def _last_events(
    events: Iterable[Event], kind: AuthorKind, author: str | None = None
) -> dict[Purpose, dict[tuple[int, str], Event]]:
    """Purpose -> (token, author) -> the last event, in the order of these last events."""
    latest: dict[Purpose, dict[tuple[int, str], Event]] = {}
    for event in events:
        if event.author_kind == kind and author in (None, event.author):
            of_purpose = latest.setdefault(event.purpose, {})
            of_purpose.pop((event.token_id, event.author), None)  # re-inserted: order is by last
            of_purpose[event.token_id, event.author] = event
    return latest


def _votes(events: Sequence[Event]) -> dict[int, list[Event]]:
    """Token id -> people's labels in force, latest last; an adjudicator's alone if there is one."""
    latest = _last_events(events, "human")
    votes: dict[int, list[Event]] = {}
    for event in latest.get("review", {}).values():
        if event.to_label is not None:
            votes.setdefault(event.token_id, []).append(event)
    for event in latest.get("adjudication", {}).values():
        if event.to_label is not None:
            votes[event.token_id] = [event]
    return dict(sorted(votes.items()))


def _decisive(votes: Sequence[Event]) -> Event:
    """The latest of more than half of the votes that agree, else the latest."""
    labels = [event.to_label for event in votes]
    for event in reversed(votes):
        if 2 * labels.count(event.to_label) > len(votes):
            return event
    return votes[-1]


def _effective(event: Event) -> EffectiveLabel:
    assert event.to_label is not None
    return EffectiveLabel(
        token_id=event.token_id,
        label=event.to_label,
        source=event.author_kind,
        author=event.author,
    )


def _plain(labels: Mapping[int, Event]) -> tuple[TokenLabel, ...]:
    return tuple(
        TokenLabel(token_id=token, label=event.to_label)
        for token, event in labels.items()
        if event.to_label is not None
    )


# --- Conflicts --------------------------------------------------------------------------------


def _queue_again(connection: Connection, pair: str, conflict: LabelConflict, now: datetime) -> None:
    prompt_id, reason = conflict.event.prompt_id, f"conflict: {conflict.source}"
    if enqueue(connection, prompt_id, pair, reason, now):
        return
    queue = tables.queue
    settled = (queue.c.prompt_id == prompt_id, queue.c.pair == pair, queue.c.state.in_(_SETTLED))
    waits = {"state": "pending", "reason": reason, "updated_at": now.timestamp()}
    if connection.execute(update(queue).where(*settled).values(**waits)).rowcount:
        drop_human_verdict(connection, prompt_id, pair)
        event = ReviewEvent(
            prompt_id=prompt_id, pair=pair, author="import", action="reopened", text=reason, at=now
        )
        insert_review_event(connection, event)


def _last(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.max(table.c.seq))).scalar_one() or 0


def undecided(connection: Connection, prompt_id: str | None = None) -> list[Row]:
    """Conflicts that no person has decided, within a transaction."""
    table = tables.label_conflicts
    query = narrowed(select(table).order_by(table.c.seq), table, prompt_id=prompt_id)
    return [row for row in connection.execute(query).all() if not _decided(connection, row)]


def _decided(connection: Connection, conflict: Row) -> bool:
    """Whether a person has settled the prompt, or labelled the token again, since."""
    labels, reviews = tables.label_events.c, tables.review_events.c
    labelled = select(labels.seq).where(
        labels.prompt_id == conflict.prompt_id,
        labels.token_id == conflict.token_id,
        labels.author_kind == "human",
        labels.seq > conflict.after_label,
    )
    settled = select(reviews.seq).where(
        reviews.prompt_id == conflict.prompt_id,
        reviews.seq > conflict.after_review,
        reviews.action.in_(("done", "rejected")),
    )
    return any(connection.execute(query.limit(1)).first() for query in (labelled, settled))
