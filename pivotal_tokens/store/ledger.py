"""Ledger of calls to language models: the cost of each, and its reply.

A row per HTTP attempt: reserved at its worst case before anything is sent, settled at what the
reply says it used. What was reserved and never settled stays charged at its reservation, so that
the account never says less than was spent. One transaction serves many calls at once: a commit
costs a flush of the disk, and fifty calls in flight must not wait for fifty of them.

    store.ledger.exchange([opening], [], limits=Limits(nano_usd=2_000_000_000))   # -> [Granted()]
    store.ledger.exchange([], [Closing(call_id, "settled", prompt_tokens=900, ...)])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, delete, func, insert, select, update

from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import insert_new, upsert
from pivotal_tokens.store.rows import narrowed, where
from pivotal_tokens.store.sessions import session_is_over

FILTERED = "filtered: "
"""With this begins the status of a call whose input or answer a filter refused."""

_ACCOUNT = "all"
_ENDED = ("state", "status", "tokens", "nano_usd", "prompt_tokens", "output_tokens")


@dataclass(frozen=True)
class Opening:
    """One planned HTTP attempt."""

    call_id: str
    session: str  # HOST:PID:ID of the client, see `sessions.py`
    purpose: str
    model: str
    base_url: str
    cache_key: str
    tokens: int  # worst case
    nano_usd: int | None  # worst case; None where the price is not known
    expires_at: float  # UTC seconds; reserved past it means that nobody will settle it
    look_up: bool = True  # a stored reply under the same cache key will do
    subject: str = ""  # on whose behalf, within the purpose: a judge's id


@dataclass(frozen=True)
class Closing:
    """How an attempt ended."""

    call_id: str
    state: Literal["settled", "unknown", "free"]
    """At what was used; no word of what was used, charged as reserved; refused or never sent,
    charged nothing. Before, a call is ``reserved``: sent or about to be."""
    status: str  # "200", "429", "timeout", ...
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    nano_usd: int | None = None  # of a settled call
    reply: StoredReply | None = None


@dataclass(frozen=True)
class StoredReply:
    """A reply as it came, with the request that it answers."""

    call_id: str
    cache_key: str
    request: str
    body: str


@dataclass(frozen=True)
class Limits:
    """What may be charged to the account, over all calls it ever recorded."""

    nano_usd: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Granted:
    """Reserved: the attempt may be sent."""


@dataclass(frozen=True)
class OverBudget:
    """Not reserved: the worst case does not fit into what is left."""

    tokens: int  # charged so far
    nano_usd: int
    others: bool  # whether calls of other sessions are under way, that may settle for less


Opened = Granted | OverBudget | StoredReply


@dataclass(frozen=True)
class CallCounts:
    """The ledger in a few figures, of one purpose or of all."""

    calls: int
    by_state: dict[str, int]
    tokens: int
    nano_usd: int
    unpriced: int  # calls whose price was not known

    @property
    def usd(self) -> float:
        """Dollars charged."""
        return self.nano_usd / 1e9


class Ledger(Repository):
    """The ledger of calls, replies by content, and what endpoints can do."""

    def exchange(
        self,
        openings: Sequence[Opening],
        closings: Sequence[Closing],
        *,
        limits: Limits | None = None,
    ) -> list[Opened]:
        """Settle what ended, then answer or reserve what is to begin, in one transaction.

        Args:
            openings: Attempts to be made, in order of precedence.
            limits: What the account may come to; no limit by default.

        Returns:
            One answer per opening.
        """
        with self._writing() as connection:
            tokens, nano = _locked_account(connection)
            freed_tokens, freed_nano = _settle(connection, closings)
            tokens, nano = tokens - freed_tokens, nano - freed_nano
            answers: list[Opened] = []
            stored = _stored(connection, [o.cache_key for o in openings if o.look_up])
            granted = []
            for opening in openings:
                if opening.look_up and opening.cache_key in stored:
                    answers.append(stored[opening.cache_key])
                elif _fits(opening, tokens, nano, limits or Limits()):
                    tokens += opening.tokens
                    nano += opening.nano_usd or 0
                    granted.append(opening)
                    answers.append(Granted())
                else:
                    others = self._others_at_work(connection, opening.session)
                    answers.append(OverBudget(tokens, nano, others))
            if granted:
                now = self._now().timestamp()
                rows = [_row(opening, now) for opening in granted]
                connection.execute(insert(tables.llm_calls), rows)
            table = tables.llm_account
            connection.execute(
                update(table).where(table.c.name == _ACCOUNT).values(tokens=tokens, nano_usd=nano)
            )
        return answers

    def _others_at_work(self, connection: Connection, mine: str) -> bool:
        """Whether another session that is not over has a call under way."""
        table = tables.llm_calls
        query = select(table.c.session).distinct().where(table.c.state == "reserved")
        query = query.where(table.c.session != mine, table.c.expires_at >= self._now().timestamp())
        return not all(session_is_over(name) for name in connection.execute(query).scalars())

    def give_up_dead_calls(self) -> int:
        """Mark as unknown what was reserved by processes that are gone, or too long ago.

        Their charge stays. Returns how many there were.
        """
        table = tables.llm_calls
        query = select(table.c.call_id, table.c.session, table.c.expires_at)
        now = self._now().timestamp()
        with self._writing() as connection:
            rows = connection.execute(query.where(table.c.state == "reserved")).all()
            dead = [r.call_id for r in rows if r.expires_at < now or session_is_over(r.session)]
            if dead:
                ended = {"state": "unknown", "status": "interrupted"}
                connection.execute(
                    update(table).where(table.c.call_id == bindparam("call")).values(**ended),
                    [{"call": call} for call in dead],
                )
        return len(dead)

    def counts(self, purpose: str | None = None, *, subject: str | None = None) -> CallCounts:
        """Calls and charges, of one purpose and subject if given."""
        table = tables.llm_calls
        where = [table.c.purpose == purpose] if purpose is not None else []
        if subject is not None:
            where.append(table.c.subject == subject)
        query = select(
            table.c.state,
            func.count().label("calls"),
            func.coalesce(func.sum(table.c.tokens), 0).label("tokens"),
            func.coalesce(func.sum(table.c.nano_usd), 0).label("nano_usd"),
            func.count(table.c.nano_usd).label("priced"),
        )
        query = query.where(*where).group_by(table.c.state).order_by(table.c.state)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        calls = sum(row.calls for row in rows)
        return CallCounts(
            calls=calls,
            by_state={row.state: row.calls for row in rows},
            tokens=int(sum(row.tokens for row in rows)),
            nano_usd=int(sum(row.nano_usd for row in rows)),
            unpriced=calls - sum(row.priced for row in rows),
        )

    def put_capabilities(self, base_url: str, model: str, payload: str) -> None:
        """Keep what an endpoint was found to accept."""
        values = {"base_url": base_url, "model": model, "payload": payload}
        with self._writing() as connection:
            upsert(connection, tables.llm_capabilities, values)

    def capabilities(self, base_url: str, model: str) -> str | None:
        """What an endpoint was found to accept, or None."""
        table = tables.llm_capabilities
        query = select(table.c.payload).where(table.c.base_url == base_url, table.c.model == model)
        with self._reading() as connection:
            return connection.execute(query).scalar_one_or_none()

    def endpoints(self) -> dict[tuple[str, str], str]:
        """(base URL, model) -> what was found of it."""
        table = tables.llm_capabilities
        query = select(table).order_by(table.c.base_url, table.c.model)
        with self._reading() as connection:
            rows = connection.execute(query).all()
        return {(row.base_url, row.model): row.payload for row in rows}

    def forget_capabilities(self, model: str | None = None) -> int:
        """Forget what was found of endpoints, of one model if given; how many there were."""
        table = tables.llm_capabilities
        with self._writing() as connection:
            these = delete(table).where(*where(table, model=model))
            return connection.execute(these).rowcount

    def forget_filtered(self, model: str | None = None) -> int:
        """Ask again, when they next come up, questions that a filter refused; how many."""
        calls, replies = tables.llm_calls, tables.llm_replies
        query = select(calls.c.call_id).where(calls.c.status.startswith(FILTERED, autoescape=True))
        query = narrowed(query, calls, model=model)
        with self._writing() as connection:
            return connection.execute(delete(replies).where(replies.c.call_id.in_(query))).rowcount


def _locked_account(connection: Connection) -> tuple[int, int]:
    """Tokens and billionths charged so far; the row is this transaction's until it ends."""
    table = tables.llm_account
    mine = update(table).where(table.c.name == _ACCOUNT).values(version=table.c.version + 1)
    if connection.execute(mine).rowcount == 0:
        empty = {"name": _ACCOUNT, "version": 0, "tokens": 0, "nano_usd": 0}
        insert_new(connection, table, empty)
        connection.execute(mine)
    query = select(table.c.tokens, table.c.nano_usd).where(table.c.name == _ACCOUNT)
    row = connection.execute(query).one()
    return row.tokens, row.nano_usd


def _settle(connection: Connection, closings: Sequence[Closing]) -> tuple[int, int]:
    """Write how calls ended; how much less is charged now (tokens, billionths)."""
    if not closings:
        return 0, 0
    table = tables.llm_calls
    query = select(table.c.call_id, table.c.tokens, table.c.nano_usd)
    query = query.where(table.c.call_id.in_([closing.call_id for closing in closings]))
    before = {row.call_id: row for row in connection.execute(query)}
    freed_tokens = freed_nano = 0
    rows = []
    for closing in closings:
        was = before[closing.call_id]
        tokens, nano = _charge(closing, was.tokens, was.nano_usd)
        freed_tokens += was.tokens - tokens
        freed_nano += (was.nano_usd or 0) - (nano or 0)
        ended = vars(closing) | {"tokens": tokens, "nano_usd": nano}
        rows.append({"call": closing.call_id, **{f"to_{name}": ended[name] for name in _ENDED}})
    statement = update(table).where(table.c.call_id == bindparam("call"))
    statement = statement.values({name: bindparam(f"to_{name}") for name in _ENDED})
    connection.execute(statement, rows)
    replies = [vars(closing.reply) for closing in closings if closing.reply]
    if replies:
        connection.execute(insert(tables.llm_replies), replies)
    return freed_tokens, freed_nano


def _charge(closing: Closing, tokens: int, nano: int | None) -> tuple[int, int | None]:
    if closing.state == "unknown":
        return tokens, nano
    if closing.state == "free":
        return 0, None if nano is None else 0
    used = (closing.prompt_tokens or 0) + (closing.output_tokens or 0)
    return used, closing.nano_usd


def _fits(opening: Opening, tokens: int, nano: int, limits: Limits) -> bool:
    if limits.tokens is not None and tokens + opening.tokens > limits.tokens:
        return False
    return limits.nano_usd is None or (
        opening.nano_usd is not None and nano + opening.nano_usd <= limits.nano_usd
    )


def _row(opening: Opening, now: float) -> dict[str, object]:
    asked = {name: value for name, value in vars(opening).items() if name != "look_up"}
    return asked | {"state": "reserved", "status": "", "at": now}


def _stored(connection: Connection, keys: Sequence[str]) -> dict[str, StoredReply]:
    """The latest reply under each key."""
    if not keys:
        return {}
    replies, calls = tables.llm_replies, tables.llm_calls
    query = (
        select(replies)
        .join(calls, calls.c.call_id == replies.c.call_id)
        .where(replies.c.cache_key.in_(sorted(set(keys))))
        .order_by(calls.c.seq)
    )
    return {
        row.cache_key: StoredReply(row.call_id, row.cache_key, row.request, row.body)
        for row in connection.execute(query)
    }
