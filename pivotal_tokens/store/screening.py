"""How do the results of many prompts get into the store with one flush to the disk?

A transaction costs a flush, about 20 ms; a model answers for a prompt in a few. So a batch is
written whole, in one transaction: killed before its end, none of it was; after it, all is.

    store.put_screened(pair, [Screened(prompt, next_tokens), ...])
    store.put_judged(pair, [JudgedPrompt(...), ...])
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, select, update

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, JudgedPrompt, Judgement, NextTokenPair, Prompt, Unparsed
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.judging import add_unparsed, add_votes
from pivotal_tokens.store.labels import add_judgement_events
from pivotal_tokens.store.prompts import insert_prompt
from pivotal_tokens.store.results import put_judgement, put_next_tokens, put_verdict
from pivotal_tokens.store.seats import draw_control, queue_prompt

_CHUNK = 500  # ids in one query; databases limit the number of parameters


class Screened(Frozen):
    """A prompt with its token ids, and what both models would say next."""

    prompt: Prompt
    next_tokens: NextTokenPair
    new: bool = True  # the models were asked now


class ScreeningRows(Database):
    """Next tokens and verdicts of many prompts at once."""

    def put_screened(self, pair: str, screened: Sequence[Screened]) -> None:
        """Keep prompts, their token ids and both lists, in one transaction.

        Raises:
            RequestError: If a prompt has other token ids already; nothing was written.
        """
        with self.writing() as connection:
            for item in screened:
                insert_prompt(connection, item.prompt)
                _put_token_ids(connection, item.prompt)
                put_next_tokens(connection, item.prompt.prompt_id, pair, item.next_tokens)
            ids = [item.prompt.prompt_id for item in screened]
            _clear_failures(connection, ids, pair, "next_tokens")

    def screened(self, prompt_ids: Iterable[str], pair: str) -> dict[str, NextTokenPair]:
        """Prompt id -> both lists, of those prompts that were screened."""
        table = tables.next_tokens.c
        found: dict[str, NextTokenPair] = {}
        with self.reading() as connection:
            for chunk in chunks(list(prompt_ids)):
                query = select(table.prompt_id, table.payload).where(
                    table.pair == pair, table.prompt_id.in_(chunk)
                )
                for row in connection.execute(query):
                    found[row.prompt_id] = NextTokenPair.model_validate_json(row.payload)
        return found

    def prompts_of(self, prompt_ids: Iterable[str]) -> dict[str, Prompt]:
        """Prompt id -> prompt as stored, of those that are there."""
        table = tables.prompts.c
        found: dict[str, Prompt] = {}
        with self.reading() as connection:
            for chunk in chunks(list(prompt_ids)):
                query = select(table.prompt_id, table.payload).where(table.prompt_id.in_(chunk))
                for row in connection.execute(query):
                    found[row.prompt_id] = Prompt.model_validate_json(row.payload)
        return found

    def put_judged(self, pair: str, judged: Sequence[JudgedPrompt]) -> None:
        """Keep judgements, votes, label events, verdicts, places in the queue: all, or none.

        A flagged prompt is in the queue in the very moment its verdict exists. An answer that
        could not be used is kept with its votes and labels nothing; where there was no answer,
        nothing is written.
        """
        done = [item for item in judged if item.verdict is not None]
        unparsed = [item.outcome for item in judged if isinstance(item.outcome, Unparsed)]
        if not done and not unparsed:
            return
        with self.writing() as connection:
            for item in done:
                _put_one(connection, pair, item, self.now())
            add_unparsed(connection, pair, unparsed)
            add_votes(connection, pair, [vote for item in judged for vote in item.votes])
            ids = [item.prompt.prompt_id for item in done]
            _clear_failures(connection, ids, pair, "judge")


def _put_one(connection: Connection, pair: str, item: JudgedPrompt, now: datetime) -> None:
    judgement, verdict, prompt_id = item.outcome, item.verdict, item.prompt.prompt_id
    assert isinstance(judgement, Judgement) and verdict is not None
    if put_judgement(connection, pair, judgement):
        add_judgement_events(connection, judgement)
    put_verdict(connection, prompt_id, pair, judgement.judge, verdict)
    if verdict.flagged:
        queue_prompt(connection, prompt_id, pair, f"flagged:{verdict.kind}", now)
    else:
        draw_control(connection, prompt_id, pair, now)


def _put_token_ids(connection: Connection, prompt: Prompt) -> None:
    if prompt.token_ids is None:
        return
    table = tables.prompts
    mine = table.c.prompt_id == prompt.prompt_id
    stored = Prompt.model_validate_json(
        connection.execute(select(table.c.payload).where(mine)).scalar_one()
    )
    if stored.token_ids is None:
        payload = stored.model_copy(update={"token_ids": prompt.token_ids}).model_dump_json()
        connection.execute(update(table).where(mine).values(payload=payload))
    elif stored.token_ids != prompt.token_ids:
        raise RequestError(
            f"prompt {prompt.prompt_id} was tokenised to other ids before: "
            "use another --store for a model with another tokenizer"
        )


def _clear_failures(
    connection: Connection, prompt_ids: Collection[str], pair: str, stage: str
) -> None:
    table = tables.failures
    for chunk in chunks(list(prompt_ids)):
        connection.execute(
            delete(table).where(
                table.c.pair == pair, table.c.stage == stage, table.c.prompt_id.in_(chunk)
            )
        )


def chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    """Ids in portions that one query can take."""
    return (values[i : i + _CHUNK] for i in range(0, len(values), _CHUNK))
