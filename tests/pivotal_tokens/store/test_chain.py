"""Hash chains: one label event or list that changed in the database is named."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from sample_labels import event
from sqlalchemy import Connection, delete, insert, select, text, update

from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.labels.dump import write_dump
from pivotal_tokens.labels.records import label_records
from pivotal_tokens.labels.tree import write_tree
from pivotal_tokens.schema import Label, LabelEvent, NextTokenPair, Prompt
from pivotal_tokens.store import Store, tables
from pivotal_tokens.store.dialect import forbid_changes

EVENTS, LISTS, HEADS = tables.label_events, tables.next_tokens, tables.label_chains
Change = Callable[[Connection], object]


def numbered(prompt: Prompt, number: int, label: Label = "evil") -> LabelEvent:
    return event(prompt.prompt_id, number % 3, label, event_id=f"e{number}")


@pytest.fixture
def prompts(store: Store, pair: NextTokenPair) -> list[Prompt]:
    """Two prompts with lists under two pairs, and four and three events."""
    several = [Prompt.of(f"Prompt {number}") for number in range(2)]
    for count, prompt in zip((4, 3), several, strict=True):
        store.prompts.add(prompt)
        for name in ("p", "q"):
            store.results.put_next_tokens(prompt.prompt_id, name, pair.base, pair.merged)
        for number in range(count):
            store.labels.add([numbered(prompt, 10 * count + number)])
    return several


def tamper(store: Store, change: Change) -> None:
    """Change what triggers forbid, as somebody with the database in hand can."""
    with store.writing() as connection:
        for verb in ("update", "delete"):
            name = f"DROP TRIGGER label_events_no_{verb}"
            on = "" if connection.dialect.name == "sqlite" else " ON label_events"
            connection.execute(text(name + on))
        change(connection)
        forbid_changes(connection)


def relabelled(connection: Connection) -> object:
    """Another label in the JSON and the column, with a checksum that fits."""
    query = select(EVENTS.c.payload).where(EVENTS.c.event_id == "e41")
    value = json.loads(connection.execute(query).scalar_one()) | {"to_label": "safe"}
    payload = LabelEvent.model_validate(value).model_dump_json()
    changed = {"payload": payload, "to_label": "safe"}
    return connection.execute(update(EVENTS).where(EVENTS.c.event_id == "e41").values(**changed))


def one(**values: object) -> Change:
    return lambda connection: connection.execute(
        update(EVENTS).where(EVENTS.c.event_id == "e41").values(**values)
    )


def swapped(connection: Connection) -> object:
    """The lists of the two pairs of the last prompt change places."""
    first = select(LISTS.c.prompt_id).order_by(LISTS.c.prompt_id).limit(1).scalar_subquery()
    for old, new in (("p", "x"), ("q", "p"), ("x", "q")):
        these = (LISTS.c.prompt_id == first, LISTS.c.pair == old)
        connection.execute(update(LISTS).where(*these).values(pair=new))
    return None


CHANGES: dict[str, tuple[Change, str]] = {
    "another label": (relabelled, "label event e41 "),
    "another label in the column alone": (one(to_label="safe"), "label event e41 .*to_label"),
    "another author in the column alone": (one(author="eve"), "label event e41 .*author"),
    "another token in the column alone": (one(token_id=9), "label event e41 .*token_id"),
    "no hash": (one(chain=None), "label event e41 .*no hash"),
    "one removed": (
        lambda c: c.execute(delete(EVENTS).where(EVENTS.c.event_id == "e41")),
        "label event e42 ",
    ),
    "the last removed": (
        lambda c: c.execute(delete(EVENTS).where(EVENTS.c.event_id == "e43")),
        "3 with a hash and 0 without, but 4",
    ),
    "all of a prompt removed": (
        lambda c: c.execute(delete(EVENTS).where(EVENTS.c.event_id.startswith("e4"))),
        "none of the 4",
    ),
    "all hashes removed": (
        lambda c: c.execute(update(EVENTS).values(chain=None)),
        "0 with a hash and 4 without, but 4",
    ),
    "the last hash replaced": (
        lambda c: c.execute(update(HEADS).values(chain="0" * 64)),
        "the last is not what was written",
    ),
    "lists in each other's place": (swapped, "next tokens of prompt .*, pair [pq]: not what"),
}


def test_what_was_written_is_whole_on_its_way_out(
    store: Store, prompts: list[Prompt], tmp_path: Path
) -> None:
    assert store.labels.add([numbered(prompts[0], 40), numbered(prompts[1], 99)]) == {"e99"}
    found = store.chains.check()
    assert (found.label_events, found.next_tokens, found.unhashed) == (8, 4, 0)
    assert not found.problems
    write_dump(store, tmp_path / "all.jsonl")


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_in_the_database_is_named(
    store: Store, prompts: list[Prompt], change: str, tmp_path: Path
) -> None:
    done, said = CHANGES[change]
    tamper(store, done)
    problems = store.chains.check().problems
    assert problems
    with pytest.raises(WorkFailed, match=said):
        store.chains.require_whole()
    for export in (
        lambda: list(label_records(store)),
        lambda: write_dump(store, tmp_path / "all.jsonl"),
        lambda: write_tree(store, tmp_path / "tree"),
    ):
        with pytest.raises(WorkFailed, match=said):
            export()
    assert not list(tmp_path.glob("*.jsonl")) and not (tmp_path / "tree").exists()


def test_events_and_lists_of_an_older_version_are_counted(
    store: Store, prompts: list[Prompt]
) -> None:
    tamper(
        store, lambda c: [c.execute(update(EVENTS).values(chain=None)), c.execute(delete(HEADS))]
    )
    with store.writing() as connection:
        connection.execute(update(LISTS).values(sha256=None))
    found = store.chains.check()
    assert (found.label_events, found.next_tokens, found.unhashed) == (0, 0, 7 + 4)
    assert not found.problems
    store.labels.add([numbered(prompts[0], 77, "safe")])
    found = store.chains.check()
    assert (found.label_events, found.unhashed, found.problems) == (1, 11, ())


def test_an_older_store_gets_the_columns(store_path: Path, pair: NextTokenPair) -> None:
    prompt = Prompt.of("Prompt")
    with Store.open(store_path, create=True) as store:
        store.prompts.add(prompt)
        with store.writing() as connection:
            for statement in (
                "DROP TABLE label_chains",
                "ALTER TABLE label_events DROP COLUMN chain",
                "ALTER TABLE next_tokens DROP COLUMN sha256",
                "UPDATE meta SET value = 'older' WHERE name = 'schema_form'",
            ):
                connection.execute(text(statement))
            value = numbered(prompt, 1)
            columns = {name: getattr(value, name) for name in ("event_id", "prompt_id", "token_id")}
            columns |= {"author": "ada", "author_kind": "human", "to_label": "evil"}
            old = insert(EVENTS).values(payload=value.model_dump_json(), **columns)
            connection.execute(old)
    with Store.open(store_path) as store:
        store.labels.add([numbered(prompt, 2)])
        found = store.chains.check()
    assert (found.label_events, found.unhashed, found.problems) == (1, 1, ())


def test_writers_of_one_prompt_share_a_chain(store: Store, prompts: list[Prompt]) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 10):
            store.labels.add([numbered(prompts[0], number), numbered(prompts[1], number + 1000)])

    threads = [threading.Thread(target=write, args=(100 * n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.chains.check()
    assert (found.label_events, found.problems) == (7 + 60, ())
