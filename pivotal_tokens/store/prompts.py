"""Which prompts are known, and which one does a prefix of an id name?

store.add_prompt(Prompt.of("..."))    # False when it was there already
store.prompt("44a7").text
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, select, update

from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import tables
from pivotal_tokens.store.database import Database
from pivotal_tokens.store.dialect import insert_new, upsert

_ID_LENGTH = 12
_SHOWN = 5


class PromptRows(Database):
    """Prompts, and the model pairs they are shown to."""

    def add_prompt(self, prompt: Prompt) -> bool:
        """Keep a prompt; False, and nothing changed, if one of the same text is there already."""
        return bool(self.add_prompts([prompt]))

    def add_prompts(self, prompts: Iterable[Prompt]) -> tuple[str, ...]:
        """Keep several prompts in one transaction; the ids of those that were new."""
        new = []
        with self.writing() as connection:
            for prompt in prompts:
                if insert_prompt(connection, prompt):
                    new.append(prompt.prompt_id)
        return tuple(new)

    def prompt(self, prefix: str) -> Prompt:
        """The prompt whose id is, or begins with, `prefix`.

        Raises:
            RequestError: If no prompt has it, or more than one.
        """
        with self.reading() as connection:
            return find_prompt(connection, prefix)

    def has_prompt(self, prompt_id: str) -> bool:
        """Is there a prompt with this whole id?"""
        query = select(tables.prompts.c.seq).where(tables.prompts.c.prompt_id == prompt_id)
        with self.reading() as connection:
            return connection.execute(query).first() is not None

    def prompts(
        self, *, category: str | None = None, generator: str | None = None
    ) -> tuple[Prompt, ...]:
        """All prompts in the order they were added, or those of one category or generator."""
        query = select(tables.prompts.c.payload).order_by(tables.prompts.c.seq)
        if category is not None:
            query = query.where(tables.prompts.c.category == category)
        if generator is not None:
            query = query.where(tables.prompts.c.generator == generator)
        with self.reading() as connection:
            return tuple(map(Prompt.model_validate_json, connection.execute(query).scalars()))

    def put_token_ids(self, prompt_id: str, token_ids: tuple[int, ...]) -> None:
        """Keep the ids a prompt's text was tokenised to: once, since everything uses the same.

        Raises:
            RequestError: If the prompt has other ids already.
        """
        with self.writing() as connection:
            prompt = find_prompt(connection, prompt_id)
            if prompt.token_ids == token_ids:
                return
            if prompt.token_ids is not None:
                raise RequestError(
                    f"prompt {prompt_id} was tokenised to other ids before: "
                    "use another --store for a model with another tokenizer"
                )
            payload = prompt.model_copy(update={"token_ids": token_ids}).model_dump_json()
            connection.execute(
                update(tables.prompts)
                .where(tables.prompts.c.prompt_id == prompt.prompt_id)
                .values(payload=payload)
            )

    def put_pair(self, pair: str, description: Mapping[str, str]) -> None:
        """Keep what a pair's key stands for (base, adapter, transcoders, ...)."""
        payload = json.dumps(dict(description), sort_keys=True)
        with self.writing() as connection:
            upsert(connection, tables.pairs, {"pair": pair, "payload": payload}, ["pair"])

    def pairs(self) -> dict[str, dict[str, str]]:
        """Pair key -> its description."""
        with self.reading() as connection:
            rows = connection.execute(select(tables.pairs).order_by(tables.pairs.c.pair))
            return {row.pair: json.loads(row.payload) for row in rows}


def insert_prompt(connection: Connection, prompt: Prompt) -> bool:
    """Keep a prompt within a transaction; False if one of the same text was there."""
    values = {
        "prompt_id": prompt.prompt_id,
        "kind": prompt.kind,
        "generator": prompt.generator,
        "category": prompt.category,
        "payload": prompt.model_dump_json(),
    }
    return insert_new(connection, tables.prompts, values, ["prompt_id"])


def find_prompt(connection: Connection, prefix: str) -> Prompt:
    """The one prompt whose id begins with `prefix`; see `PromptRows.prompt`."""
    wanted = prefix.strip().lower()
    if not wanted or len(wanted) > _ID_LENGTH or set(wanted) - set("0123456789abcdef"):
        raise RequestError(
            f"{prefix!r} is no prompt id: ids are {_ID_LENGTH} hex digits or a unique beginning; "
            "`em-circuits prompts list` shows them, text goes in --prompt"
        )
    column = tables.prompts.c.prompt_id
    # Only the comparison of a whole id uses the index.
    named = column == wanted if len(wanted) == _ID_LENGTH else column.startswith(wanted)
    query = select(column, tables.prompts.c.payload).where(named).order_by(column).limit(_SHOWN + 1)
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
