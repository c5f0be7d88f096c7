"""Prompts of a store, and proposals that were rejected before they became one.

store.prompts.add(Prompt.of("..."))    # False when it was there already
store.prompts.get("44a7").text         # by the beginning of its id
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, func, select, update

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt, Rejection, prompt_id
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Repository
from pivotal_tokens.store.dialect import insert_new
from pivotal_tokens.store.rows import (
    count_rows,
    narrowed,
    numbers,
    row_of,
    value,
    values,
    values_of_prompts,
)

_ID_LENGTH = 12
_SHOWN = 5

_columns = tables.prompts.c


class Prompts(Repository):
    """Prompts by id, and rejections."""

    def add(self, prompt: Prompt) -> bool:
        """Add a prompt; False, and nothing changed, if one of the same text is there already."""
        return bool(self.add_all([prompt]))

    def add_all(self, prompts: Iterable[Prompt]) -> tuple[str, ...]:
        """Keep several prompts in one transaction; the ids of those that were new."""
        with self._writing() as connection:
            return tuple(p.prompt_id for p in prompts if insert_prompt(connection, p))

    def get(self, prefix: str) -> Prompt:
        """The prompt whose id is, or begins with, `prefix`.

        Raises:
            RequestError: If no prompt has it, or more than one.
        """
        with self._reading() as connection:
            return find_prompt(connection, prefix)

    def has(self, prompt_id: str) -> bool:
        """Whether there is a prompt with this whole id."""
        with self._reading() as connection:
            return count_rows(connection, tables.prompts, _columns.prompt_id == prompt_id) > 0

    def all(
        self,
        *,
        category: str | None = None,
        generator: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> tuple[Prompt, ...]:
        """All prompts in the order they were added, or those of one category or generator; `limit`
        of them behind the first `offset`."""
        query = select(_columns.payload).order_by(_columns.seq).limit(limit).offset(offset)
        query = narrowed(query, tables.prompts, category=category, generator=generator)
        with self._reading() as connection:
            return values(connection, Prompt, query)

    def ids(self) -> tuple[str, ...]:
        """Ids of all prompts, in the order they were added."""
        with self._reading() as connection:
            query = select(_columns.prompt_id).order_by(_columns.seq)
            return tuple(connection.execute(query).scalars())

    def several(self, prompt_ids: Iterable[str]) -> dict[str, Prompt]:
        """Prompt id -> prompt as stored, of those that are there."""
        with self._reading() as connection:
            return values_of_prompts(connection, Prompt, tables.prompts, prompt_ids)

    def categories(self) -> tuple[str, ...]:
        """Every category of a prompt, sorted."""
        column = _columns.category
        query = select(column).where(column.is_not(None)).distinct().order_by(column)
        with self._reading() as connection:
            return tuple(connection.execute(query).scalars())

    def add_round(self, prompts: Iterable[Prompt], rejections: Iterable[Rejection]) -> int:
        """Keep what came of asking a generator once, in one transaction.

        Returns:
            How many of the rejections were new.
        """
        new = 0
        with self._writing() as connection:
            for prompt in prompts:
                insert_prompt(connection, prompt)
            for item in rejections:
                row = row_of(tables.rejections, item, text_id=prompt_id(item.text))
                new += insert_new(connection, tables.rejections, row)
        return new

    def rejections(self, *, limit: int | None = None, offset: int = 0) -> tuple[Rejection, ...]:
        """Rejections, newest first."""
        query = select(tables.rejections.c.payload).order_by(tables.rejections.c.seq.desc())
        with self._reading() as connection:
            return values(connection, Rejection, query.limit(limit).offset(offset))

    def rejection_counts(self) -> dict[str, int]:
        """Rule -> proposals that broke it first."""
        rule = tables.rejections.c.rule
        with self._reading() as connection:
            return numbers(connection, select(rule, func.count()).group_by(rule).order_by(rule))


def insert_prompt(connection: Connection, prompt: Prompt) -> bool:
    """Keep a prompt within a transaction; False if one of the same text was there."""
    return insert_new(connection, tables.prompts, row_of(tables.prompts, prompt))


def put_token_ids(connection: Connection, prompt: Prompt) -> None:
    """Store the token ids of a prompt's text: once, since everything uses the same.

    Raises:
        RequestError: If the prompt has other ids already.
    """
    if prompt.token_ids is None:
        return
    stored = value(connection, Prompt, tables.prompts, prompt_id=prompt.prompt_id)
    if stored is None or stored.token_ids == prompt.token_ids:
        return
    if stored.token_ids is not None:
        raise RequestError(
            f"prompt {prompt.prompt_id} was tokenised to other ids before: "
            "use another --store for a model with another tokenizer"
        )
    payload = stored.model_copy(update={"token_ids": prompt.token_ids}).model_dump_json()
    mine = update(tables.prompts).where(_columns.prompt_id == prompt.prompt_id)
    connection.execute(mine.values(payload=payload))


def find_prompt(connection: Connection, prefix: str) -> Prompt:
    """The one prompt whose id begins with `prefix`; see `Prompts.get`."""
    wanted = prefix.strip().lower()
    if not wanted or len(wanted) > _ID_LENGTH or set(wanted) - set("0123456789abcdef"):
        raise RequestError(
            f"{prefix!r} is no prompt id: ids are {_ID_LENGTH} hex digits or a unique beginning; "
            "`em-circuits prompts list` shows them, text goes in --prompt"
        )
    column = _columns.prompt_id
    # Only the comparison of a whole id uses the index.
    named = column == wanted if len(wanted) == _ID_LENGTH else column.startswith(wanted)
    query = select(column, _columns.payload).where(named).order_by(column).limit(_SHOWN + 1)
    rows = connection.execute(query).all()
    if not rows:
        raise RequestError(
            f"no prompt {prefix!r} in the store; `em-circuits prompts list` shows what there is"
        )
    if len(rows) > 1:
        several = ", ".join(row.prompt_id for row in rows[:_SHOWN])
        dots = ", ..." if len(rows) > _SHOWN else ""
        raise RequestError(
            f"{prefix!r} begins several prompt ids: {several}{dots}; give more of it"
        )
    return Prompt.model_validate_json(rows[0].payload)
