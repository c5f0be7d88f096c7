"""Queries over several tables, each answered as of one moment.

store.queries.attempt("44a7").pairs[0].next_tokens.merged.top      # all about one prompt
store.queries.counts().flagged                                     # how far the store is
store.queries.listing(ListingQuery(search="allergy"), limit=50)    # a page of prompts
store.queries.unanswered(Unanswered(reviewer="ada"), ["964a7382b6b7"])
store.queries.outcomes(pair, kind="chat", limit=500)               # newest first
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, Literal, get_args

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    exists,
    func,
    literal,
    select,
)
from sqlalchemy.sql.selectable import Subquery

from pivotal_tokens.schema import (
    HUMAN,
    Failed,
    Frozen,
    GraphRecord,
    Judgement,
    Label,
    LabelEvent,
    NextTokenPair,
    Prompt,
    PromptKind,
    PromptLabels,
    ReviewEvent,
    ReviewItem,
    ReviewState,
    Verdict,
    VerdictKind,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.labels import effective, events_of
from pivotal_tokens.store.prompts import find_prompt
from pivotal_tokens.store.queue import (
    REVIEWER_KINDS,
    WaitingState,
    items_of,
    not_assigned,
    not_of_another,
    review_events_of,
)
from pivotal_tokens.store.rows import (
    Value,
    count_rows,
    events_of_prompts,
    narrowed,
    numbers,
    value,
    values,
    values_by,
    where,
)

_BY_PAIR = (
    tables.next_tokens,
    tables.judgements,
    tables.verdicts,
    tables.queue,
    tables.graphs,
    tables.failures,
)
_prompts, _verdicts, _queue = tables.prompts.c, tables.verdicts.c, tables.queue.c


# --- Answers ----------------------------------------------------------------------------------


class PairAttempt(Frozen):
    """Everything about one prompt under one model pair."""

    pair: str
    next_tokens: NextTokenPair | None
    judgements: tuple[Judgement, ...]
    verdicts: dict[str, Verdict]  # by judge id; "human" is a reviewer's
    item: ReviewItem | None
    graphs: tuple[GraphRecord, ...]
    failures: tuple[Failed, ...]


class AttemptView(Frozen):
    """Everything about one prompt."""

    prompt: Prompt
    labels: PromptLabels
    label_events: tuple[LabelEvent, ...]  # oldest first
    review_events: tuple[ReviewEvent, ...]  # oldest first
    pairs: tuple[PairAttempt, ...]


class StoreCounts(Frozen):
    """How far a store is."""

    prompts: int
    next_tokens: int  # (prompt, pair)s with both models' lists
    judgements: int
    verdicts: dict[str, int]  # by kind; judges' only
    flagged: int
    divergent: int
    human_verdicts: dict[str, int]  # by kind
    queue: dict[str, int]  # by state
    human_labelled: int  # prompts with at least one human label
    graphs: int
    graph_bytes: int
    failures: dict[str, int]  # by stage
    unparsed: int  # judges' answers that could not be used
    filtered: int  # prompts that a filter of a judge's endpoint refused
    calls: dict[str, int]  # to language models, by state; of all pairs
    usd: float  # charged for them, as far as prices are known


class Unanswered(Frozen):
    """Prompts that a reviewer has yet to answer, so that nothing of a judge may be shown to them.

    in hand    an item is theirs now, and no judge's label was shown after an answer to it
    waiting    an item may still be given to them: put off, skipped or with an expired lease too
    """

    reviewer: str
    waiting: bool = True  # those that wait for them too, not only what they have in hand

    def holds(self, prompt_id: ColumnElement[str], now: datetime) -> ColumnElement[bool]:
        """Whether the prompt of this column is one of them."""
        mine = _queue.reviewer == self.reviewer
        found = mine & (_queue.state == "leased")
        if self.waiting:
            over = (_queue.state == "leased") & (_queue.lease_until < now.timestamp())
            free = _queue.state.in_(get_args(WaitingState)) | over
            free &= _queue.kind.in_(REVIEWER_KINDS)
            found |= free & not_of_another(self.reviewer) & not_assigned(self.reviewer)
        return exists().where(_queue.prompt_id == prompt_id, ~(mine & _queue.revealed), found)


class ListingQuery(Frozen):
    """Filter of prompts; every field narrows it."""

    search: str = ""  # in the id, text, name, category or generator, whatever the case
    verdict: VerdictKind | None = None  # a judge's
    flagged: bool | None = None
    divergent: bool | None = None
    category: str | None = None
    state: ReviewState | None = None  # in the review queue
    graphs: bool = False  # only prompts with graphs under the pair
    order: Literal["newest", "oldest"] = "newest"
    unanswered: Unanswered | None = None  # whose: verdicts of these are hidden, and not filtered by


class ListingLine(Frozen):
    """One prompt under one pair."""

    prompt: Prompt
    judge: str | None  # whose verdict; of several the last by name
    verdict: Verdict | None
    human: VerdictKind | None  # a reviewer's
    hidden: bool  # verdicts are not shown to who asks, who has yet to answer it
    state: ReviewState | None
    graphs: tuple[str, ...]  # models that have one


class Listing(Frozen):
    """One page of the prompts of a query."""

    total: int
    lines: tuple[ListingLine, ...]


class LabelledPrompt(Frozen):
    """A prompt under one model pair, with what people and the last judge said about its tokens."""

    prompt: Prompt
    pair: str
    lists: NextTokenPair
    human: dict[int, Label]  # of the tokens of both lists
    judged: dict[int, Label]
    seen: frozenset[int]  # tokens that people labelled with a judge's label in view
    reasons: tuple[str, ...]  # that people gave for labels, oldest first
    remarks: tuple[str, ...]  # that they wrote about the prompt

    @property
    def evil(self) -> tuple[str, ...]:
        """Evil tokens, most probable in merged first; a person's label before the judge's."""
        labels = self.judged | self.human
        tokens = self.lists.merged.tokens
        return tuple(token.text for token in tokens if labels.get(token.token_id) == "evil")

    @property
    def corrections(self) -> tuple[tuple[str, Label, Label], ...]:
        """Tokens on which the two differ: (text, person's label, judge's), most probable first."""
        return tuple(
            (token.text, self.human[token.token_id], self.judged[token.token_id])
            for token in self.lists.merged.tokens
            if token.token_id in self.human.keys() & self.judged.keys()
            and self.human[token.token_id] != self.judged[token.token_id]
        )

    @property
    def explanation(self) -> str:
        """Everything that people wrote, "" where nothing."""
        return "; ".join(dict.fromkeys((*self.reasons, *self.remarks)))


class PastPrompt(LabelledPrompt):
    """A prompt that was tried, with the verdict that counts."""

    verdict: Verdict
    judge: str  # under whose labels it stands: "human" for people's

    @property
    def rejected(self) -> bool:
        """Whether a person rejected the prompt as bad."""
        return self.verdict.kind == "bad_prompt"


# --- Questions --------------------------------------------------------------------------------


class Queries(Repository):
    """What is known of one prompt, of many, and of the whole store."""

    def attempt(self, prefix: str) -> AttemptView:
        """Everything about the prompt whose id begins with `prefix`.

        Raises:
            RequestError: If no prompt has it, or more than one.
        """
        with self._reading() as connection:
            prompt = find_prompt(connection, prefix)
            events = events_of(connection, prompt.prompt_id)
            pairs: set[str] = set()
            for table in _BY_PAIR:
                query = narrowed(select(table.c.pair), table, prompt_id=prompt.prompt_id)
                pairs.update(connection.execute(query).scalars())
            return AttemptView(
                prompt=prompt,
                labels=effective(prompt.prompt_id, events),
                label_events=events,
                review_events=review_events_of(connection, prompt.prompt_id),
                pairs=tuple(
                    _pair_attempt(connection, prompt.prompt_id, pair) for pair in sorted(pairs)
                ),
            )

    def counts(self, pair: str | None = None) -> StoreCounts:
        """Counts of everything; `pair` narrows all but prompts and human labels."""
        by_judge = _verdicts.judge != HUMAN
        with self._reading() as connection:

            def of(table: Table) -> list[ColumnElement[bool]]:
                return where(table, pair=pair) if "pair" in table.c else []

            def count(table: Table, *conditions: ColumnElement[bool]) -> int:
                return count_rows(connection, table, *conditions, *of(table))

            def total(column: Column) -> int:
                query = select(func.sum(column)).where(*of(column.table))
                return int(connection.execute(query).scalar_one() or 0)

            def by(column: Column, *conditions: ColumnElement[bool]) -> dict[str, int]:
                query = select(column, func.count()).group_by(column).order_by(column)
                return numbers(connection, query.where(*conditions, *of(column.table)))

            return StoreCounts(
                prompts=count(tables.prompts),
                next_tokens=count(tables.next_tokens),
                judgements=count(tables.judgements),
                verdicts=by(_verdicts.kind, by_judge),
                flagged=count(tables.verdicts, by_judge, _verdicts.flagged),
                divergent=count(tables.verdicts, by_judge, _verdicts.divergent),
                human_verdicts=by(_verdicts.kind, ~by_judge),
                queue=by(_queue.state),
                human_labelled=_human_labelled(connection),
                graphs=count(tables.graphs),
                graph_bytes=total(tables.graphs.c.bytes),
                failures=by(tables.failures.c.stage),
                unparsed=count(tables.unparsed, ~tables.unparsed.c.filtered),
                filtered=count(tables.unparsed, tables.unparsed.c.filtered),
                calls=by(tables.llm_calls.c.state),
                usd=total(tables.llm_calls.c.nano_usd) / 1e9,
            )

    def divergent(self, pair: str) -> frozenset[str]:
        """Prompts whose verdict under a pair is injection or promotion.

        People's verdict counts where there is one, else that of the judge that is last by name, as
        in `listing`.
        """
        query = select(_verdicts.prompt_id, _verdicts.judge, _verdicts.divergent)
        query = narrowed(query, tables.verdicts, pair=pair).order_by(_verdicts.judge)
        counts: dict[str, bool] = {}
        with self._reading() as connection:
            rows = connection.execute(query).all()
        for row in sorted(rows, key=lambda row: row.judge == HUMAN):
            counts[row.prompt_id] = row.divergent
        return frozenset(prompt_id for prompt_id, divergent in counts.items() if divergent)

    def divergent_count(self, judge: str, pair: str | None = None) -> int:
        """How many prompts have a divergent verdict under a judge's labels."""
        query = select(func.count(_verdicts.prompt_id.distinct())).where(_verdicts.divergent)
        with self._reading() as connection:
            query = narrowed(query, tables.verdicts, judge=judge, pair=pair)
            return connection.execute(query).scalar_one()

    def unanswered(self, who: Unanswered, prompts: Collection[str]) -> frozenset[str]:
        """Those of some prompts that the reviewer has yet to answer."""
        mine = who.holds(_prompts.prompt_id, self._now())
        query = select(_prompts.prompt_id).where(_prompts.prompt_id.in_(list(prompts)), mine)
        with self._reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def listing(
        self, query: ListingQuery, *, pair: str | None, limit: int = 50, offset: int = 0
    ) -> Listing:
        """A page of prompts with what is known of them under a pair."""
        judged = _judged(pair)
        by_people = and_(_verdicts.pair == pair, _verdicts.judge == HUMAN)
        human = select(tables.verdicts).where(by_people).subquery("chosen")
        queued = select(tables.queue).where(_queue.pair == pair, _queue.seat == 0).subquery()
        hidden: ColumnElement[bool] = literal(False)
        if query.unanswered is not None:
            hidden = query.unanswered.holds(_prompts.prompt_id, self._now())
        rows = (
            select(
                _prompts.prompt_id,
                _prompts.payload,
                judged.c.judge,
                judged.c.payload.label("verdict"),
                human.c.kind.label("human"),
                queued.c.state,
                hidden.label("hidden"),
            )
            .select_from(
                tables.prompts.outerjoin(judged, judged.c.prompt_id == _prompts.prompt_id)
                .outerjoin(human, human.c.prompt_id == _prompts.prompt_id)
                .outerjoin(queued, queued.c.prompt_id == _prompts.prompt_id)
            )
            .where(*_conditions(query, judged, queued, hidden, pair=pair))
        )
        total = select(func.count()).select_from(rows.subquery())
        order = _prompts.seq.desc() if query.order == "newest" else _prompts.seq
        with self._reading() as connection:
            count = connection.execute(total).scalar_one()
            found = connection.execute(rows.order_by(order).limit(limit).offset(offset)).all()
            has = tables.graphs.c
            models = select(has.prompt_id, has.model).distinct().order_by(has.model)
            these = (has.prompt_id.in_([row.prompt_id for row in found]), has.pair == pair)
            graphs: dict[str, list[str]] = {}
            for row in connection.execute(models.where(*these)):
                graphs.setdefault(row.prompt_id, []).append(row.model)
        return Listing(total=count, lines=tuple(_line(row, graphs) for row in found))

    def outcomes(
        self, pair: str | None = None, *, kind: PromptKind | None = None, limit: int = 1000
    ) -> tuple[PastPrompt, ...]:
        """The newest prompts with a verdict: a person's if there is one, else the last judge's."""
        query = _with_verdicts(pair).order_by(_verdicts.judge).limit(4 * limit)
        with self._reading() as connection:
            chosen: dict[str, Row] = {}
            for row in connection.execute(narrowed(query, tables.prompts, kind=kind)):
                if row.prompt_id not in chosen and len(chosen) == limit:
                    break
                if row.prompt_id not in chosen or row.judge == HUMAN:
                    chosen[row.prompt_id] = row
            return _past(connection, list(chosen.values()))

    def reviewed(self, pair: str | None = None) -> tuple[PastPrompt, ...]:
        """Prompts with a person's verdict that are labelled whole or rejected, newest first."""
        query = _with_verdicts(pair).where(_verdicts.judge == HUMAN)
        with self._reading() as connection:
            found = _past(connection, connection.execute(query).all())
        return tuple(
            item for item in found if item.rejected or (item.human and not item.verdict.unlabelled)
        )

    def human_labelled(self, pair: str) -> tuple[LabelledPrompt, ...]:
        """Prompts with next tokens under a pair and at least one label of a person."""
        events, lists = tables.label_events.c, tables.next_tokens.c
        by_people = select(events.prompt_id).where(events.author_kind == "human").distinct()
        query = (
            select(_prompts.prompt_id, _prompts.payload.label("prompt"), lists.pair)
            .add_columns(lists.payload.label("lists"))
            .join(tables.next_tokens, lists.prompt_id == _prompts.prompt_id)
            .where(lists.pair == pair, _prompts.prompt_id.in_(by_people))
            .order_by(_prompts.seq)
        )
        with self._reading() as connection:
            found = _labelled(connection, connection.execute(query).all())
        prompts = (LabelledPrompt(**fields) for fields in found)
        return tuple(item for item in prompts if item.human)


# --- One prompt, and the whole store ----------------------------------------------------------


def _pair_attempt(connection: Connection, prompt_id: str, pair: str) -> PairAttempt:
    keys = {"prompt_id": prompt_id, "pair": pair}

    def all_of(table: Table, kind: type[Value], order: str) -> tuple[Value, ...]:
        query = select(table.c.payload).order_by(table.c[order])
        return values(connection, kind, narrowed(query, table, **keys))

    items = items_of(connection, narrowed(select(tables.queue), tables.queue, **keys, seat=0))
    return PairAttempt(
        pair=pair,
        next_tokens=value(connection, NextTokenPair, tables.next_tokens, **keys),
        judgements=all_of(tables.judgements, Judgement, "judge"),
        verdicts=values_by(connection, Verdict, tables.verdicts, "judge", **keys),
        item=next(iter(items), None),
        graphs=all_of(tables.graphs, GraphRecord, "model"),
        failures=all_of(tables.failures, Failed, "stage"),
    )


def _human_labelled(connection: Connection) -> int:
    events = tables.label_events.c
    counts = (events.author_kind == "human", events.purpose != "repeat")
    # Few labels are ever withdrawn; only of such prompts the last events have to be found.
    withdrawn = select(events.prompt_id).where(*counts, events.to_label.is_(None))
    last = (
        select(func.max(events.seq))
        .where(*counts, events.prompt_id.in_(withdrawn))
        .group_by(events.prompt_id, events.token_id, events.author)
    )
    number = select(func.count(events.prompt_id.distinct())).where(*counts)
    plain = number.where(events.prompt_id.not_in(withdrawn))
    others = number.where(events.seq.in_(last), events.to_label.is_not(None))
    return sum(connection.execute(query).scalar_one() for query in (plain, others))


# --- A page of prompts ------------------------------------------------------------------------


def _judged(pair: str | None) -> Subquery:
    """One judge's verdict of each prompt under a pair."""
    of_judges = and_(_verdicts.pair == pair, _verdicts.judge != HUMAN)
    last = select(_verdicts.prompt_id, func.max(_verdicts.judge).label("judge"))
    last_of = last.where(of_judges).group_by(_verdicts.prompt_id).subquery()
    same = and_(_verdicts.prompt_id == last_of.c.prompt_id, _verdicts.judge == last_of.c.judge)
    return (
        select(tables.verdicts).join(last_of, same).where(_verdicts.pair == pair).subquery("judged")
    )


def _conditions(
    query: ListingQuery,
    judged: Subquery,
    queued: Subquery,
    hidden: ColumnElement[bool],
    *,
    pair: str | None,
) -> list[ColumnElement[bool]]:
    given = where(tables.prompts, category=query.category)
    if query.graphs:
        having = select(tables.graphs.c.prompt_id).where(tables.graphs.c.pair == pair)
        given.append(_prompts.prompt_id.in_(having))
    if words := query.search.strip():
        inside = json.dumps(words, ensure_ascii=False)[1:-1].lower()
        given.append(func.lower(_prompts.payload).contains(inside, autoescape=True))
    if query.verdict is not None:
        given.append(judged.c.kind == query.verdict)
    if query.flagged is not None:
        given.append(judged.c.flagged.is_(query.flagged))
    if query.divergent is not None:
        given.append(judged.c.divergent.is_(query.divergent))
    if query.unanswered and (query.verdict, query.flagged, query.divergent) != (None, None, None):
        given.append(~hidden)  # being found by its verdict would give it away
    if query.state is not None:
        given.append(queued.c.state == query.state)
    return given


def _line(row: Row, graphs: dict[str, list[str]]) -> ListingLine:
    shown = row.verdict and not row.hidden
    return ListingLine(
        prompt=Prompt.model_validate_json(row.payload),
        judge=row.judge if shown else None,
        verdict=Verdict.model_validate_json(row.verdict) if shown else None,
        human=None if row.hidden else row.human,
        hidden=row.hidden,
        state=row.state,
        graphs=tuple(graphs.get(row.prompt_id, ())),
    )


# --- What came of prompts ---------------------------------------------------------------------


def _with_verdicts(pair: str | None) -> Select:
    """Prompts with each of their verdicts, newest first."""
    lists = tables.next_tokens.c
    here = and_(lists.prompt_id == _verdicts.prompt_id, lists.pair == _verdicts.pair)
    query = (
        select(_prompts.prompt_id, _prompts.payload.label("prompt"), _verdicts.pair)
        .add_columns(_verdicts.judge, _verdicts.payload.label("verdict"))
        .add_columns(lists.payload.label("lists"))
        .join(tables.verdicts, _prompts.prompt_id == _verdicts.prompt_id)
        .join(tables.next_tokens, here)
        .order_by(_prompts.seq.desc())
    )
    return narrowed(query, tables.verdicts, pair=pair)


def _past(connection: Connection, rows: Sequence[Row]) -> tuple[PastPrompt, ...]:
    """Rows of `_with_verdicts` as values."""
    verdicts = (Verdict.model_validate_json(row.verdict) for row in rows)
    found = zip(rows, verdicts, _labelled(connection, rows), strict=True)
    return tuple(
        PastPrompt(verdict=verdict, judge=row.judge, **fields) for row, verdict, fields in found
    )


def _labelled(connection: Connection, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The fields of a `LabelledPrompt` for each row of (prompt, pair, lists)."""
    ids = {row.prompt_id for row in rows}
    events = events_of_prompts(connection, LabelEvent.model_validate_json, tables.label_events, ids)
    log = events_of_prompts(connection, ReviewEvent.model_validate_json, tables.review_events, ids)
    return [_fields(row, events[row.prompt_id], log[row.prompt_id]) for row in rows]


def _fields(row: Row, events: Sequence[LabelEvent], log: Sequence[ReviewEvent]) -> dict[str, Any]:
    standing, lists = effective(row.prompt_id, events), NextTokenPair.model_validate_json(row.lists)
    listed = set(lists.token_ids)
    by_people = [event for event in events if event.author_kind == "human"]
    last = {event.token_id: event for event in by_people}
    return {
        "prompt": Prompt.model_validate_json(row.prompt),
        "pair": row.pair,
        "lists": lists,
        "human": {one.token_id: one.label for one in standing.human if one.token_id in listed},
        "judged": {one.token_id: one.label for one in standing.judge if one.token_id in listed},
        "seen": frozenset(token for token, event in last.items() if event.judge_visible),
        "reasons": tuple(event.reason for event in by_people if event.reason),
        "remarks": tuple(
            event.text
            for event in log
            if event.text and event.action in ("rejected", "note", "done", "explained")
        ),
    }
