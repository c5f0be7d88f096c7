"""Tables of the store.

Keys are columns, everything else of a value is its JSON in `payload`, so that a new optional field
of a value needs no new schema. A time that is compared or sorted is UTC seconds in a float column.

    metadata.create_all(connection)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from pivotal_tokens.seal import sealed, unsealed

# Raise when what is stored changes its meaning; `migrations.py` brings older stores up to it.
# A new table or a new column with a server default needs no new number: it is added on opening.
SCHEMA_VERSION = 2

metadata = MetaData()


class SealedText(TypeDecorator[str]):
    """JSON that is sealed when it is written, and checked when it is read (`seal`)."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        return None if value is None else sealed(value)

    def result_processor(self, dialect: Any, coltype: object) -> Callable[[str | None], str | None]:
        return (
            _unsealed  # without the layer that calls `process_result_value` for each of a million
        )

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        return String()  # what is searched for has no seal


def _unsealed(value: str | None) -> str | None:
    return None if value is None else unsealed(value)


def _prompt_key() -> Column[str]:
    return Column("prompt_id", String(12), ForeignKey("prompts.prompt_id"), nullable=False)


def _pair() -> Column[str]:
    return Column("pair", String(128), nullable=False)


def _judge() -> Column[str]:
    return Column("judge", String(256), nullable=False)


def _values(name: str, *parts: Column | Index | UniqueConstraint) -> Table:
    """A table of values: the columns of their keys, then their JSON."""
    columns = [part for part in parts if isinstance(part, Column)]
    rules = [part for part in parts if not isinstance(part, Column)]
    return Table(name, metadata, *columns, Column("payload", SealedText, nullable=False), *rules)


def _log(name: str, *parts: Column | Index | UniqueConstraint) -> Table:
    """A table of values in the order in which they were added."""
    return _values(name, Column("seq", Integer, primary_key=True, autoincrement=True), *parts)


meta = Table(
    "meta",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

pairs = _values("pairs", Column("pair", String(128), primary_key=True))

prompts = _log(
    "prompts",
    Column("prompt_id", String(12), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("generator", Text, nullable=False),
    Column("category", Text),
)

next_tokens = _values(
    "next_tokens",
    _prompt_key(),
    _pair(),
    Column("sha256", String(64)),  # `chain`; none in a row of an older version
    UniqueConstraint("prompt_id", "pair"),
)

judgements = _values(
    "judgements", _prompt_key(), _pair(), _judge(), UniqueConstraint("prompt_id", "pair", "judge")
)

verdicts = _values(
    "verdicts",
    _prompt_key(),
    _pair(),
    _judge(),
    Column("kind", String(16), nullable=False),
    Column("flagged", Boolean, nullable=False),
    Column("divergent", Boolean, nullable=False),
    UniqueConstraint("prompt_id", "pair", "judge"),
    Index("verdicts_by_kind", "kind", "judge", "flagged", "divergent", "pair"),
)

# Append-only: a trigger (dialect.py) refuses to change or delete a row of the next two.
label_events = _log(
    "label_events",
    Column("event_id", String(64), nullable=False, unique=True),
    _prompt_key(),
    Column("token_id", Integer, nullable=False),
    Column("author", String(256), nullable=False),
    Column("author_kind", String(8), nullable=False),
    Column("to_label", String(8)),
    Column("purpose", String(16), nullable=False, server_default="review"),
    Column("chain", String(64)),  # `chain`; none in a row of an older version
    Index("label_events_of_prompt", "prompt_id", "seq"),
    Index("label_events_of_author", "author", "seq"),
    Index("label_events_by_kind", "author_kind", "purpose", "prompt_id", "to_label"),
)

# The last hash of each prompt's events, and how many have one.
label_chains = Table(
    "label_chains",
    metadata,
    _prompt_key(),
    Column("events", Integer, nullable=False),
    Column("chain", String(64), nullable=False),
    UniqueConstraint("prompt_id"),
)

review_events = _log(
    "review_events",
    _prompt_key(),
    _pair(),
    Column("author", String(256), nullable=False),
    Column("action", String(16), nullable=False, server_default=""),
    Column("at", Float, nullable=False, server_default="0"),
    Index("review_events_of_prompt", "prompt_id", "seq"),
    Index("review_events_of_author", "author", "seq"),
)

# One row is one reviewer's assignment to a prompt: an overlap of N means N rows, of different seat.
queue = Table(
    "queue",
    metadata,
    Column("item_id", Integer, primary_key=True, autoincrement=True),
    _prompt_key(),
    _pair(),
    Column("seat", Integer, nullable=False, server_default="0"),
    Column("kind", String(16), nullable=False, server_default="review"),
    Column("reason", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("reviewer", String(256)),
    Column("session", String(256)),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("lease_until", Float),
    Column("revealed", Boolean, nullable=False, server_default=false()),
    Column("sampling", Float),  # probability with which an unflagged prompt was drawn
    Column("flagged", Boolean, nullable=False, server_default=true()),
    Column("evil_mass", Float, nullable=False, server_default="0"),
    Column("uncertainty", Float, nullable=False, server_default="0"),
    Column("disagreement", Float, nullable=False, server_default="0"),
    Column("enqueued_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("prompt_id", "pair", "seat"),
    Index("queue_by_state", "state", "item_id"),
    Index("queue_by_disagreement", "state", text("disagreement DESC"), "item_id"),
    Index("queue_by_evil_mass", "state", "evil_mass", "item_id"),
    Index("queue_by_uncertainty", "state", "uncertainty", "item_id"),
    Index("queue_by_lease", "state", "lease_until"),
    Index("queue_by_seat", "seat", "state"),
    Index("queue_by_reviewer", "reviewer", "state", "updated_at"),
)

# Was an unflagged prompt drawn for review, and with which probability? One row a prompt and pair.
control_draws = Table(
    "control_draws",
    metadata,
    _prompt_key(),
    _pair(),
    Column("sampling", Float, nullable=False),
    Column("drawn", Boolean, nullable=False),
    UniqueConstraint("prompt_id", "pair"),
    Index("control_draws_of_pair", "pair"),
)

graphs = _values(
    "graphs",
    Column("key", String(64), primary_key=True),
    _prompt_key(),
    _pair(),
    Column("model", String(8), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Index("graphs_of_prompt", "prompt_id", "pair"),
)

failures = _values(
    "failures",
    _prompt_key(),
    _pair(),
    Column("stage", String(32), nullable=False),
    UniqueConstraint("prompt_id", "pair", "stage"),
)

# --- Calls to language models (ledger.py) ---------------------------------------------------------
# Money is whole billionths of a dollar, so that sums are exact.

llm_account = Table(
    "llm_account",
    metadata,
    Column("name", String(16), primary_key=True),
    Column("version", Integer, nullable=False, default=0),
    Column("tokens", BigInteger, nullable=False, default=0),
    Column("nano_usd", BigInteger, nullable=False, default=0),
)

llm_calls = Table(
    "llm_calls",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=True),
    Column("call_id", String(32), nullable=False, unique=True),
    Column("session", String(256), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("subject", String(256), nullable=False, default=""),
    Column("model", String(256), nullable=False),
    Column("base_url", Text, nullable=False),
    Column("cache_key", String(64), nullable=False),
    Column("state", String(8), nullable=False),
    Column("status", Text, nullable=False, default=""),
    Column("tokens", BigInteger, nullable=False),
    Column("nano_usd", BigInteger),
    Column("prompt_tokens", BigInteger),
    Column("output_tokens", BigInteger),
    Column("at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Index("llm_calls_by_state", "state"),
    Index("llm_calls_by_purpose", "purpose", "subject"),
)

llm_replies = Table(
    "llm_replies",
    metadata,
    Column("call_id", String(32), primary_key=True),
    Column("cache_key", String(64), nullable=False),
    Column("request", Text, nullable=False),
    Column("body", Text, nullable=False),
    Index("llm_replies_by_content", "cache_key"),
)

llm_capabilities = _values(
    "llm_capabilities",
    Column("base_url", String(512), primary_key=True),
    Column("model", String(256), primary_key=True),
)

# --- Imported labels that contradict a person's: stored, not applied, until somebody decides ---

label_conflicts = _log(
    "label_conflicts",
    Column("event_id", String(64), nullable=False, unique=True),
    _prompt_key(),
    Column("token_id", Integer, nullable=False),
    Column("after_label", Integer, nullable=False),  # seq of the last label event before it
    Column("after_review", Integer, nullable=False),  # and of the last review event
    Index("label_conflicts_of_prompt", "prompt_id", "token_id"),
)

# --- Generation and rollouts (rejections.py, rollouts.py) -----------------------------------------

rejections = _log(
    "rejections",
    Column("text_id", String(12), nullable=False),
    Column("generator", String(256), nullable=False),
    Column("rule", String(32), nullable=False),
    UniqueConstraint("text_id", "generator", "rule"),
)

rollouts = _values(
    "rollouts",
    _prompt_key(),
    _pair(),
    Column("model", String(8), nullable=False),
    Column("token_id", Integer, nullable=False),
    Column("sample", Integer, nullable=False),
    _judge(),
    Column("label", String(8), nullable=False),
    UniqueConstraint("prompt_id", "pair", "model", "token_id", "sample", "judge"),
)

# --- What judges said, vote by vote (judging.py); rows are only added -----------------------------

judge_votes = _log(
    "judge_votes",
    _prompt_key(),
    _pair(),
    _judge(),
    Column("number", Integer, nullable=False),
    Index("judge_votes_of_prompt", "prompt_id", "pair", "judge"),
)

unparsed = _log(
    "unparsed",
    _prompt_key(),
    _pair(),
    _judge(),
    Column("filtered", Boolean, nullable=False, server_default=false()),
    Index("unparsed_of_prompt", "prompt_id", "pair", "judge"),
)

# --- What people arranged for themselves in the viewer (saved_views.py) --------------------------

saved_views = _values(
    "saved_views",
    Column("author", String(256), nullable=False),
    Column("subject", String(128), nullable=False),
    UniqueConstraint("author", "subject"),
)
