"""How did the two models go on after an evil candidate?

store.put_rollouts([Rollout(...), ...])
store.rollouts(prompt_id, pair)
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import select

from pivotal_tokens.schema import Rollout
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import upsert

_KEYS = ["prompt_id", "pair", "model", "token_id", "sample", "judge"]


class RolloutRows(Database):
    """Sampled continuations and their labels."""

    def put_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Keep continuations in one transaction; the same sample again replaces it."""
        with self.writing() as connection:
            for item in rollouts:
                values = {name: getattr(item, name) for name in (*_KEYS, "label")}
                values["payload"] = item.model_dump_json()
                upsert(connection, tables.rollouts, values, _KEYS)

    def rollouts(
        self, prompt_id: str, pair: str, *, judge: str | None = None
    ) -> tuple[Rollout, ...]:
        """A prompt's continuations, by token, model and sample; of one judge if given."""
        columns = tables.rollouts.c
        query = (
            select(columns.payload)
            .where(columns.prompt_id == prompt_id, columns.pair == pair)
            .order_by(columns.token_id, columns.model, columns.sample, columns.judge)
        )
        if judge is not None:
            query = query.where(columns.judge == judge)
        with self.reading() as connection:
            return tuple(map(Rollout.model_validate_json, connection.execute(query).scalars()))
