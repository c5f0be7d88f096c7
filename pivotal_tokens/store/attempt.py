"""What is known about one prompt, and how far is the store as a whole?

store.attempt("44a7").pairs[0].next_tokens.merged.top
store.counts().flagged
"""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Table, func, select

from pivotal_tokens.schema import (
    HUMAN,
    Failed,
    Frozen,
    GraphRecord,
    Judgement,
    NextTokenPair,
    Verdict,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.labels import effective, events_of
from pivotal_tokens.store.prompts import find_prompt
from pivotal_tokens.store.queue import item_of
from pivotal_tokens.store.review_log import review_events_of
from pivotal_tokens.store.views import AttemptView, Counts, PairAttempt

_Value = TypeVar("_Value", bound=Frozen)
_BY_PAIR = (
    tables.next_tokens,
    tables.judgements,
    tables.verdicts,
    tables.queue,
    tables.graphs,
    tables.failures,
)


class AttemptRows(Database):
    """Questions over all tables, each answered as of one moment."""

    def attempt(self, prefix: str) -> AttemptView:
        """Everything about the prompt whose id begins with `prefix`.

        Raises:
            RequestError: If no prompt has it, or more than one.
        """
        with self.reading() as connection:
            prompt = find_prompt(connection, prefix)
            events = events_of(connection, prompt.prompt_id)
            pairs: set[str] = set()
            for table in _BY_PAIR:
                query = select(table.c.pair).where(table.c.prompt_id == prompt.prompt_id)
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

    def counts(self, pair: str | None = None) -> Counts:
        """How much there is of everything; `pair` narrows all but prompts and human labels."""
        verdicts, graphs = tables.verdicts, tables.graphs
        by_judge = verdicts.c.judge != HUMAN
        with self.reading() as connection:

            def count(table: Table, *where: ColumnElement[bool], what: Any = None) -> int:
                query = select(func.count() if what is None else what).select_from(table)
                return connection.execute(query.where(*where, *_of(table, pair))).scalar_one() or 0

            def by(column: Column, *where: ColumnElement[bool]) -> dict[str, int]:
                query = select(column, func.count()).group_by(column).order_by(column)
                rows = connection.execute(query.where(*where, *_of(column.table, pair)))
                return {name: number for name, number in rows}  # noqa: C416 - rows are no tuples

            return Counts(
                prompts=count(tables.prompts),
                next_tokens=count(tables.next_tokens),
                judgements=count(tables.judgements),
                verdicts=by(verdicts.c.kind, by_judge),
                flagged=count(verdicts, by_judge, verdicts.c.flagged),
                divergent=count(verdicts, by_judge, verdicts.c.divergent),
                human_verdicts=by(verdicts.c.kind, ~by_judge),
                queue=by(tables.queue.c.state),
                human_labelled=_human_labelled(connection),
                graphs=count(graphs),
                graph_bytes=count(graphs, what=func.sum(graphs.c.bytes)),
                failures=by(tables.failures.c.stage),
                unparsed=count(tables.unparsed),
                calls=by(tables.llm_calls.c.state),
                usd=float(count(tables.llm_calls, what=func.sum(tables.llm_calls.c.nano_usd)))
                / 1e9,
            )


def _of(table: Any, pair: str | None) -> list[ColumnElement[bool]]:
    return [] if pair is None or "pair" not in table.c else [table.c.pair == pair]


def _human_labelled(connection: Connection) -> int:
    events = tables.label_events
    last = (
        select(func.max(events.c.seq))
        .where(events.c.author_kind == "human", events.c.purpose != "repeat")
        .group_by(events.c.prompt_id, events.c.token_id, events.c.author)
    )
    query = select(func.count(events.c.prompt_id.distinct())).where(
        events.c.seq.in_(last), events.c.to_label.is_not(None)
    )
    return connection.execute(query).scalar_one()


def _pair_attempt(connection: Connection, prompt_id: str, pair: str) -> PairAttempt:
    def all_of(table: Table, kind: type[_Value], order: str) -> tuple[_Value, ...]:
        query = select(table.c.payload).order_by(table.c[order])
        query = query.where(table.c.prompt_id == prompt_id, table.c.pair == pair)
        return tuple(map(kind.model_validate_json, connection.execute(query).scalars()))

    verdicts, queue = tables.verdicts.c, tables.queue.c
    verdict_rows = connection.execute(
        select(verdicts.judge, verdicts.payload)
        .where(verdicts.prompt_id == prompt_id, verdicts.pair == pair)
        .order_by(verdicts.judge)
    )
    item = connection.execute(
        select(tables.queue).where(
            queue.prompt_id == prompt_id, queue.pair == pair, queue.seat == 0
        )
    ).one_or_none()
    lists = all_of(tables.next_tokens, NextTokenPair, "pair")
    return PairAttempt(
        pair=pair,
        next_tokens=lists[0] if lists else None,
        judgements=all_of(tables.judgements, Judgement, "judge"),
        verdicts={row.judge: Verdict.model_validate_json(row.payload) for row in verdict_rows},
        item=item_of(item) if item else None,
        graphs=all_of(tables.graphs, GraphRecord, "model"),
        failures=all_of(tables.failures, Failed, "stage"),
    )
