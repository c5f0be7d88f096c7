"""What did the models, the judges and the rule say about a prompt, and what failed?

Rows are keyed by (prompt id, pair[, judge | stage]). Putting the same content again changes
nothing; other content under the same key replaces it, because the graph's own logits win over a
screening's, and a verdict follows them. Labels are never replaced: a judgement adds events.

    store.put_next_tokens(prompt_id, pair, base, merged)
    store.put_judgement(pair, judgement)
    store.put_verdict(prompt_id, pair, judgement.judge, verdict)
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Row, Table, delete, select

from pivotal_tokens.schema import HUMAN, Failed, Judgement, NextTokenPair, NextTokens, Verdict
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import upsert
from pivotal_tokens.store.labels import add_judgement_events
from pivotal_tokens.store.order import reorder


class ResultRows(Database):
    """Next tokens, judgements, verdicts and failures."""

    def put_next_tokens(
        self, prompt_id: str, pair: str, base: NextTokens, merged: NextTokens
    ) -> bool:
        """Keep both models' lists; False if exactly these were there."""
        both = NextTokenPair(base=base, merged=merged)
        with self.writing() as connection:
            return put_next_tokens(connection, prompt_id, pair, both)

    def next_tokens(self, prompt_id: str, pair: str) -> NextTokenPair | None:
        """Both models' lists, or None where the models were not asked yet."""
        with self.reading() as connection:
            row = _get(connection, tables.next_tokens, prompt_id=prompt_id, pair=pair)
        return NextTokenPair.model_validate_json(row.payload) if row else None

    def put_judgement(self, pair: str, judgement: Judgement) -> bool:
        """Keep a judgement, and a label event for each label that differs from the judge's last.

        Returns:
            False if the judge had given exactly these labels and reasons before.
        """
        with self.writing() as connection:
            if not put_judgement(connection, pair, judgement):
                return False
            add_judgement_events(connection, judgement)
        return True

    def judgement(self, prompt_id: str, pair: str, judge: str) -> Judgement | None:
        """What a judge said, or None where it was not asked yet or its answer could not be used."""
        with self.reading() as connection:
            row = _get(connection, tables.judgements, prompt_id=prompt_id, pair=pair, judge=judge)
        return Judgement.model_validate_json(row.payload) if row else None

    def put_verdict(self, prompt_id: str, pair: str, judge: str, verdict: Verdict) -> bool:
        """Keep the verdict that follows from a judge's labels; False if it was there."""
        with self.writing() as connection:
            return put_verdict(connection, prompt_id, pair, judge, verdict)

    def verdict(self, prompt_id: str, pair: str, judge: str) -> Verdict | None:
        """The verdict under a judge's labels ("human": a reviewer's), or None."""
        with self.reading() as connection:
            row = _get(connection, tables.verdicts, prompt_id=prompt_id, pair=pair, judge=judge)
        return Verdict.model_validate_json(row.payload) if row else None

    def verdicts(self, prompt_id: str, pair: str) -> dict[str, Verdict]:
        """Judge id -> verdict, of one prompt under one pair."""
        table = tables.verdicts
        query = select(table.c.judge, table.c.payload).order_by(table.c.judge)
        query = query.where(*_where(table, prompt_id=prompt_id, pair=pair))
        with self.reading() as connection:
            rows = connection.execute(query).all()
        return {row.judge: Verdict.model_validate_json(row.payload) for row in rows}

    def fail(self, prompt_id: str, pair: str, stage: str, error: str) -> Failed:
        """Record that a stage failed on a prompt; a repeated failure counts up its attempts."""
        key = {"prompt_id": prompt_id, "pair": pair, "stage": stage}
        with self.writing() as connection:
            row = _get(connection, tables.failures, **key)
            before = Failed.model_validate_json(row.payload).attempts if row else 0
            failed = Failed(**key, error=error, attempts=before + 1, at=self.now())
            _put(connection, tables.failures, key, {"payload": failed.model_dump_json()})
        return failed

    def failures(
        self, *, prompt_id: str | None = None, pair: str | None = None, stage: str | None = None
    ) -> tuple[Failed, ...]:
        """What failed and was not cleared since."""
        query = select(tables.failures.c.payload)
        wanted = {"prompt_id": prompt_id, "pair": pair, "stage": stage}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(tables.failures.c[name] == value)
        columns = tables.failures.c
        query = query.order_by(columns.prompt_id, columns.pair, columns.stage)
        with self.reading() as connection:
            return tuple(map(Failed.model_validate_json, connection.execute(query).scalars()))

    def clear_failure(self, prompt_id: str, pair: str, stage: str) -> None:
        """Forget a failure: the stage succeeded since."""
        with self.writing() as connection:
            connection.execute(
                delete(tables.failures).where(
                    *_where(tables.failures, prompt_id=prompt_id, pair=pair, stage=stage)
                )
            )


def put_next_tokens(connection: Connection, prompt_id: str, pair: str, both: NextTokenPair) -> bool:
    """Keep both models' lists within a transaction; False if exactly these were there."""
    key = {"prompt_id": prompt_id, "pair": pair}
    return _put(connection, tables.next_tokens, key, {"payload": both.model_dump_json()})


def put_judgement(connection: Connection, pair: str, judgement: Judgement) -> bool:
    """Keep a judgement within a transaction, without label events; False if it was there."""
    key = {"prompt_id": judgement.prompt_id, "pair": pair, "judge": judgement.judge}
    row = _get(connection, tables.judgements, **key)
    if row and _same(Judgement.model_validate_json(row.payload), judgement):
        return False
    return _put(connection, tables.judgements, key, {"payload": judgement.model_dump_json()})


def put_verdict(
    connection: Connection, prompt_id: str, pair: str, judge: str, verdict: Verdict
) -> bool:
    """Keep a verdict within a transaction; False if it was there."""
    new = _put(
        connection,
        tables.verdicts,
        {"prompt_id": prompt_id, "pair": pair, "judge": judge},
        {
            "kind": verdict.kind,
            "flagged": verdict.flagged,
            "divergent": verdict.divergent,
            "payload": verdict.model_dump_json(),
        },
    )
    if new and judge != HUMAN:
        reorder(connection, prompt_id, pair)
    return new


def drop_human_verdict(connection: Connection, prompt_id: str, pair: str) -> None:
    """Take back a reviewer's verdict: its item is open again."""
    connection.execute(
        delete(tables.verdicts).where(
            *_where(tables.verdicts, prompt_id=prompt_id, pair=pair, judge=HUMAN)
        )
    )


def _put(
    connection: Connection, table: Table, key: Mapping[str, str], rest: Mapping[str, object]
) -> bool:
    row = _get(connection, table, **key)
    if row is not None and row.payload == rest["payload"]:
        return False
    upsert(connection, table, {**key, **rest}, list(key))
    return True


def _get(connection: Connection, table: Table, **key: str) -> Row | None:
    return connection.execute(select(table).where(*_where(table, **key))).one_or_none()


def _where(table: Table, **key: str) -> list:
    return [table.c[name] == value for name, value in key.items()]


def _same(one: Judgement, other: Judgement) -> bool:
    return one.model_copy(update={"created": other.created}) == other
