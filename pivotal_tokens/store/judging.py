"""What did judges say vote by vote, what could not be used, and what did people say to it?

store.votes(prompt_id, pair, judge)
store.human_labelled(pair)          # prompts with people's labels, and a judge's beside them
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select

from pivotal_tokens.schema import (
    Judgement,
    Label,
    LabelEvent,
    NextTokenPair,
    Prompt,
    Unparsed,
    Vote,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.labels import effective

_HUMAN = "human"  # of results.py, which stands above this file
_CHUNK = 500


@dataclass(frozen=True)
class HumanLabelled:
    """A prompt that people labelled, with the labels that the last judge gave."""

    prompt: Prompt
    lists: NextTokenPair
    human: dict[int, Label]  # of the tokens of both lists
    judge: dict[int, Label]
    note: str  # the last reason that a person gave; "" without one
    seen: frozenset[int] = frozenset()  # tokens labelled with a judge's label in view


class JudgingRows(Database):
    """Votes, unusable answers, and what a judge's labels are compared with."""

    def unparsed(self, pair: str | None = None) -> tuple[Unparsed, ...]:
        """Answers that could not be used, oldest first."""
        table = tables.unparsed
        query = select(table.c.payload).order_by(table.c.seq)
        if pair is not None:
            query = query.where(table.c.pair == pair)
        with self.reading() as connection:
            return tuple(map(Unparsed.model_validate_json, connection.execute(query).scalars()))

    def unparsed_count(self) -> int:
        """How many answers could not be used."""
        query = select(func.count()).select_from(tables.unparsed)
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def votes(
        self, prompt_id: str | None = None, *, pair: str | None = None, judge: str | None = None
    ) -> tuple[Vote, ...]:
        """Votes, oldest first."""
        table = tables.judge_votes
        query = select(table.c.payload).order_by(table.c.seq)
        wanted = {"prompt_id": prompt_id, "pair": pair, "judge": judge}
        for name, value in wanted.items():
            if value is not None:
                query = query.where(table.c[name] == value)
        with self.reading() as connection:
            return tuple(map(Vote.model_validate_json, connection.execute(query).scalars()))

    def judgements_of(
        self, prompt_ids: Iterable[str], pair: str, judge: str
    ) -> dict[str, Judgement]:
        """Prompt id -> what a judge said, of those prompts that it judged."""
        table = tables.judgements.c
        found: dict[str, Judgement] = {}
        with self.reading() as connection:
            for chunk in _chunks(list(prompt_ids)):
                query = select(table.prompt_id, table.payload).where(
                    table.pair == pair, table.judge == judge, table.prompt_id.in_(chunk)
                )
                for row in connection.execute(query):
                    found[row.prompt_id] = Judgement.model_validate_json(row.payload)
        return found

    def judgements(self, pair: str | None = None) -> tuple[Judgement, ...]:
        """Everything that judges said and that stands, by prompt and judge."""
        table = tables.judgements
        query = select(table.c.payload).order_by(table.c.prompt_id, table.c.judge)
        if pair is not None:
            query = query.where(table.c.pair == pair)
        with self.reading() as connection:
            return tuple(map(Judgement.model_validate_json, connection.execute(query).scalars()))

    def with_human_verdict(self, prompt_ids: Iterable[str], pair: str) -> set[str]:
        """Those of the prompts that have a reviewer's verdict."""
        table = tables.verdicts.c
        found: set[str] = set()
        with self.reading() as connection:
            for chunk in _chunks(list(prompt_ids)):
                query = select(table.prompt_id).where(
                    table.pair == pair, table.judge == _HUMAN, table.prompt_id.in_(chunk)
                )
                found.update(connection.execute(query).scalars())
        return found

    def divergent_count(self, judge: str, pair: str | None = None) -> int:
        """How many prompts have a divergent verdict under a judge's labels."""
        table = tables.verdicts
        query = select(func.count(table.c.prompt_id.distinct()))
        query = query.where(table.c.judge == judge, table.c.divergent)
        if pair is not None:
            query = query.where(table.c.pair == pair)
        with self.reading() as connection:
            return connection.execute(query).scalar_one()

    def human_labelled(self, pair: str) -> tuple[HumanLabelled, ...]:
        """Prompts with next tokens under a pair and at least one label of a person."""
        events, lists, prompts = tables.label_events, tables.next_tokens, tables.prompts
        by_people = select(events.c.prompt_id).where(events.c.author_kind == "human").distinct()
        query = (
            select(prompts.c.payload, lists.c.payload.label("lists"))
            .join(lists, lists.c.prompt_id == prompts.c.prompt_id)
            .where(lists.c.pair == pair, prompts.c.prompt_id.in_(by_people))
            .order_by(prompts.c.seq)
        )
        said = (
            select(events.c.prompt_id, events.c.payload)
            .where(events.c.prompt_id.in_(by_people))
            .order_by(events.c.seq)
        )
        with self.reading() as connection:
            rows = connection.execute(query).all()
            told: dict[str, list[LabelEvent]] = {}
            for row in connection.execute(said):
                told.setdefault(row.prompt_id, []).append(
                    LabelEvent.model_validate_json(row.payload)
                )
        found = (
            _labelled(
                Prompt.model_validate_json(row.payload),
                NextTokenPair.model_validate_json(row.lists),
                told,
            )
            for row in rows
        )
        return tuple(one for one in found if one.human)


def add_unparsed(connection: Connection, pair: str, answers: Sequence[Unparsed]) -> None:
    """Add answers that could not be used within a transaction."""
    rows = [
        {
            "prompt_id": answer.prompt_id,
            "pair": pair,
            "judge": answer.judge,
            "payload": answer.model_dump_json(),
        }
        for answer in answers
    ]
    if rows:
        connection.execute(insert(tables.unparsed), rows)


def add_votes(connection: Connection, pair: str, votes: Sequence[Vote]) -> None:
    """Add votes within a transaction."""
    rows = [
        {
            "prompt_id": vote.prompt_id,
            "pair": pair,
            "judge": vote.judge,
            "number": vote.number,
            "payload": vote.model_dump_json(),
        }
        for vote in votes
    ]
    if rows:
        connection.execute(insert(tables.judge_votes), rows)


def _labelled(
    prompt: Prompt, lists: NextTokenPair, told: dict[str, list[LabelEvent]]
) -> HumanLabelled:
    events = told.get(prompt.prompt_id, [])
    standing = effective(prompt.prompt_id, events)
    asked = set(lists.token_ids)
    last = {e.token_id: e for e in events if e.author_kind == "human"}
    reasons = [e.reason for e in events if e.author_kind == "human" and e.reason]
    return HumanLabelled(
        prompt=prompt,
        lists=lists,
        human={item.token_id: item.label for item in standing.human if item.token_id in asked},
        judge={item.token_id: item.label for item in standing.judge if item.token_id in asked},
        note=reasons[-1] if reasons else "",
        seen=frozenset(e.token_id for e in last.values() if e.judge_visible),
    )


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))
