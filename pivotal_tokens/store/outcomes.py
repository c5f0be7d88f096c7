"""What came of the prompts that were tried, and what did people say about them?

store.outcomes(pair, kind="chat", limit=500)      # newest first
store.reviewed(pair)                              # fully labelled by people, newest first
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import ColumnElement, Connection, select

from pivotal_tokens.schema import (
    HUMAN,
    Frozen,
    Judgement,
    Label,
    NextTokenPair,
    Prompt,
    PromptKind,
    ReviewEvent,
    Verdict,
)
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.labels import effective, events_of
from pivotal_tokens.store.review_log import review_events_of
from pivotal_tokens.store.screening import chunks


class Outcome(Frozen):
    """One attempt: the prompt, the verdict that counts, and the tokens that made it."""

    prompt: Prompt
    verdict: Verdict
    judge: str  # "human" where a person's verdict stands
    summary: str
    evil: tuple[tuple[str, float], ...]  # evil tokens and their probability in merged, most first


class ReviewedToken(Frozen):
    """A token that a person labelled, and what the judge had said."""

    text: str
    probability: float  # in merged
    human: Label
    judge: Label | None


class Reviewed(Frozen):
    """A prompt that people labelled whole, or rejected."""

    prompt: Prompt
    verdict: Verdict
    tokens: tuple[ReviewedToken, ...]  # most probable in merged first
    explanation: str  # what they wrote, "" where nothing

    @property
    def corrections(self) -> tuple[ReviewedToken, ...]:
        """Tokens on which the person and the judge differ."""
        return tuple(t for t in self.tokens if t.judge is not None and t.judge != t.human)

    @property
    def rejected(self) -> bool:
        """A person called the prompt bad."""
        return self.verdict.kind == "bad_prompt"


class OutcomeRows(Database):
    """Attempts with their verdicts, for those who write the next prompts."""

    def outcomes(
        self, pair: str | None = None, *, kind: PromptKind | None = None, limit: int = 1000
    ) -> tuple[Outcome, ...]:
        """The newest prompts with a verdict: a person's where there is one, else the last judge's.

        Args:
            pair: Of this pair of models only.
            kind: Of this kind of prompt only.
            limit: At most so many prompts.
        """
        prompts, verdicts = tables.prompts.c, tables.verdicts.c
        where: list[ColumnElement[bool]] = []
        if pair is not None:
            where.append(verdicts.pair == pair)
        if kind is not None:
            where.append(prompts.kind == kind)
        query = (
            select(
                prompts.payload.label("prompt"),
                verdicts.prompt_id,
                verdicts.pair,
                verdicts.judge,
                verdicts.payload,
            )
            .join(tables.prompts, prompts.prompt_id == verdicts.prompt_id)
            .where(*where)
            .order_by(prompts.seq.desc(), verdicts.judge)
            .limit(4 * limit)
        )
        with self.reading() as connection:
            chosen: dict[str, object] = {}
            for row in connection.execute(query):
                if row.prompt_id not in chosen and len(chosen) == limit:
                    break
                if row.prompt_id not in chosen or row.judge == HUMAN:
                    chosen[row.prompt_id] = row
            return tuple(_outcome(connection, row) for row in chosen.values())

    def verdicts_of(self, prompt_ids: Iterable[str], pair: str, judge: str) -> dict[str, Verdict]:
        """Prompt id -> verdict under a judge, of those prompts that have one."""
        columns = tables.verdicts.c
        found: dict[str, Verdict] = {}
        with self.reading() as connection:
            for chunk in chunks(list(prompt_ids)):
                query = select(columns.prompt_id, columns.payload).where(
                    columns.pair == pair, columns.judge == judge, columns.prompt_id.in_(chunk)
                )
                for row in connection.execute(query):
                    found[row.prompt_id] = Verdict.model_validate_json(row.payload)
        return found

    def reviewed(self, pair: str | None = None) -> tuple[Reviewed, ...]:
        """Prompts with a person's verdict that are labelled whole or rejected, newest first."""
        prompts, verdicts = tables.prompts.c, tables.verdicts.c
        query = (
            select(prompts.payload.label("prompt"), verdicts.pair, verdicts.payload)
            .join(tables.prompts, prompts.prompt_id == verdicts.prompt_id)
            .where(verdicts.judge == HUMAN)
            .order_by(prompts.seq.desc())
        )
        if pair is not None:
            query = query.where(verdicts.pair == pair)
        with self.reading() as connection:
            found = [_reviewed(connection, row) for row in connection.execute(query).all()]
        return tuple(
            item for item in found if item.rejected or (item.tokens and not item.verdict.unlabelled)
        )


def _outcome(connection: Connection, row: object) -> Outcome:
    prompt = Prompt.model_validate_json(row.prompt)  # type: ignore[attr-defined]
    pair, judge = row.pair, row.judge  # type: ignore[attr-defined]
    labels = effective(prompt.prompt_id, events_of(connection, prompt.prompt_id)).by_token
    lists = _lists(connection, prompt.prompt_id, pair)
    evil = [t for t in lists.merged.tokens if labels.get(t.token_id) == "evil"] if lists else []
    return Outcome(
        prompt=prompt,
        verdict=Verdict.model_validate_json(row.payload),  # type: ignore[attr-defined]
        judge=judge,
        summary=_summary(connection, prompt.prompt_id, pair, judge),
        evil=tuple((t.text, t.probability) for t in evil),
    )


def _reviewed(connection: Connection, row: object) -> Reviewed:
    prompt = Prompt.model_validate_json(row.prompt)  # type: ignore[attr-defined]
    events = events_of(connection, prompt.prompt_id)
    labels = effective(prompt.prompt_id, events)
    judge = {item.token_id: item.label for item in labels.judge}
    human = {item.token_id: item.label for item in labels.human}
    lists = _lists(connection, prompt.prompt_id, row.pair)  # type: ignore[attr-defined]
    said = [e.reason for e in events if e.author_kind == "human" and e.reason]
    said += [e.text for e in _written(review_events_of(connection, prompt.prompt_id)) if e.text]
    return Reviewed(
        prompt=prompt,
        verdict=Verdict.model_validate_json(row.payload),  # type: ignore[attr-defined]
        tokens=tuple(
            ReviewedToken(
                text=t.text,
                probability=t.probability,
                human=human[t.token_id],
                judge=judge.get(t.token_id),
            )
            for t in (lists.merged.tokens if lists else ())
            if t.token_id in human
        ),
        explanation="; ".join(dict.fromkeys(said)),
    )


def _written(events: tuple[ReviewEvent, ...]) -> list[ReviewEvent]:
    return [event for event in events if event.action in ("rejected", "note", "done")]


def _lists(connection: Connection, prompt_id: str, pair: str) -> NextTokenPair | None:
    table = tables.next_tokens.c
    query = select(table.payload).where(table.prompt_id == prompt_id, table.pair == pair)
    payload = connection.execute(query).scalar_one_or_none()
    return NextTokenPair.model_validate_json(payload) if payload else None


def _summary(connection: Connection, prompt_id: str, pair: str, judge: str) -> str:
    table = tables.judgements.c
    query = select(table.payload).where(
        table.prompt_id == prompt_id, table.pair == pair, table.judge == judge
    )
    payload = connection.execute(query).scalar_one_or_none()
    return Judgement.model_validate_json(payload).summary if payload else ""
