"""How do labels from a file come into a store without a label being lost or replaced?

- An event that is here already, by its id, is a duplicate; so is a bare statement (a record
  without an event id) of the label by which its author stands.
- A person's label that contradicts a person's label of this store is a conflict: kept apart and
  its prompt queued for review, never applied. An event that goes on from its author's own label
  (`from_label` is that label) is no conflict with that author: it is the same history.
- What cannot be read (an unknown token text, a prompt that is not here) is left out and named.
- Histories of review come in with the labels, a prompt in one transaction: an item is never
  finished here without the labels that finished it.

    report = import_labels(store, read_records(Path("labels.csv")), source="labels.csv")
    report.added, report.duplicates, report.conflicts, report.left_out
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.records import Incoming, incoming
from pivotal_tokens.review.consensus import conclude
from pivotal_tokens.schema import Frozen, Label, LabelEvent, Purpose
from pivotal_tokens.store import Store
from pivotal_tokens.store.history import ReviewHistory, Taken
from pivotal_tokens.store.labels import LabelConflict

TokenOf = Callable[[str], int | None]
"""A token's text -> its id, where a tokenizer is at hand."""


class LeftOut(Frozen):
    """A record that was not imported, and why."""

    where: str
    why: str


class ImportReport(Frozen):
    """What became of the records of an import."""

    records: int
    prompts: int  # new ones
    added: int
    duplicates: int
    conflicts: int  # new ones, now queued
    reviews: int = 0  # seats that are finished, rejected or put off now as they were elsewhere
    reviews_kept: int = 0  # seats of which something else is known here, and stays
    left_out: tuple[LeftOut, ...]


def import_labels(
    store: Store,
    records: Iterable[tuple[str, dict[str, Any]]],
    *,
    source: str,
    author: str | None = None,
    token_of: TokenOf | None = None,
    histories: Iterable[ReviewHistory] = (),
) -> ImportReport:
    """Take records in.

    Args:
        store: Where they go.
        records: Each with where it stands in the file.
        source: Names the file in conflicts.
        author: Whose labels they are where a record does not say.
        token_of: Finds the id of a token text that the prompt's lists do not have.
        histories: What people did with prompts of the file, besides labelling tokens.

    Raises:
        RequestError: If a record has an unknown field or lacks a needed one; nothing was written.
    """
    read = [incoming(record, where, author=author) for where, record in records]
    prompts = {one.prompt_id: one.prompt for one in read if one.prompt is not None}
    new = store.prompts.add_all(prompts.values())
    by_prompt: dict[str, list[Incoming]] = defaultdict(list)
    for one in read:
        by_prompt[one.prompt_id].append(one)
    reviews = {one.prompt_id: one for one in histories if store.prompts.has(one.prompt_id)}
    store.histories.queue(reviews.values())
    left_out: list[LeftOut] = []
    counts: Counter[str] = Counter()
    for prompt_id in dict.fromkeys((*by_prompt, *reviews)):
        several = by_prompt.get(prompt_id, [])
        if not store.prompts.has(prompt_id):
            why = f"no prompt {prompt_id} here and no prompt_text"
            left_out += [LeftOut(where=one.where, why=why) for one in several]
            continue
        events = _resolved(store, prompt_id, several, token_of, left_out)
        with store.batch():
            counts += _of_prompt(store, events, source, reviews.get(prompt_id), prompt_id)
    return ImportReport(
        records=len(read),
        prompts=len(new),
        added=counts["added"],
        duplicates=counts["duplicates"],
        conflicts=counts["conflicts"],
        reviews=counts["reviews"],
        reviews_kept=counts["reviews_kept"],
        left_out=tuple(left_out),
    )


def _of_prompt(
    store: Store,
    events: list[tuple[Incoming, LabelEvent]],
    source: str,
    history: ReviewHistory | None,
    prompt_id: str,
) -> Counter[str]:
    """Take one prompt's labels in, and what people did with it."""
    taken = Taken((), {}, 0) if history is None else store.histories.take(history)
    sorted_out = _Merge(store.labels.events(prompt_id))
    for one, event in events:  # the number of an item of another queue says nothing here
        item_id = None if event.item_id is None else taken.ids.get(event.item_id)
        sorted_out.take(one, event.model_copy(update={"item_id": item_id}))
    store.labels.add(sorted_out.accepted)
    conflicts = sum(
        store.labels.add_conflict(
            LabelConflict(event=event, against=against, by=by, source=source, at=store.now())
        )
        for event, against, by in sorted_out.contradicting
    )
    if history is not None:
        _conclude(store, history, taken)
    return Counter(
        added=len(sorted_out.accepted),
        duplicates=sorted_out.duplicates + len(sorted_out.contradicting) - conflicts,
        conflicts=conflicts,
        reviews=len(taken.items),
        reviews_kept=taken.kept,
    )


def _conclude(store: Store, history: ReviewHistory, taken: Taken) -> None:
    """People's verdict, where there was one, from the labels that stand here now."""
    for item in {item.pair: item for item in taken.items if item.kind != "repeat"}.values():
        verdict = history.verdicts.get(item.pair)
        if verdict is not None and store.results.next_tokens(item.prompt_id, item.pair) is not None:
            conclude(store, item, verdict.thresholds)


def _resolved(
    store: Store,
    prompt_id: str,
    several: list[Incoming],
    token_of: TokenOf | None,
    left_out: list[LeftOut],
) -> list[tuple[Incoming, LabelEvent]]:
    ids: dict[str, set[int]] = defaultdict(set)
    for known, text in store.results.token_texts(prompt_id).items():
        ids[text].add(known)
    events = []
    for one in several:
        token: int | None = one.token_id
        if token is None:
            token = _only(ids.get(one.token_text or "", set()))
        if token is None and token_of is not None:
            token = token_of(one.token_text or "")
        if token is None:
            why = f"which token is {one.token_text!r}? its lists are not here, or have it twice"
            left_out.append(LeftOut(where=one.where, why=why))
            continue
        try:
            events.append((one, one.as_event(token)))
        except RequestError as error:
            left_out.append(LeftOut(where=one.where, why=str(error).partition(": ")[2]))
    return events


def _only(several: set[int]) -> int | None:
    return next(iter(several)) if len(several) == 1 else None


_Key = tuple[Purpose, int, str]


def _key(event: LabelEvent) -> _Key:
    """Whose answer an event is: a repeat or an adjudication is another than the first."""
    return event.purpose, event.token_id, event.author


class _Merge:
    """Sorts one prompt's incoming events into accepted, duplicate and contradicting."""

    def __init__(self, here: Iterable[LabelEvent]) -> None:
        self.accepted: list[LabelEvent] = []
        self.contradicting: list[tuple[LabelEvent, Label, str]] = []
        self.duplicates = 0
        self._ids: set[str] = set()
        self._before: dict[int, dict[str, Label]] = defaultdict(dict)  # people's, of this store
        self._standing: dict[_Key, Label | None] = {}
        self._refused: set[_Key] = set()
        for event in here:
            self._ids.add(event.event_id)
            self._standing[_key(event)] = event.to_label
            if event.author_kind == "human" and event.purpose != "repeat":
                own = self._before[event.token_id]
                own.pop(event.author, None)
                if event.to_label is not None:
                    own[event.author] = event.to_label

    def take(self, one: Incoming, event: LabelEvent) -> None:
        key = _key(event)
        standing = self._standing.get(key)
        repeats = not one.has_id and key in self._standing and standing == event.to_label
        if event.event_id in self._ids or repeats:
            self.duplicates += 1
            return
        self._ids.add(event.event_id)
        counts = event.author_kind == "human" and event.purpose != "repeat"
        if counts and (against := self._against(event, standing)):
            self._refused.add(key)
            self.contradicting.append((event, *against))
            return
        if not one.has_id and event.from_label != standing:
            event = event.model_copy(update={"from_label": standing})
        self._standing[key] = event.to_label
        self.accepted.append(event)

    def _against(self, event: LabelEvent, standing: Label | None) -> tuple[Label, str] | None:
        """The label of a person that stands against it, and whose that is."""
        if _key(event) in self._refused:  # what follows a refused event is refused with it
            others = self._before[event.token_id]
            author = next(iter(others), event.author)
            return others.get(author, standing or event.to_label or "unsure"), author
        goes_on = event.from_label == standing
        if standing is not None and not goes_on and event.to_label != standing:
            return standing, event.author
        for author, label in self._before[event.token_id].items():
            if author != event.author and event.to_label not in (None, label):
                return label, author
        return None
