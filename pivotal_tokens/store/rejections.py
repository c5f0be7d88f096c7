"""Which proposed prompts were turned away, and by which rule?

store.add_round(prompts, [Rejection(text="...", rule="length", ...)])
store.rejection_counts()      # {"length": 3}
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import func, select

from pivotal_tokens.schema import Prompt, Rejection
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.prompts import insert_prompt


class RejectionRows(Database):
    """Proposals that no model run was spent on."""

    def add_round(self, prompts: Iterable[Prompt], rejections: Iterable[Rejection]) -> int:
        """Keep what came of asking a generator once, in one transaction.

        Returns:
            How many of the rejections were new.
        """
        new = 0
        with self.writing() as connection:
            for prompt in prompts:
                insert_prompt(connection, prompt)
            for item in rejections:
                values = {
                    "text_id": item.text_id,
                    "generator": item.generator,
                    "rule": item.rule,
                    "payload": item.model_dump_json(),
                }
                keys = ["text_id", "generator", "rule"]
                new += insert_new(connection, tables.rejections, values, keys)
        return new

    def rejections(self, *, limit: int | None = None) -> tuple[Rejection, ...]:
        """Rejections, newest first."""
        query = select(tables.rejections.c.payload).order_by(tables.rejections.c.seq.desc())
        with self.reading() as connection:
            rows = connection.execute(query.limit(limit)).scalars()
            return tuple(map(Rejection.model_validate_json, rows))

    def rejection_counts(self) -> dict[str, int]:
        """Rule -> proposals that broke it first."""
        rule = tables.rejections.c.rule
        query = select(rule, func.count()).group_by(rule).order_by(rule)
        with self.reading() as connection:
            return {name: number for name, number in connection.execute(query)}  # noqa: C416
