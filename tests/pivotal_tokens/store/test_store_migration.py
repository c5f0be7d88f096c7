"""A store of version 1 opens, loses nothing, and works as a store of today."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Column, Integer, String, Table, inspect

from pivotal_tokens.review import ReviewService
from pivotal_tokens.schema import HUMAN, Prompt
from pivotal_tokens.store import Store, migrations, tables

VERSION_1 = Path(__file__).with_name("version_1.sql")


@pytest.fixture
def old_path(tmp_path):
    path = tmp_path / "old.sqlite"
    connection = sqlite3.connect(path)
    connection.executescript(VERSION_1.read_text(encoding="utf-8"))
    connection.close()
    return path


def test_a_store_of_version_1_is_brought_up_to_date_with_everything_in_it(old_path):
    with Store.open(old_path) as store:
        states = [item.state for item in store.queue.items()]
        assert states == ["done", "rejected", "leased", "pending"]
        assert {(i.seat, i.kind, i.reason) for i in store.queue.items()} == {
            (0, "review", "flagged:injection")
        }
        assert all(item.flagged and item.evil_mass == 0.7 for item in store.queue.items())
        done, rejected, held, _ = store.queue.items()
        assert store.labels.of(done.prompt_id).by_token == {1: "safe", 2: "evil", 3: "safe"}
        assert store.results.verdict(rejected.prompt_id, "p", HUMAN).kind == "bad_prompt"
        assert len(store.queue.answer_times("ada")) == 2
        assert store.queries.counts().graphs == 1 and store.results.pairs() == {"p": {"base": "x"}}
        question = ReviewService(store, "ada").open(held.item_id, steal=True)
        assert question.labels == {1: "unsure"}
        ReviewService(store, "ada").finish(question, rest="evil")
        assert store.results.verdict(held.prompt_id, "p", HUMAN).kind == "injection"


def test_migrating_again_changes_nothing(old_path):
    Store.open(old_path).close()
    before = old_path.read_bytes()
    Store.open(old_path).close()
    assert old_path.read_bytes() == before


def test_a_new_store_and_a_migrated_one_have_the_same_tables(old_path, store, store_path):
    def shape(database):
        with database.reading() as connection:
            look = inspect(connection)
            return {
                name: (
                    sorted(column["name"] for column in look.get_columns(name)),
                    sorted(str(index["name"]) for index in look.get_indexes(name)),
                    sorted(map(str, look.get_unique_constraints(name))),
                )
                for name in look.get_table_names()
            }

    with Store.open(old_path) as migrated:
        assert shape(migrated) == shape(store)


def test_a_migration_that_fails_leaves_the_old_store(old_path, monkeypatch):
    before = old_path.read_bytes()

    def fail(_connection):
        raise ZeroDivisionError

    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(migrations, "forbid_changes", fail)
        Store.open(old_path)
    assert old_path.read_bytes() == before
    Store.open(old_path).close()


def test_a_table_and_a_column_that_came_since_are_added_on_opening(store, store_path):
    store.prompts.add(Prompt.of("old"))
    store.close()
    wider = Column("weight", Integer, server_default="7", nullable=False)
    Table("of_a_later_day", tables.metadata, Column("name", String(4), primary_key=True))
    tables.prompts.append_column(wider)
    try:
        with Store.open(store_path) as again, again.reading() as connection:
            assert connection.exec_driver_sql("SELECT weight FROM prompts").scalar() == 7
            assert connection.exec_driver_sql("SELECT count(*) FROM of_a_later_day").scalar() == 0
    finally:
        tables.metadata.remove(tables.metadata.tables["of_a_later_day"])
        tables.prompts._columns.remove(wider)
