"""An SQLite store is one machine's; PostgreSQL says in one line why it cannot be used."""

import subprocess
import sys
from datetime import timedelta

import pytest

from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store, database, dialect, host
from pivotal_tokens.store.host import Host


@pytest.fixture
def elsewhere(monkeypatch):
    """Calling it moves this process to another machine."""

    def move(boot_id="other-boot", name="other-host"):
        def there(now):
            return Host(boot_id=boot_id, name=name, seen=now.timestamp())

        monkeypatch.setattr(database, "this_host", there)

    return move


def test_a_second_host_is_refused_and_takes_over_with_one_option(
    store, store_path, clock, elsewhere
):
    elsewhere()
    with pytest.raises(RequestError, match=r"used by host .* postgresql\+psycopg") as refused:
        Store.open(store_path, clock=clock)
    assert "?host=take" in str(refused.value)
    with Store.open(f"sqlite:///{store_path}?host=take", clock=clock) as taken:
        taken.prompts.add(Prompt.of("here now"))
    with Store.open(store_path, clock=clock) as again:  # once is enough
        assert len(again.prompts.all()) == 1


def test_a_host_whose_store_was_taken_over_writes_nothing_more(
    store, store_path, clock, elsewhere, monkeypatch
):
    with monkeypatch.context() as there:
        there.setattr(
            database, "this_host", lambda now: Host(boot_id="b", name="n", seen=now.timestamp())
        )
        Store.open(f"sqlite:///{store_path}?host=take", clock=clock).close()
    clock.forward(host.MARK_SECONDS + 1)
    with pytest.raises(WorkFailed, match="host n has taken this store over"):
        store.prompts.add(Prompt.of("too late"))
    assert store.prompts.all() == ()


@pytest.mark.parametrize("same", [{"name": "x"}, {"boot_id": "y"}])
def test_a_renamed_container_and_a_restarted_machine_are_the_same_host(
    store, store_path, clock, elsewhere, same
):
    here = host.this_host(clock())
    moved = {"boot_id": here.boot_id, "name": here.name} | same
    if not moved["boot_id"]:
        pytest.skip("no boot id on this system")
    elsewhere(**moved)
    Store.open(store_path, clock=clock).close()


def test_a_file_moved_to_another_machine_opens_there_after_a_while(
    store, store_path, clock, elsewhere, monkeypatch
):
    elsewhere()
    clock.time += timedelta(seconds=host.SEEN_SECONDS + 1)
    with monkeypatch.context() as mounted:
        mounted.setattr(host, "on_network", lambda path: True)
        with pytest.raises(RequestError, match="not be shared"):
            Store.open(store_path, clock=clock)
    Store.open(store_path, clock=clock).close()


def test_a_writing_host_is_seen(store, store_path, clock, elsewhere):
    clock.forward(host.SEEN_SECONDS - 1)
    store.prompts.add(Prompt.of("still there"))
    clock.forward(host.SEEN_SECONDS - 1)
    elsewhere()
    with pytest.raises(RequestError, match="used by host"):
        Store.open(store_path, clock=clock)


def test_network_file_systems_are_recognised_by_their_mount(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text(
        f"/dev/sda / ext4 rw 0 0\nsrv:/x {tmp_path}/far nfs4 rw 0 0\n"
        f"a {tmp_path}/far\\040off fuse.sshfs rw 0 0\nb {tmp_path}/far/near tmpfs rw 0 0\n"
    )
    original = host.Path
    monkeypatch.setattr(host, "Path", lambda p: original(table if p == "/proc/self/mounts" else p))
    found = {p: host.on_network(tmp_path / p) for p in ("far/a", "far off/a", "far/near/a", "b")}
    assert found == {"far/a": True, "far off/a": True, "far/near/a": False, "b": False}


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://ada:s3cret@127.0.0.1:1/em",
        "postgresql://ada:s3cret@nowhere.invalid/em",
        "postgresql://ada:s3cret@127.0.0.1:1",
        "postgresql://ada:s3cret@host:notaport/em",
        "mysql://ada:s3cret@host/em",
    ],
)
def test_a_server_out_of_reach_is_one_line_without_the_password(url):
    with pytest.raises(RequestError) as refused:
        Store.open(url, create=True)
    assert "s3cret" not in str(refused.value) and "\n" not in str(refused.value)


def test_a_database_that_does_not_exist_is_named(postgres):
    url = postgres.place.set(database="nothing", password="s3cret")
    with pytest.raises(RequestError, match=r'"nothing" does not exist.*createdb') as refused:
        Store.open(url.render_as_string(hide_password=False))
    assert "s3cret" not in str(refused.value)


def test_an_empty_database_is_no_store_until_one_is_made(postgres):
    url = postgres.place.set(database="template1").render_as_string(hide_password=False)
    with pytest.raises(RequestError, match=r"no store at .*template1"):
        Store.open(url)


HOLD = """
import sys
from pivotal_tokens.store import Store, dialect
with Store.open(sys.argv[1]) as store, store.writing() as connection:
    dialect.lock_name(connection, "a name")
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_locked_database_says_who_holds_it(postgres, monkeypatch):
    monkeypatch.setattr(dialect, "BUSY_SECONDS", 0.3)
    with Store.open(postgres.url, create=True) as store:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, postgres.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with holder:
            assert holder.stdout.readline() == b"held\n"
            named = rf"process {holder.pid} on .* \(user .*, session \d+\) held the store"
            with pytest.raises(WorkFailed, match=named), store.writing() as connection:
                dialect.lock_name(connection, "a name")
            holder.stdin.close()


def _listing(directory):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in directory.iterdir()}


def test_reading_never_writes(store, store_path, clock):
    store.prompts.add(Prompt.of("there"))
    store.close()
    before = _listing(store_path.parent)
    clock.forward(2 * host.SEEN_SECONDS)
    with Store.open(store_path, clock=clock) as reader:
        assert len(reader.prompts.all()) == 1
        assert _listing(store_path.parent) == before
        reader.prompts.add(Prompt.of("written"))
    assert _listing(store_path.parent) != before


def test_a_stale_host_is_replaced_with_the_first_write(store, store_path, clock, elsewhere):
    store.close()
    elsewhere()
    clock.forward(host.SEEN_SECONDS + 1)
    with Store.open(store_path, clock=clock) as moved:
        moved.prompts.add(Prompt.of("here now"))
        with moved.reading() as connection:
            assert host.marked(connection).name == "other-host"


def test_a_store_that_cannot_be_written_is_read(store, store_path, clock, monkeypatch):
    store.prompts.add(Prompt.of("published"))
    store.close()
    before = _listing(store_path.parent)
    monkeypatch.setattr(dialect.os, "access", lambda path, mode: False)
    with Store.open(store_path, clock=clock) as reader:
        assert len(reader.prompts.all()) == 1
        with pytest.raises(WorkFailed, match="cannot be written here: copy it"):
            reader.prompts.add(Prompt.of("refused"))
    assert _listing(store_path.parent) == before
