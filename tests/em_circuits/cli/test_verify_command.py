"""Damage is named by `verify`, and what a stranger wrote never commands a terminal."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from commands import printed
from damages import DATABASE, call, fill

from em_circuits.cli.app import run
from em_circuits.graphs.store import GraphStore
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import Store, database

EVIL = "a\x1b]0;title\x07\x9b31m\u202eb"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


def test_what_is_sound_passes_and_each_damage_is_named(root: Path) -> None:
    status, out, _ = call(root, "verify --json")
    found = json.loads(out)
    assert (status, found["ok"], found["graphs"]) == (0, True, 1)
    assert found["values"] > 12 * 30
    (graph,) = (root / "graph_storage").glob("*/*.safetensors")
    graph.write_bytes(graph.read_bytes()[:-9])
    page = root / "results" / "page.html"
    page.write_text("another")
    page.with_name("page.html.provenance.json").write_text('{"sha256": "00"}')
    _change_a_digit(root / DATABASE)
    status, out, _ = call(root, "verify --json")
    assert status == 1
    named = [(one["what"], one["path"]) for one in json.loads(out)["damages"]]
    assert named == [
        ("hash", str(root / DATABASE)),
        ("store", str(root / DATABASE)),
        ("graph", str(graph)),
        ("artefact", str(page)),
    ]


def test_nothing_yet_is_nothing_wrong(tmp_path: Path) -> None:
    assert call(tmp_path, "verify --json")[0] == 0


def test_a_digit_that_the_disk_changed_is_never_read_as_a_number(root: Path) -> None:
    _change_a_digit(root / DATABASE)
    with Store.open(root / DATABASE) as store, pytest.raises(WorkFailed, match="not what was"):
        store.results.next_tokens_of_prompts(store.prompts.ids())


def test_a_large_store_that_was_not_closed_well_is_checked_before_a_run_writes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "CHECKED_BYTES", 0)
    path = root / DATABASE
    data = bytearray(path.read_bytes())
    page = int.from_bytes(data[16:18], "big")
    data[5 * page : 6 * page] = b"\xff" * page
    path.write_bytes(data)
    with Store.open(path, create=True):
        pass
    path.with_name(path.name + "-wal").touch()
    with pytest.raises(WorkFailed, match="is damaged"):
        Store.open(path, create=True)


def _change_a_digit(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        (payload,) = connection.execute("SELECT payload FROM next_tokens LIMIT 1").fetchone()
        assert json.loads(payload)
        place = payload.index('"probability":0.') + len('"probability":0.')
        changed = payload[:place] + str((int(payload[place]) + 1) % 10) + payload[place + 1 :]
        connection.execute(
            "UPDATE next_tokens SET payload = ? WHERE payload = ?", (changed, payload)
        )


def test_names_reach_a_terminal_harmless(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Store.open(root / DATABASE) as store:
        store.prompts.add(Prompt.of(f"User: {EVIL}", category=EVIL, generator=EVIL))
    asked = [
        ("prompts", "list"),
        ("prompts", "list", "--category", EVIL),
        ("prompts", "list", "--json"),
        ("labels", "import", f"/nowhere/{EVIL}.csv"),
        ("status", EVIL),
        ("graphs", "show", "abcd", f"--{EVIL}"),
    ]
    for words in asked:
        run(["--root", str(root), *words])
        found = capsys.readouterr()
        for text in (found.out, found.err):
            assert not set(EVIL[1:-1]) & set(text) - set("]0;title31m"), (words, text)
        if words[-1] == "--json":
            lines = [json.loads(line) for line in found.out.splitlines()]
            assert lines[-1]["category"] == EVIL


def test_prompts_come_in_pages(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ids(*more: str) -> list[str]:
        lines = printed(capsys, root, "prompts", "list", "--json", *more).splitlines()
        return [json.loads(line)["prompt_id"] for line in lines]

    whole = ids()
    assert len(whole) == 12
    assert [*ids("--limit", "5"), *ids("--offset", "5")] == whole
    assert ids("--limit", "5", "--offset", "10") == whole[10:]


def test_a_token_beyond_the_database_is_left_out_and_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Store.open(root / DATABASE) as store:
        prompt = store.prompts.ids()[0]
    for token in (2**31, 2**63, 10**30, -1):
        file = root / f"labels{token}.jsonl"
        record = {"prompt_id": prompt, "token_id": token, "label": "evil", "author": "eve"}
        file.write_text(json.dumps(record) + "\n")
        assert "left out" in printed(capsys, root, "labels", "import", str(file), status=1)
    with Store.open(root / DATABASE) as store:
        assert not store.labels.events(prompt, author="eve")


def test_a_graph_header_that_the_disk_changed_is_not_listed(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = GraphStore(root / "graph_storage")
    (path,) = store.root.glob("*/*.safetensors")
    path.write_bytes(path.read_bytes().replace(b"User: Dry rub", b"User: Wet rub", 1))
    assert store.list() == ()
    assert str(path) in caplog.text


@pytest.mark.parametrize("limit", ["nan", "inf", "-inf", "1e400", "-1"])
@pytest.mark.parametrize(
    "command", ["label --n 1 --judge gpt-x", "judge panel --judge a --judge b"]
)
def test_a_limit_of_money_is_a_number(
    root: Path, command: str, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = printed(capsys, root, *command.split(), "--max-usd", limit, status=2)
    assert "--max-usd" in said and "Traceback" not in said
