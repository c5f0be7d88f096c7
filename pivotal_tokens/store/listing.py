"""Which prompts are there, a page of them at a time, each with what became of it?

found = store.listing(ListingQuery(search="allergy", verdict="injection"), limit=50)
found.total, found.lines[0].verdict.evil_mass
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Literal

from sqlalchemy import ColumnElement, Row, Select, and_, func, literal, select
from sqlalchemy.sql.selectable import Subquery

from pivotal_tokens.schema import Frozen, Prompt, ReviewState, Verdict, VerdictKind
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.results import HUMAN
from pivotal_tokens.store.unanswered import Unanswered

Order = Literal["newest", "oldest"]

_prompts, _verdicts, _queue = tables.prompts.c, tables.verdicts.c, tables.queue.c


class ListingQuery(Frozen):
    """Which prompts are wanted; every field narrows."""

    search: str = ""  # in the id, text, name, category or generator, whatever the case
    verdict: VerdictKind | None = None  # a judge's
    flagged: bool | None = None
    divergent: bool | None = None
    category: str | None = None
    state: ReviewState | None = None  # in the review queue
    graphs: bool = False  # only prompts with graphs under the pair
    order: Order = "newest"
    unanswered: Unanswered | None = None  # for whom: no verdict of these is told, or filtered by


class ListingLine(Frozen):
    """One prompt under one pair."""

    prompt: Prompt
    judge: str | None  # whose verdict; of several the last by name
    verdict: Verdict | None
    human: VerdictKind | None  # a reviewer's
    hidden: bool  # verdicts are not told to who asks, who has yet to answer it
    state: ReviewState | None
    graphs: tuple[str, ...]  # models that have one


class Listing(Frozen):
    """Some of the prompts that were asked for."""

    total: int
    lines: tuple[ListingLine, ...]


class ListingRows(Database):
    """Questions about many prompts at once."""

    def listing(
        self, query: ListingQuery, *, pair: str | None, limit: int = 50, offset: int = 0
    ) -> Listing:
        """A page of prompts with what is known of them under a pair."""
        judged, chosen = _judged(pair), _human(pair)
        hidden = _hidden(query, self.now())
        queued = select(tables.queue).where(_queue.pair == pair, _queue.seat == 0).subquery()
        rows = (
            select(
                _prompts.prompt_id,
                _prompts.payload,
                judged.c.judge,
                judged.c.payload.label("verdict"),
                chosen.c.kind.label("human"),
                queued.c.state,
                hidden.label("hidden"),
            )
            .select_from(
                tables.prompts.outerjoin(judged, judged.c.prompt_id == _prompts.prompt_id)
                .outerjoin(chosen, chosen.c.prompt_id == _prompts.prompt_id)
                .outerjoin(queued, queued.c.prompt_id == _prompts.prompt_id)
            )
            .where(*_conditions(query, judged, queued, hidden, pair=pair))
        )
        order = _prompts.seq.desc() if query.order == "newest" else _prompts.seq
        with self.reading() as connection:
            total = connection.execute(_count(rows)).scalar_one()
            found = connection.execute(rows.order_by(order).limit(limit).offset(offset)).all()
            ids = [row.prompt_id for row in found]
            graphs: dict[str, list[str]] = {}
            for prompt_id, model in connection.execute(_graphs(ids, pair)):
                graphs.setdefault(prompt_id, []).append(model)
        return Listing(total=total, lines=tuple(_line(row, graphs) for row in found))

    def categories(self) -> tuple[str, ...]:
        """Every category of a prompt, sorted."""
        column = _prompts.category
        query = select(column).where(column.is_not(None)).distinct().order_by(column)
        with self.reading() as connection:
            return tuple(connection.execute(query).scalars())

    def busiest_pair(self) -> str | None:
        """The model pair that has seen most prompts; None where none has seen any."""
        column = tables.next_tokens.c.pair
        query = select(column).group_by(column).order_by(func.count().desc(), column).limit(1)
        with self.reading() as connection:
            return connection.execute(query).scalar_one_or_none()


def _judged(pair: str | None) -> Subquery:
    """One judge's verdict of each prompt under a pair."""
    of_judges = and_(_verdicts.pair == pair, _verdicts.judge != HUMAN)
    last = select(_verdicts.prompt_id, func.max(_verdicts.judge).label("judge"))
    last_of = last.where(of_judges).group_by(_verdicts.prompt_id).subquery()
    same = and_(_verdicts.prompt_id == last_of.c.prompt_id, _verdicts.judge == last_of.c.judge)
    return (
        select(tables.verdicts).join(last_of, same).where(_verdicts.pair == pair).subquery("judged")
    )


def _human(pair: str | None) -> Subquery:
    where = and_(_verdicts.pair == pair, _verdicts.judge == HUMAN)
    return select(tables.verdicts).where(where).subquery("chosen")


def _hidden(query: ListingQuery, now: datetime) -> ColumnElement[bool]:
    if query.unanswered is None:
        return literal(False)
    return query.unanswered.holds(_prompts.prompt_id, now)


def _conditions(
    query: ListingQuery,
    judged: Subquery,
    queued: Subquery,
    hidden: ColumnElement[bool],
    *,
    pair: str | None,
) -> list[ColumnElement]:
    given: list[ColumnElement] = []
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
        given.append(~hidden)  # to be found by its verdict would tell it
    if query.category is not None:
        given.append(_prompts.category == query.category)
    if query.state is not None:
        given.append(queued.c.state == query.state)
    return given


def _count(rows: Select) -> Select:
    return select(func.count()).select_from(rows.subquery())


def _graphs(ids: list[str], pair: str | None) -> Select:
    columns = tables.graphs.c
    query = select(columns.prompt_id, columns.model).distinct().order_by(columns.model)
    return query.where(columns.prompt_id.in_(ids), columns.pair == pair)


def _line(row: Row, graphs: dict[str, list[str]]) -> ListingLine:
    told = row.verdict and not row.hidden
    return ListingLine(
        prompt=Prompt.model_validate_json(row.payload),
        judge=row.judge if told else None,
        verdict=Verdict.model_validate_json(row.verdict) if told else None,
        human=None if row.hidden else row.human,
        hidden=row.hidden,
        state=row.state,
        graphs=tuple(graphs.get(row.prompt_id, ())),
    )
