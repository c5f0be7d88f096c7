"""Results about prompts: next tokens, judgements, verdicts, rollouts and failures.

Rows are keyed by (prompt id, pair[, judge | stage]). Putting the same content again changes
nothing; other content under the same key replaces it, because the graph's own logits win over a
screening's, and a verdict follows them. Labels are never replaced: a judgement adds events.

A transaction costs a flush to the disk, about 20 ms; a model answers for a prompt in a few. So the
results of many prompts are written in one: killed before its end, none of it was; after it, all is.

    store.results.put_screened(pair, [Screened(prompt, next_tokens), ...])
    store.results.put_judged(pair, [JudgedPrompt(prompt=prompt, ...), ...])
    store.results.verdict(prompt_id, pair, judge).kind
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from pydantic_core import from_json
from sqlalchemy import Connection, Table, delete, func, insert, select

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import (
    HUMAN,
    Failed,
    Frozen,
    JudgedPrompt,
    Judgement,
    NextTokenPair,
    NextTokens,
    Prompt,
    Rollout,
    Unparsed,
    Verdict,
    Vote,
)
from pivotal_tokens.seal import DamagedText
from pivotal_tokens.store import tables
from pivotal_tokens.store.assignments import draw_control, enqueue
from pivotal_tokens.store.chain import hash_of_lists
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import put_payload, upsert
from pivotal_tokens.store.labels import add_judgement_events
from pivotal_tokens.store.order import reorder
from pivotal_tokens.store.prompts import insert_prompt, put_token_ids
from pivotal_tokens.store.queue import drop_human_verdict
from pivotal_tokens.store.rows import (
    Parsed,
    chunks,
    narrowed,
    row_of,
    value,
    values,
    values_by,
    values_of_prompts,
    where,
)

_FREE = -1
"""In the column of the token that a continuation follows: none."""


class Screened(Frozen):
    """A prompt with its token ids, and what both models would say next."""

    prompt: Prompt
    next_tokens: NextTokenPair
    new: bool = True  # the models were asked now


class TopSizes(NamedTuple):
    """How many tokens both models' own top-k have."""

    base: int
    merged: int


def _token_ids(both: str) -> frozenset[int]:
    return frozenset(token["token_id"] for token in from_json(both)["base"]["tokens"])


def _top_sizes(both: str) -> TopSizes:
    lists = from_json(both)
    each = (lists["base"], lists["merged"])
    by_rank = itemgetter("rank")  # by which they stand
    return TopSizes(*(bisect_right(one["tokens"], one["top_k"], key=by_rank) for one in each))


class Results(Repository):
    """Next tokens, judgements, verdicts, rollouts and failures, by prompt and model pair."""

    # --- Model pairs --------------------------------------------------------------------------

    def put_pair(self, pair: str, description: Mapping[str, str]) -> None:
        """Store what a pair's key stands for (base, adapter, transcoders, ...)."""
        payload = json.dumps(dict(description), sort_keys=True)
        with self._writing() as connection:
            upsert(connection, tables.pairs, {"pair": pair, "payload": payload})

    def pairs(self) -> dict[str, dict[str, str]]:
        """Pair key -> its description."""
        with self._reading() as connection:
            rows = connection.execute(select(tables.pairs).order_by(tables.pairs.c.pair))
            return {row.pair: json.loads(row.payload) for row in rows}

    def find_pair(self, prefix: str) -> str:
        """The key of the one model pair that begins with `prefix`.

        Raises:
            RequestError: If none does, or several do.
        """
        pairs = self.pairs()
        found = [pair for pair in pairs if pair.startswith(prefix)]
        if len(found) != 1:
            known = ", ".join(pair[:12] for pair in pairs) or "none"
            raise RequestError(
                f"{len(found)} model pairs begin with {prefix!r}; the store has {known}"
            )
        return found[0]

    def busiest_pair(self) -> str | None:
        """The model pair that has seen most prompts; None where none has seen any."""
        column = tables.next_tokens.c.pair
        query = select(column).group_by(column).order_by(func.count().desc(), column).limit(1)
        with self._reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    # --- Next tokens --------------------------------------------------------------------------

    def put_screened(self, pair: str, screened: Sequence[Screened]) -> None:
        """Keep prompts, their token ids and both lists, in one transaction.

        Raises:
            RequestError: If a prompt has other token ids already; nothing was written.
        """
        with self._writing() as connection:
            for item in screened:
                if not insert_prompt(connection, item.prompt):
                    put_token_ids(connection, item.prompt)
                _put_next_tokens(connection, item.prompt.prompt_id, pair, item.next_tokens)
            ids = [item.prompt.prompt_id for item in screened]
            _clear_failures(connection, ids, pair, "next_tokens")

    def put_next_tokens(
        self, prompt_id: str, pair: str, base: NextTokens, merged: NextTokens
    ) -> bool:
        """Keep both models' lists; False if exactly these were there."""
        both = NextTokenPair(base=base, merged=merged)
        with self._writing() as connection:
            return _put_next_tokens(connection, prompt_id, pair, both)

    def next_tokens(self, prompt_id: str, pair: str) -> NextTokenPair | None:
        """Both models' lists, or None where the models have not run on it yet."""
        with self._reading() as connection:
            return value(
                connection, NextTokenPair, tables.next_tokens, prompt_id=prompt_id, pair=pair
            )

    def next_tokens_by_pair(self, prompt_id: str) -> dict[str, NextTokenPair]:
        """Pair -> both models' lists, of one prompt."""
        with self._reading() as connection:
            table = tables.next_tokens
            return values_by(connection, NextTokenPair, table, "pair", prompt_id=prompt_id)

    def next_tokens_of(self, prompt_ids: Iterable[str], pair: str) -> dict[str, NextTokenPair]:
        """Prompt id -> both lists, of those prompts that were screened."""
        with self._reading() as connection:
            table = tables.next_tokens
            return values_of_prompts(connection, NextTokenPair, table, prompt_ids, pair=pair)

    def token_texts(self, prompt_id: str) -> dict[int, str]:
        """Token id -> text, over the next-token lists of a prompt under every pair."""
        lists = self.next_tokens_by_pair(prompt_id).values()
        return {token.token_id: token.text for both in lists for token in both.base.tokens}

    def next_tokens_of_prompts(
        self, prompt_ids: Iterable[str]
    ) -> dict[str, dict[str, NextTokenPair]]:
        """Prompt id -> pair -> both models' lists."""
        return self._lists(prompt_ids, NextTokenPair.model_validate_json)

    def token_ids_of_prompts(self, prompt_ids: Iterable[str]) -> dict[str, frozenset[int]]:
        """Prompt id -> the tokens of its lists under every pair; nothing else of them is read."""
        found = self._lists(prompt_ids, _token_ids)
        return {prompt_id: frozenset().union(*lists.values()) for prompt_id, lists in found.items()}

    def top_sizes_of_prompts(self, prompt_ids: Iterable[str]) -> dict[str, dict[str, TopSizes]]:
        """Prompt id -> pair -> how many tokens its lists have; nothing else of them is read."""
        return self._lists(prompt_ids, _top_sizes)

    def _lists(
        self, prompt_ids: Iterable[str], parse: Callable[[str], Parsed]
    ) -> dict[str, dict[str, Parsed]]:
        """Prompt id -> pair -> what is wanted of its lists."""
        table = tables.next_tokens.c
        found: dict[str, dict[str, Parsed]] = defaultdict(dict)
        with self._reading() as connection:
            for chunk in chunks(prompt_ids):
                query = select(table.prompt_id, table.pair, table.payload).order_by(table.pair)
                for prompt_id, pair, payload in connection.execute(
                    query.where(table.prompt_id.in_(chunk))
                ).all():
                    try:
                        found[prompt_id][pair] = parse(payload)
                    except (LookupError, TypeError, ValueError) as error:
                        raise DamagedText(f"next tokens of {prompt_id}: no lists") from error
        return found

    # --- Judgements ---------------------------------------------------------------------------

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
        with self._writing() as connection:
            for item in done:
                judgement, verdict, prompt_id = item.outcome, item.verdict, item.prompt.prompt_id
                assert isinstance(judgement, Judgement) and verdict is not None
                _put_judgement(connection, pair, judgement)
                _put_verdict(connection, prompt_id, pair, judgement.judge, verdict)
                if verdict.flagged:
                    enqueue(connection, prompt_id, pair, f"flagged:{verdict.kind}", self._now())
                else:
                    draw_control(connection, prompt_id, pair, self._now())
            _add_answers(connection, tables.unparsed, pair, unparsed)
            votes = [vote for item in judged for vote in item.votes]
            _add_answers(connection, tables.judge_votes, pair, votes)
            settled = [*done, *(item for item in judged if item.filtered is not None)]
            ids = [item.prompt.prompt_id for item in settled]
            _clear_failures(connection, ids, pair, "judge")

    def put_judgement(self, pair: str, judgement: Judgement) -> bool:
        """Keep a judgement, and a label event for each label that differs from the judge's last.

        Returns:
            False if the judge had given exactly these labels and reasons before.
        """
        with self._writing() as connection:
            return _put_judgement(connection, pair, judgement)

    def judgement(self, prompt_id: str, pair: str, judge: str) -> Judgement | None:
        """What a judge said, or None where it was not asked yet or its answer could not be used."""
        keys = {"prompt_id": prompt_id, "pair": pair, "judge": judge}
        with self._reading() as connection:
            return value(connection, Judgement, tables.judgements, **keys)

    def judgements_of(
        self, prompt_ids: Iterable[str], pair: str, judge: str
    ) -> dict[str, Judgement]:
        """Prompt id -> what a judge said, of those prompts that it judged."""
        keys = {"pair": pair, "judge": judge}
        with self._reading() as connection:
            return values_of_prompts(connection, Judgement, tables.judgements, prompt_ids, **keys)

    def judgements_on(self, prompt_id: str, pair: str) -> dict[str, Judgement]:
        """Judge -> what it said, of one prompt under one pair."""
        keys = {"prompt_id": prompt_id, "pair": pair}
        with self._reading() as connection:
            return values_by(connection, Judgement, tables.judgements, "judge", **keys)

    def judgements(self, pair: str | None = None) -> tuple[Judgement, ...]:
        """Everything that judges said and that stands, by prompt and judge."""
        table = tables.judgements
        query = select(table.c.payload).order_by(table.c.prompt_id, table.c.judge)
        with self._reading() as connection:
            return values(connection, Judgement, narrowed(query, table, pair=pair))

    def unparsed(self, pair: str | None = None, *, filtered: bool = False) -> tuple[Unparsed, ...]:
        """Answers that could not be used, oldest first; or prompts that a filter refused."""
        table = tables.unparsed
        query = select(table.c.payload).order_by(table.c.seq)
        with self._reading() as connection:
            query = narrowed(query, table, pair=pair, filtered=filtered)
            return values(connection, Unparsed, query)

    def filtered_of(self, prompt_ids: Iterable[str], pair: str, judge: str) -> dict[str, Unparsed]:
        """Prompt id -> its refusal, of prompts that a filter of a judge's endpoint refused."""
        keys = {"pair": pair, "judge": judge, "filtered": True}
        with self._reading() as connection:
            return values_of_prompts(connection, Unparsed, tables.unparsed, prompt_ids, **keys)

    def forget_filtered(self, judge: str = "") -> int:
        """Have filtered prompts judged again, by judges whose id begins so; how many there were."""
        table = tables.unparsed
        mine = table.c.judge.startswith(judge, autoescape=True)
        with self._writing() as connection:
            these = delete(table).where(mine, table.c.filtered)
            return connection.execute(these).rowcount

    def votes(
        self, prompt_id: str | None = None, *, pair: str | None = None, judge: str | None = None
    ) -> tuple[Vote, ...]:
        """Votes, oldest first."""
        table = tables.judge_votes
        query = select(table.c.payload).order_by(table.c.seq)
        query = narrowed(query, table, prompt_id=prompt_id, pair=pair, judge=judge)
        with self._reading() as connection:
            return values(connection, Vote, query)

    # --- Verdicts -----------------------------------------------------------------------------

    def put_verdict(self, prompt_id: str, pair: str, judge: str, verdict: Verdict) -> bool:
        """Keep the verdict that follows from a judge's labels; False if it was there."""
        with self._writing() as connection:
            return _put_verdict(connection, prompt_id, pair, judge, verdict)

    def verdict(self, prompt_id: str, pair: str, judge: str) -> Verdict | None:
        """The verdict under a judge's labels ("human": a reviewer's), or None."""
        keys = {"prompt_id": prompt_id, "pair": pair, "judge": judge}
        with self._reading() as connection:
            return value(connection, Verdict, tables.verdicts, **keys)

    def verdicts(self, prompt_id: str, pair: str) -> dict[str, Verdict]:
        """Judge id -> verdict, of one prompt under one pair."""
        keys = {"prompt_id": prompt_id, "pair": pair}
        with self._reading() as connection:
            return values_by(connection, Verdict, tables.verdicts, "judge", **keys)

    def verdicts_of(self, prompt_ids: Iterable[str], pair: str, judge: str) -> dict[str, Verdict]:
        """Prompt id -> verdict under a judge, of those prompts that have one."""
        keys = {"pair": pair, "judge": judge}
        with self._reading() as connection:
            return values_of_prompts(connection, Verdict, tables.verdicts, prompt_ids, **keys)

    def drop_human_verdict(self, prompt_id: str, pair: str) -> None:
        """Take the people's verdict back: the prompt is not settled any more."""
        with self._writing() as connection:
            drop_human_verdict(connection, prompt_id, pair)

    # --- Rollouts -----------------------------------------------------------------------------

    def put_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Keep sampled continuations in one transaction; the same sample again replaces it."""
        with self._writing() as connection:
            for item in rollouts:
                token = _FREE if item.token_id is None else item.token_id
                upsert(connection, tables.rollouts, row_of(tables.rollouts, item, token_id=token))

    def rollouts(
        self, prompt_id: str, pair: str, *, judge: str | None = None
    ) -> tuple[Rollout, ...]:
        """A prompt's continuations, by token, model and sample; of one judge if given."""
        columns = tables.rollouts.c
        order = (columns.token_id, columns.model, columns.sample, columns.judge)
        query = select(columns.payload).order_by(*order)
        query = narrowed(query, tables.rollouts, prompt_id=prompt_id, pair=pair, judge=judge)
        with self._reading() as connection:
            return values(connection, Rollout, query)

    # --- Failures -----------------------------------------------------------------------------

    def fail(self, prompt_id: str, pair: str, stage: str, error: str) -> Failed:
        """Record that a stage failed on a prompt; a repeated failure counts up its attempts."""
        keys = {"prompt_id": prompt_id, "pair": pair, "stage": stage}
        with self._writing() as connection:
            last = value(connection, Failed, tables.failures, **keys)
            attempts = last.attempts + 1 if last else 1
            failed = Failed(**keys, error=error, attempts=attempts, at=self._now())
            upsert(connection, tables.failures, row_of(tables.failures, failed))
        return failed

    def failures(
        self, *, prompt_id: str | None = None, pair: str | None = None, stage: str | None = None
    ) -> tuple[Failed, ...]:
        """What failed and was not cleared since."""
        columns = tables.failures.c
        query = select(columns.payload).order_by(columns.prompt_id, columns.pair, columns.stage)
        query = narrowed(query, tables.failures, prompt_id=prompt_id, pair=pair, stage=stage)
        with self._reading() as connection:
            return values(connection, Failed, query)

    def clear_failure(self, prompt_id: str, pair: str, stage: str) -> None:
        """Forget a failure: the stage succeeded since."""
        with self._writing() as connection:
            _clear_failures(connection, [prompt_id], pair, stage)


def _put_next_tokens(
    connection: Connection, prompt_id: str, pair: str, both: NextTokenPair
) -> bool:
    row = row_of(tables.next_tokens, both, prompt_id=prompt_id, pair=pair)
    row["sha256"] = hash_of_lists(prompt_id, pair, row["payload"])
    return put_payload(connection, tables.next_tokens, row)


def _put_judgement(connection: Connection, pair: str, judgement: Judgement) -> bool:
    table, keys = tables.judgements, {"prompt_id": judgement.prompt_id, "judge": judgement.judge}
    last = value(connection, Judgement, table, pair=pair, **keys)
    if last is not None and last.model_copy(update={"created": judgement.created}) == judgement:
        return False
    upsert(connection, table, row_of(table, judgement, pair=pair))
    add_judgement_events(connection, judgement)
    return True


def _put_verdict(
    connection: Connection, prompt_id: str, pair: str, judge: str, verdict: Verdict
) -> bool:
    table = tables.verdicts
    row = row_of(table, verdict, prompt_id=prompt_id, pair=pair, judge=judge)
    new = put_payload(connection, table, row)
    if new and judge != HUMAN:
        reorder(connection, prompt_id, pair)
    return new


def _add_answers(
    connection: Connection, table: Table, pair: str, answers: Sequence[Unparsed | Vote]
) -> None:
    if answers:
        rows = [row_of(table, answer, pair=pair) for answer in answers]
        connection.execute(insert(table), rows)


def _clear_failures(
    connection: Connection, prompt_ids: Iterable[str], pair: str, stage: str
) -> None:
    table = tables.failures
    for chunk in chunks(prompt_ids):
        these = (table.c.prompt_id.in_(chunk), *where(table, pair=pair, stage=stage))
        connection.execute(delete(table).where(*these))
