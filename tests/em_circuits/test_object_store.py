"""A root in an object store is a root like any other; what differs is said in one line."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from object_server import SECRET, object_server
from synthetic import Size, synthetic_graph

from em_circuits.cache import Journal
from em_circuits.cli.app import run
from em_circuits.graphs.store import GraphStore
from em_circuits.models.settings import PairSettings
from em_circuits.object_store import artefact_root
from em_circuits.workspace import Workspace, embedded_parts
from pivotal_tokens.artefacts import (
    changed_since_written,
    provenance_path,
    write_atomic,
    write_json,
    write_provenance,
)
from pivotal_tokens.errors import RequestError, WorkFailed

GRAPH = synthetic_graph(Size())


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with object_server() as address:
        yield address


@pytest.fixture
def address(bucket: str, tmp_path: Path) -> str:
    """Of a root of the test's own."""
    return f"{bucket}/{tmp_path.name}"


def stored(address: str) -> dict[str, int]:
    """What stands at an address, asked of the server itself: name -> bytes."""
    files = obstore.store.from_url(address, client_options={"allow_http": True})
    return {one["path"]: one["size"] for some in files.list() for one in some}


@pytest.mark.parametrize("kind", ["folder", "memory", "s3"])
def test_a_path_does_what_a_path_does(kind: str, bucket: str, tmp_path: Path) -> None:
    places = {"folder": str(tmp_path), "memory": f"memory://{tmp_path.name}"}
    root = artefact_root(places.get(kind, f"{bucket}/{tmp_path.name}")) / "results"
    path = root / "a" / "b.json"
    assert not path.exists() and not path.parent.is_dir() and list(root.rglob("*.json")) == []
    with pytest.raises(FileNotFoundError, match=str(path)):
        path.read_text()
    write_json(path, {"a": 1})
    write_provenance(path, inputs={}, config={})
    assert not changed_since_written(path)
    write_json(root / "top.json", {})
    assert json.loads(path.read_text()) == {"a": 1} == json.loads(path.read_bytes())
    with path.open("rb") as stream:
        assert stream.read(1) == b"{" and path.stat().st_size == len(path.read_bytes())
    assert path.is_file() and path.parent.is_dir() and not path.is_dir()
    assert (root / "a" / ".." / "top.json").resolve() == (root / "top.json").resolve()

    def found(pattern: str) -> list[str]:
        return sorted(one.relative_to(root).as_posix() for one in root.glob(pattern))

    sidecar = "a/b.json.provenance.json"
    assert found("*") == ["a", "top.json"]
    assert found("*/*.json") == found("a/*") == ["a/b.json", sidecar]
    assert found("**/*.json") == ["a/b.json", sidecar, "top.json"]
    assert {one.name for one in root.iterdir()} == {"a", "top.json"}
    log = root / "log"
    for line in ("one\n", "two\n"):
        with log.open("a") as stream:
            stream.write(line)
            stream.flush()
            assert log.read_text().endswith(line)  # before it is closed
    assert log.read_text() == "one\ntwo\n"
    log.replace(root / "aside")
    assert (root / "aside").read_text() == "one\ntwo\n" and not log.exists()
    (root / "aside").unlink()
    with pytest.raises(FileNotFoundError):
        (root / "aside").unlink()
    assert pickle.loads(pickle.dumps(path)) == path
    journal = Journal.open(root / "experiment", {"formula": 1})
    journal.add("first", {"rows": []})
    assert "first" in Journal.open(root / "experiment", {"formula": 1})


def test_a_run_in_a_bucket_is_that_of_a_folder(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def called(root: str, *words: str) -> str:
        status = run(["--root", root, "--store", f"sqlite:///{tmp_path}/store.sqlite", *words])
        said = capsys.readouterr()
        assert status == 0, said.err
        return said.out

    called(address, "label", "--n", "1", "--all-graphs", "--nodes", "12", "--json")
    names = stored(address)
    assert not [name for name in names if Path(name).name.startswith(".")]
    folder = tmp_path / "copy"
    root = artefact_root(address)
    for name in names:
        write_atomic(folder / name, (root / name).read_bytes())
    prompt = json.loads(called(address, "graphs", "list", "--json").splitlines()[0])["prompt_id"]
    for words in (["graphs", "list"], ["influence", prompt], ["status", prompt]):
        said = [called(one, *words, "--json") for one in (address, str(folder))]
        assert said[0] == said[1]
    assert json.loads(called(address, "verify", "--json"))["ok"]


def test_a_killed_upload_leaves_nothing_that_is_named(address: str, tmp_path: Path) -> None:
    """The connection stands still in the middle of a file, then the writer dies."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    script = (
        "import sys; from em_circuits.object_store import artefact_root\n"
        "from pivotal_tokens.artefacts import write_atomic\n"
        "write_atomic(artefact_root(sys.argv[1]) / 'big.bin', bytes(64 << 20))"
    )
    with stalling_proxy(endpoint, 24 << 20) as (proxy, stalled):
        environment = os.environ | {"AWS_ENDPOINT_URL": proxy}
        writer = subprocess.Popen([sys.executable, "-c", script, address], env=environment)
        assert stalled.wait(120)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert stored(address) == {}
    write_atomic(artefact_root(address) / "big.bin", bytes(64 << 20))
    assert stored(address) == {"big.bin": 64 << 20}


class stalling_proxy:
    """An address that passes so many bytes on to a server, then stands still."""

    def __init__(self, endpoint: str, n_bytes: int) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._server, self._left = (host, int(port)), n_bytes
        self._stalled, self._over = threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> tuple[str, threading.Event]:
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}", self._stalled

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=ends, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self._left -= len(data)
                if self._left < 0:
                    self._stalled.set()
                    self._over.wait()
                    return
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()


def test_a_graph_without_its_provenance_is_not_there(address: str) -> None:
    graphs = GraphStore(artefact_root(address) / "graph_storage")
    path = graphs.save(GRAPH, {})
    assert graphs.has(GRAPH.header.key)
    provenance_path(path).unlink()
    assert not graphs.has(GRAPH.header.key)


def test_damage_in_the_store_is_named_and_damage_here_is_fetched_again(address: str) -> None:
    graphs = GraphStore(artefact_root(address) / "graph_storage")
    path = graphs.save(GRAPH, {})
    here, data = Path(os.fspath(path)), path.read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1])
    here.write_bytes(changed)
    assert graphs.load(GRAPH.header.key).header == GRAPH.header
    assert Path(os.fspath(path)).read_bytes() == data
    path.write_bytes(changed)
    with pytest.raises(WorkFailed, match=f"{path} has changed since it was written"):
        graphs.load(GRAPH.header.key)
    (found,) = graphs.verify(quarantine=True)
    assert str(path) in str(found.problem) and str(found.quarantined).startswith(address)
    assert min(stored(f"{address}/graph_storage")).startswith("quarantine/")


def test_copies_beyond_the_limit_go_the_least_used_first(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EM_CIRCUITS_COPIES_GB", "2.5e-6")  # two of a thousand bytes
    root = artefact_root(address)
    names = ("a", "b", "c")

    def there() -> list[str]:
        copies = {name: (root / name).copied_to() for name in names}
        return [name for name, copy in copies.items() if copy is not None and copy.exists()]

    for age, name in ((20, "a"), (10, "b")):
        write_atomic(root / name, name * 1000)
        os.utime(root / name, (time.time() - age, time.time() - age))
    assert (root / "a").read_text() == "a" * 1000  # used last
    write_atomic(root / "c", "c" * 1000)
    assert there() == ["a", "c"]
    assert (root / "b").read_text() == "b" * 1000
    assert there() == ["b", "c"]
    assert sorted(stored(address)) == list(names)


def test_another_machines_change_is_read(address: str) -> None:
    path = artefact_root(address) / "one.json"
    write_json(path, 1)
    assert json.loads(path.read_text()) == 1
    obstore.store.from_url(address, client_options={"allow_http": True}).put("one.json", b"2")
    assert json.loads(path.read_text()) == 2


@pytest.mark.parametrize(
    ("root", "said"),
    [
        (f"s3://ada:{SECRET.replace('/', '_')}@bucket/run", "credentials or options in it"),
        ("s3://bucket/run?aws_secret_access_key=abc", "credentials or options in it"),
        ("ftp://bucket/run", "none of s3://BUCKET/PREFIX, gs://"),
        ("s3://", "none of s3://BUCKET/PREFIX"),
        ("s3://nobody/run", "NoSuchBucket"),
        ("s3://tests/unreachable", "cannot be reached"),
        ("s3://tests/forbidden", "credentials in the environment"),
        ("s3://tests/storeless", "add --store"),
    ],
)
def test_a_root_that_cannot_be_used_is_one_line_before_any_work(
    root: str,
    said: str,
    bucket: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "unreachable" in root:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    if "forbidden" in root:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET + "x")
    store = [] if "storeless" in root else ["--store", "sqlite:///nowhere.sqlite"]
    monkeypatch.setattr(Workspace, "pair", property(lambda _: pytest.fail("a model was loaded")))
    assert run(["--root", root, *store, "label", "--n", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert SECRET not in line and SECRET.replace("/", "_") not in line and "abc" not in line


def test_a_workspace_in_a_bucket_needs_a_store_of_its_own(address: str) -> None:
    given = dict.fromkeys(("base", "adapter", "merged", "transcoders"))
    models = PairSettings.model_validate(embedded_parts(given))
    with pytest.raises(RequestError, match="add --store"):
        Workspace(root=artefact_root(address), models=models)
    assert artefact_root("file:///tmp/x") == Path("/tmp/x")
