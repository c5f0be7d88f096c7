"""Intake of files into a store, with nothing lost and nothing replaced.

- What is here stays: a prompt, a judgement, a verdict of the file is taken where there is none.
- A label event that is here already, by its id, is a duplicate; so is a bare statement (a record
  without an event id) of the label by which its author stands.
- A person's label that contradicts a person's label of this store is a conflict: kept apart and
  its prompt queued for review, never applied. An event that goes on from its author's own label
  (`from_label` is that label) is no conflict with that author: it is the same history.
- What cannot be used (an unknown token, a prompt that is not here, a value that no store takes) is
  left out and named, row by row: records = added + duplicates + conflicts + left out.
- Histories of review come in with the labels, a prompt in one transaction: an item is never
  finished here without the labels that finished it.

    report = import_labels(store, read_records(Path("labels.csv")), source="labels.csv")
    report.added, report.duplicates, report.conflicts, report.left_out
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels.records import Incoming, check_fields, incoming
from pivotal_tokens.review.consensus import conclude
from pivotal_tokens.schema import (
    Frozen,
    Judgement,
    Label,
    LabelEvent,
    NextTokenPair,
    Prompt,
    Purpose,
    Verdict,
    unstorable,
)
from pivotal_tokens.store import Store
from pivotal_tokens.store.history import ReviewHistory, Taken
from pivotal_tokens.store.labels import LabelConflict
from pivotal_tokens.table_files import BadRow, LeftOut, Row

_MARKS = " Ġ▁"
"""What stands for the space before a word, by tokenizer."""

TokenOf = Callable[[str], int | None]
"""A token's text -> its id, where a tokenizer is at hand."""


class ImportReport(Frozen):
    """What became of the records of an import."""

    records: int
    prompts: int  # new ones
    added: int
    duplicates: int
    conflicts: int  # new ones, now queued
    reviews: int = 0  # assignments finished, rejected or put off now as they were elsewhere
    reviews_kept: int = 0  # assignments of which something else is known here, and stays
    left_out: tuple[LeftOut, ...]


def import_labels(
    store: Store,
    records: Iterable[Row],
    *,
    source: str,
    author: str | None = None,
    token_of: TokenOf | None = None,
) -> ImportReport:
    """Take flat records of labels in.

    Args:
        source: Names the file in conflicts.
        author: Whose labels they are where a record does not say.
        token_of: Finds the id of a token text that the prompt's lists do not have.

    Raises:
        RequestError: If the records have an unknown field, two for one fact, or lack a needed one;
            nothing was written.
    """
    rows = list(records)
    check_fields([(w, one) for w, one in rows if not isinstance(one, BadRow)], author=author)
    intake = Intake(store, source, token_of=token_of)
    for where, record in rows:
        intake.label(where, record, author=author)
    return intake.finish()


class Intake:
    """Import of one file into a store; labels and reviews are written when it finishes."""

    def __init__(self, store: Store, source: str, *, token_of: TokenOf | None = None) -> None:
        self._store = store
        self._source = source
        self._token_of = token_of
        self._labels: dict[str, list[Incoming]] = defaultdict(list)
        self._histories: dict[str, ReviewHistory] = {}
        self._left_out: list[LeftOut] = []
        self._counts: Counter[str] = Counter()

    def pair(self, pair: str, description: Mapping[str, str]) -> None:
        """Import what a model pair stands for."""
        if pair not in self._store.results.pairs():
            self._store.results.put_pair(pair, description)

    def prompt(self, prompt: Prompt) -> None:
        """Take a prompt.

        Raises:
            ValueError: If it could not be read back.
        """
        if why := unstorable(prompt):
            raise ValueError(why)
        self._counts["prompts"] += self._store.prompts.add(prompt)

    def next_tokens(self, prompt_id: str, pair: str, lists: NextTokenPair) -> None:
        """Take both models' lists."""
        results = self._store.results
        if results.next_tokens(prompt_id, pair) is None:
            results.put_next_tokens(prompt_id, pair, lists.base, lists.merged)

    def judgement(self, pair: str, judgement: Judgement) -> None:
        """Take what a judge said."""
        results = self._store.results
        if results.judgement(judgement.prompt_id, pair, judgement.judge) is None:
            results.put_judgement(pair, judgement)

    def verdict(self, prompt_id: str, pair: str, judge: str, verdict: Verdict) -> None:
        """Take the verdict under a judge's labels."""
        if self._store.results.verdict(prompt_id, pair, judge) is None:
            self._store.results.put_verdict(prompt_id, pair, judge, verdict)

    def label(
        self, where: str, record: Mapping[str, Any] | BadRow, *, author: str | None = None
    ) -> None:
        """Take a flat record of a label, at the end; see `records.incoming`."""
        self._counts["records"] += 1
        if isinstance(record, BadRow):
            self._leave(where, record.why)
            return
        try:
            one = incoming(record, where, author=author)
        except RequestError as error:
            self._leave(where, str(error))
        else:
            self._labels[one.prompt_id].append(one)

    def history(self, history: ReviewHistory) -> None:
        """Take what people did with a prompt besides labelling tokens, at the end."""
        self._histories[history.prompt_id] = history

    @contextmanager
    def usable(self, where: str, what: str) -> Iterator[None]:
        """Leave a thing out, and name it, where it cannot be used."""
        try:
            yield
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            self.leave_out(where, f"no usable {what}: {error}")

    def leave_out(self, where: str, why: str) -> None:
        """Name something that is no record of a label and cannot be used."""
        self._counts["records"] += 1
        self._leave(where, why)

    def _leave(self, where: str, why: str) -> None:
        plain = " ".join(why.removeprefix(f"{where}: ").split())
        self._left_out.append(LeftOut(where=where, why=plain))

    def finish(self) -> ImportReport:
        """Take labels and reviews in, a prompt in one transaction."""
        store, counts = self._store, self._counts
        read = [one for several in self._labels.values() for one in several]
        prompts = {one.prompt_id: one.prompt for one in read if one.prompt is not None}
        counts["prompts"] += len(store.prompts.add_all(prompts.values()))
        reviews = {i: one for i, one in self._histories.items() if store.prompts.has(i)}
        store.histories.queue(reviews.values())
        for prompt_id in dict.fromkeys((*self._labels, *reviews)):
            several = self._labels.get(prompt_id, [])
            if not store.prompts.has(prompt_id):
                why = f"no prompt {prompt_id} here and no prompt_text"
                for one in several:
                    self._leave(one.where, why)
                continue
            events = self._events(prompt_id, several)
            with store.batch():
                self._take_prompt(prompt_id, events, reviews.get(prompt_id))
        counted = ImportReport.model_fields.keys() - {"left_out"}
        totals = {name: counts[name] for name in counted}
        return ImportReport(left_out=tuple(self._left_out), **totals)

    def _events(
        self, prompt_id: str, several: Iterable[Incoming]
    ) -> list[tuple[Incoming, LabelEvent]]:
        """The records of a prompt as events, their tokens found."""
        ids: dict[str, set[int]] = defaultdict(set)
        for known, text in self._store.results.token_texts(prompt_id).items():
            ids[text].add(known)
        events = []
        for one in several:
            try:
                events.append((one, one.as_event(self._token(one, ids))))
            except ValueError as error:
                self._leave(one.where, str(error))
        return events

    def _token(self, one: Incoming, ids: Mapping[str, set[int]]) -> int:
        """The id of the token that a record is about.

        Args:
            ids: Text -> ids, over the prompt's lists; empty where no model has seen it.

        Raises:
            ValueError: If there is no such token, or it has another text.
        """
        token, text = one.token_id, one.token_text or ""
        if token is not None:
            texts = {known for known, several in ids.items() if token in several}
            if ids and not texts and not one.has_id:
                raise ValueError(f"token {token} is in no list of this prompt")
            if text and texts and text.strip(_MARKS) not in {t.strip(_MARKS) for t in texts}:
                raise ValueError(f"token {token} is {min(texts)!a} here, not {text!a}")
            return token
        if len(ids.get(text, ())) == 1:
            (token,) = ids[text]
        if token is None and self._token_of is not None:
            token = self._token_of(text)
        if token is None:
            raise ValueError(
                f"which token is {one.token_text!a}? its lists are not here, or have it twice"
            )
        return token

    def _take_prompt(
        self,
        prompt_id: str,
        events: list[tuple[Incoming, LabelEvent]],
        history: ReviewHistory | None,
    ) -> None:
        store = self._store
        taken = Taken((), {}, 0) if history is None else store.histories.take(history)
        merge = _Merge(store.labels.events(prompt_id))
        for one, event in events:  # the number of an item of another queue says nothing here
            item_id = None if event.item_id is None else taken.ids.get(event.item_id)
            merge.take(one, event.model_copy(update={"item_id": item_id}))
        new = store.labels.add([event for _, event in merge.accepted])
        elsewhere = [one for one, event in merge.accepted if event.event_id not in new]
        for one in (*merge.clashing, *elsewhere):
            self._leave(one.where, f"event_id {one.event['event_id']!a} is another label's")
        conflicts = sum(
            store.labels.add_conflict(
                LabelConflict(
                    event=event, against=against, by=by, source=self._source, at=store.now()
                )
            )
            for event, against, by in merge.contradicting
        )
        if history is not None:
            # People's verdict, where there was one, from the labels that stand here now.
            for item in {one.pair: one for one in taken.items if one.kind != "repeat"}.values():
                verdict = history.verdicts.get(item.pair)
                if verdict and store.results.next_tokens(prompt_id, item.pair) is not None:
                    conclude(store, item, verdict.thresholds)
        self._counts += Counter(
            added=len(new),
            duplicates=merge.duplicates + len(merge.contradicting) - conflicts,
            conflicts=conflicts,
            reviews=len(taken.items),
            reviews_kept=taken.left_alone,
        )


_Key = tuple[Purpose, int, str]


def _key(event: LabelEvent) -> _Key:
    """Whose answer an event is: a repeat or an adjudication is another than the first."""
    return event.purpose, event.token_id, event.author


class _Merge:
    """Sorts one prompt's incoming events into accepted, duplicate and contradicting."""

    def __init__(self, here: Iterable[LabelEvent]) -> None:
        self.accepted: list[tuple[Incoming, LabelEvent]] = []
        self.clashing: list[Incoming] = []  # with the event id of another label
        self.contradicting: list[tuple[LabelEvent, Label, str]] = []
        self.duplicates = 0
        self._by_id: dict[str, LabelEvent] = {}
        self._before: dict[int, dict[str, Label]] = defaultdict(dict)  # people's, of this store
        self._standing: dict[_Key, Label | None] = {}
        self._refused: set[_Key] = set()
        for event in here:
            self._by_id[event.event_id] = event
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
        known = self._by_id.setdefault(event.event_id, event)
        if known is not event and (_key(known), known.to_label) != (key, event.to_label):
            self.clashing.append(one)
            return
        if known is not event or repeats:
            self.duplicates += 1
            return
        counts = event.author_kind == "human" and event.purpose != "repeat"
        if counts and (against := self._against(event, standing)):
            self._refused.add(key)
            self.contradicting.append((event, *against))
            return
        if not one.has_id and event.from_label != standing:
            event = event.model_copy(update={"from_label": standing})
        self._standing[key] = event.to_label
        self.accepted.append((one, event))

    def _against(self, event: LabelEvent, standing: Label | None) -> tuple[Label, str] | None:
        """The label of a person that contradicts it, and its author."""
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
