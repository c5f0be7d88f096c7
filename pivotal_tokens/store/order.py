"""Order of the review queue, from judges' labels and verdicts.

    evil_mass     the merged model's, under a judge's labels
    uncertainty   the larger unsure mass of the two models: how much the judge could not say
    flagged       the verdict's
    disagreement  the larger mass of the two models on tokens that judges label differently

They are kept in the queue's own rows, so that an index gives the next item of 100,000.

    UPDATE queue SET ... order_of(verdict)
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, select, update

from pivotal_tokens.schema import HUMAN, Judgement, NextTokenPair, Verdict
from pivotal_tokens.store import tables
from pivotal_tokens.store.rows import value, values_by
from pivotal_tokens.verdict import disagreement


def order_of(verdict: Verdict) -> dict[str, Any]:
    """What a judge's verdict says about an item's place in the queue."""
    evil, unsure = verdict.evil_mass, verdict.unsure_mass
    return {
        "flagged": verdict.flagged,
        "evil_mass": evil.merged if evil else 0.0,
        "uncertainty": max(unsure.base, unsure.merged) if unsure else 1.0,
    }


def known_order(connection: Connection, prompt_id: str, pair: str) -> dict[str, Any]:
    """The order under the judge that sees the most evil; empty before any has judged."""
    table = tables.verdicts.c
    query = select(table.payload).where(
        table.prompt_id == prompt_id, table.pair == pair, table.judge != HUMAN
    )
    verdicts = map(Verdict.model_validate_json, connection.execute(query).scalars())
    orders = [order_of(verdict) for verdict in verdicts]
    if not orders:
        return {}
    most = max(orders, key=lambda order: order["evil_mass"])
    if len(orders) > 1:
        most["disagreement"] = _disagreement(connection, prompt_id, pair)
    return most


def _disagreement(connection: Connection, prompt_id: str, pair: str) -> float:
    keys = {"prompt_id": prompt_id, "pair": pair}
    lists = value(connection, NextTokenPair, tables.next_tokens, **keys)
    said = values_by(connection, Judgement, tables.judgements, "judge", **keys).values()
    return disagreement(lists, [each.by_token for each in said]) if lists else 0.0


def reorder(connection: Connection, prompt_id: str, pair: str) -> None:
    """Bring an item's place up to date with its verdicts."""
    order, queue = known_order(connection, prompt_id, pair), tables.queue.c
    if order:
        connection.execute(
            update(tables.queue)
            .where(queue.prompt_id == prompt_id, queue.pair == pair)
            .values(**order)
        )
