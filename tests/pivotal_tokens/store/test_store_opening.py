"""Opening of stores: missing, foreign and broken files."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import insert

import pivotal_tokens
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store, default_url, dialect, tables
from pivotal_tokens.store.dialect import journal_mode


def test_a_missing_store_is_made_only_when_asked(tmp_path: Path):
    path = tmp_path / "results" / "em-circuits.sqlite"
    assert default_url(tmp_path) == f"sqlite:///{path}"
    with pytest.raises(RequestError, match="no store at"):
        Store.open(default_url(tmp_path))
    assert not path.parent.exists()
    Store.open(default_url(tmp_path), create=True).close()
    with Store.open(default_url(tmp_path)) as store:
        assert store.queries.counts().prompts == 0


def test_a_path_is_taken_as_it_is(tmp_path: Path):
    path = tmp_path / "a ?b%20#.sqlite"
    Store.open(path, create=True).close()
    assert path.exists()


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("content", [b"not a database, but some text\n" * 40, b"SQLite format 3\0"])
def test_a_file_that_is_no_database_is_named_and_left_alone(tmp_path, content, create):
    path = tmp_path / "broken.sqlite"
    path.write_bytes(content)
    with pytest.raises(RequestError, match=r"broken\.sqlite cannot be used as a store"):
        Store.open(f"sqlite:///{path}", create=create)
    assert path.read_bytes() == content


def test_a_directory_or_another_programs_database_is_refused(tmp_path):
    with pytest.raises(RequestError, match="cannot be used"):
        Store.open(f"sqlite:///{tmp_path}", create=True)
    path = tmp_path / "other.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(RequestError, match="another program"):
        Store.open(f"sqlite:///{path}", create=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(store, store_path):
    store_path.chmod(0)
    with pytest.raises(RequestError, match="cannot be used"):
        Store.open(f"sqlite:///{store_path}")


@pytest.mark.parametrize(
    ("version", "advice"), [("3", "newer"), ("0", "restore"), ("?", "restore")]
)
def test_another_schema_version_is_refused_with_advice(store, store_path, version, advice):
    connection = sqlite3.connect(store_path)
    connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", (version,))
    connection.commit()
    connection.close()
    with pytest.raises(RequestError, match=advice):
        Store.open(f"sqlite:///{store_path}")


@pytest.mark.parametrize(
    "url", ["results/x.sqlite", "sqlite://", "sqlite:///:memory:", "postgresql://h/d", "", "x:y:z"]
)
def test_a_url_that_names_no_file_is_refused(url):
    with pytest.raises(RequestError):
        Store.open(url, create=True)


def test_write_ahead_logging_only_where_sqlite_is_sound():
    assert journal_mode((3, 40, 1)) == journal_mode((3, 51, 2)) == "delete"
    assert journal_mode((3, 51, 3)) == journal_mode((3, 52, 0)) == "wal"


def test_the_connection_follows_the_rules(store, store_path):
    with store.reading() as connection:
        pragma = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragma == {
        "journal_mode": journal_mode(),
        "synchronous": 2,
        "foreign_keys": 1,
        "busy_timeout": 30_000,
    }


def test_an_exception_keeps_nothing_of_a_transaction(store):
    half = insert(tables.meta).values(name="half", value="way")
    with pytest.raises(ZeroDivisionError), store.writing() as connection:
        connection.execute(half)
        1 / 0  # noqa: B018
    with store.reading() as connection:
        names = connection.exec_driver_sql("SELECT name FROM meta").scalars().all()
    assert names and "half" not in names


def test_several_processes_may_create_one_store_at_once(tmp_path):
    code = (
        "import sys; from pivotal_tokens.store import Store\n"
        "from pivotal_tokens.schema import Prompt\n"
        "with Store.open(sys.argv[1], create=True) as s: s.prompts.add(Prompt.of(sys.argv[2]))"
    )
    url = default_url(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(pivotal_tokens.__file__).parents[1])}
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, f"text {i}"], env=environment)
        for i in range(3)
    ]
    assert [process.wait() for process in running] == [0, 0, 0]
    with Store.open(url) as store:
        assert store.queries.counts().prompts == 3


def test_a_row_for_an_unknown_prompt_is_refused(store):
    with pytest.raises(RequestError, match="add the prompt"):
        store.assignments.add(Prompt.of("never added").prompt_id, "pair", "flagged")


def test_an_empty_file_left_by_a_killed_process_is_filled_when_asked(tmp_path):
    path = tmp_path / "empty.sqlite"
    path.touch()
    with pytest.raises(RequestError, match="no store at"):
        Store.open(f"sqlite:///{path}")
    Store.open(f"sqlite:///{path}", create=True).close()
    Store.open(f"sqlite:///{path}").close()


def test_a_store_held_by_another_process_too_long_fails_in_one_line(store, store_path, monkeypatch):
    monkeypatch.setattr(dialect, "BUSY_SECONDS", 0.05)
    with Store.open(f"sqlite:///{store_path}") as other, store.writing():
        with pytest.raises(WorkFailed, match="another process held the store") as error:
            other.prompts.add(Prompt.of("waits"))
        assert "\n" not in str(error.value)
        assert other.prompts.all() == ()  # reading goes on


def test_another_journal_mode_is_put_right(store, store_path):
    store.close()
    connection = sqlite3.connect(store_path)
    other = {"delete": "wal", "wal": "delete"}[journal_mode()]
    connection.execute(f"PRAGMA journal_mode={other}")
    connection.close()
    with Store.open(f"sqlite:///{store_path}") as again, again.reading() as checked:
        assert checked.exec_driver_sql("PRAGMA journal_mode").scalar() == journal_mode()


HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="locks are listed by Linux alone")
def test_a_locked_store_says_who_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "held.sqlite"
    Store.open(path, create=True).close()
    monkeypatch.setattr(dialect, "BUSY_SECONDS", 0.2)
    with Store.open(path) as store:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdin is not None and holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"held\n"
            named = rf"process {holder.pid} \(.*held\.sqlite\)"
            with pytest.raises(WorkFailed, match=named):
                store.prompts.add(Prompt.of("User: Eat it?"))
            with pytest.raises(RequestError, match=named):
                Store.open(path)
        finally:
            holder.stdin.close()
            holder.wait(10)
            holder.stdout.close()
        store.prompts.add(Prompt.of("User: Eat it?"))
