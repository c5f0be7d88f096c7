"""Generated files of labels and prompts: every row is counted once, and nothing breaks.

rows = added + known + conflict + left out, what was added is in the store, and a file that is
refused has written nothing. ``EM_CIRCUITS_GENERATED_FILES`` says how many files of each kind.
"""

from __future__ import annotations

import csv
import io
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pivotal_tokens.errors import RequestError
from pivotal_tokens.labels import import_labels, read_records
from pivotal_tokens.prompts import read_prompts
from pivotal_tokens.schema import Prompt, prompt_id
from pivotal_tokens.store import Store

FILES = int(os.environ.get("EM_CIRCUITS_GENERATED_FILES", "150"))
A_STORE = 100
"""Files that go into one store; then a new one is made."""
TEXTS = ("I should", "User: Eat it?\nAssistant: You should", "She decides to, calmly,")
many = settings(
    max_examples=FILES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

odd_texts = st.sampled_from(
    ["\ud83d", "a\ud83db", "\x00", "x" * 300, "", " ", "=1+1", "'", '"', 'said "eat', "\u2028", "é"]
)
texts = st.text(st.characters(exclude_categories=()), max_size=6) | odd_texts
odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 700),
    st.sampled_from([10**30, -(10**12), 2**31, 2**63, float("nan"), float("inf"), 490.0, 1.5]),
    texts,
    st.lists(st.integers(), max_size=2),
    st.just({"a": {"b": [None]}}),
)
nested = st.integers(1, 1500).map(lambda n: json.loads("[" * min(n, 900) + "]" * min(n, 900)))


def mostly(usual, rarely=odd):
    """Nine in ten times what is usual."""
    return st.integers(0, 9).flatmap(lambda n: rarely if n == 0 else usual)


LABEL_FIELDS = {
    "prompt_id": mostly(st.sampled_from([prompt_id(text) for text in TEXTS])),
    "prompt_text": mostly(st.sampled_from(TEXTS)),
    "token_id": mostly(st.integers(0, 4) | st.sampled_from([3.0, "3", "3.0"])),
    "token_text": mostly(st.none(), st.sampled_from([" w1", " w2", " w9"]) | odd),
    "label": mostly(st.sampled_from(["evil", "safe", "unsure"])),
    "author": mostly(st.sampled_from(["ada", "bob"])),
    "reason": mostly(st.none() | st.just("eat, they said")),
    "event_id": mostly(st.none(), st.sampled_from(["e1", "e2", "x" * 80]) | odd),
    "from_label": mostly(st.none(), st.sampled_from(["evil", "safe"]) | odd),
    "at": mostly(st.none(), st.just("2026-01-01T00:00:00Z") | odd),
    "left": mostly(st.none(), odd),
    "item_id": mostly(st.none(), odd),
    "prompt_category": mostly(st.none(), odd),
}
PROMPT_FIELDS = {
    "text": mostly(st.sampled_from(TEXTS) | texts),
    "name": mostly(st.none() | texts),
    "category": mostly(st.none() | texts),
    "kind": mostly(st.none(), st.sampled_from(["chat", "poem"]) | odd),
    "generator": mostly(st.none(), odd),
    "note": mostly(st.none(), odd | nested),
    "messages": mostly(
        st.none(),
        odd
        | st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool"]), "content": odd}
            ),
            max_size=3,
        ),
    ),
}


@st.composite
def records(draw, fields, needed):
    """Rows with the same fields, most of them sound, some fields missing from all or from one."""
    names = [name for name in fields if name in needed or draw(st.booleans())]
    if "prompt_text" in names and "prompt_id" in names and draw(st.integers(0, 5)):
        names.remove(draw(st.sampled_from(["prompt_text", "prompt_id"])))  # they rarely agree
    if draw(st.integers(0, 15)) == 0:
        names = [name for name in names if draw(st.integers(0, 3))]
    if draw(st.integers(0, 30)) == 0:
        names.append(draw(st.sampled_from(["to_label", "colour", ""])))
    rows = []
    for _ in range(draw(st.integers(0, 4))):
        row = {name: draw(fields.get(name, odd)) for name in names}
        if row and draw(st.integers(0, 9)) == 0:
            row.pop(draw(st.sampled_from(names)))
        rows.append(row)
    return names, rows


@st.composite
def spoiled(draw, line: str) -> bytes:
    """A line of JSON, sometimes cut, doubled, or with bytes that are no UTF-8."""
    match draw(st.integers(0, 20)):
        case 0:
            line = line[: draw(st.integers(1, len(line)))]
        case 1:
            line = line[:-1] + ', "author": "eve", "author": "eve"}'
        case 2:
            return line.encode() + b"\xff"
        case 3:
            line = draw(st.sampled_from(["7", "null", "[", "[" * 5000, "NaN", '"\\ud83d"']))
    return line.encode("utf-8", "surrogatepass")


@st.composite
def jsonl(draw, fields, needed):
    _, rows = draw(records(fields, needed))
    lines = [draw(spoiled(json.dumps(row))) for row in rows]
    between = draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n  \n"]))
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf"]))
    n = sum(bool(line.strip()) for line in lines)
    return "rows.jsonl", start + between.join(lines), n


@st.composite
def table_csv(draw, fields, needed):
    names, rows = draw(records(fields, needed))
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
    writer.writerow(names)
    for row in rows:
        cells = ["" if (cell := row.get(name)) is None else str(cell) for name in names]
        writer.writerow(cells)
    content = out.getvalue().encode("utf-8", "replace")
    n = len(rows) if names else 0
    quotes = [i for i, byte in enumerate(content) if byte == ord('"')]
    if quotes and draw(st.integers(0, 3)) == 0:  # one lost
        at = draw(st.sampled_from(quotes))
        content, n = content[:at] + content[at + 1 :], None
    return "rows.csv", draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + content, n


def column(values):
    """A column of a table: of one type, or else of text."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        texts = [None if v is None else str(v).encode("utf-8", "replace") for v in values]
        return pa.array([None if v is None else v.decode() for v in texts], pa.string())


@st.composite
def table_parquet(draw, fields, needed):
    names, rows = draw(records(fields, needed))
    names = list(dict.fromkeys(names)) or ["reason"]
    columns = {name: column([row.get(name) for row in rows]) for name in names}
    if draw(st.integers(0, 19)) == 0:
        columns["image"] = pa.array([b"\xff"] * len(rows), pa.binary())
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return "rows.parquet", out.getvalue(), len(rows)


def files(fields, needed):
    kinds = (jsonl, table_csv, table_parquet)
    return st.one_of(*(kind(fields, needed) for kind in kinds))


class Stores:
    """A store for a hundred files, then another."""

    def __init__(self, folder: Path, make_pair) -> None:
        self._folder, self._pair = folder, make_pair({1: 0.8, 2: 0.1, 3: 0.1}, {1: 0.1, 2: 0.9})
        self._files, self._store = 0, None

    @contextmanager
    def at(self, content: bytes, name: str):
        """A store, and the path of a file with this content."""
        if self._files % A_STORE == 0:
            self.close()
            path = self._folder / f"{self._files}.sqlite"
            self._store = Store.open(f"sqlite:///{path}", create=True)
            for text in TEXTS[:2]:
                self._store.prompts.add(Prompt.of(text))
            lists = self._pair.base, self._pair.merged
            self._store.results.put_next_tokens(prompt_id(TEXTS[0]), "p", *lists)
        self._files += 1
        path = self._folder / name
        path.write_bytes(content)
        yield self._store, path

    def close(self) -> None:
        if self._store is not None:
            self._store.close()


@pytest.fixture
def stores(tmp_path, make_pair):
    made = Stores(tmp_path, lambda base, merged: make_pair(base, merged | {3: 0.05}))
    yield made
    made.close()


def size(store: Store) -> tuple[int, int, int]:
    """Label events, conflicts, prompts."""
    prompts = store.prompts.all()
    events = sum(len(store.labels.events(prompt.prompt_id)) for prompt in prompts)
    return events, len(store.labels.conflicts()), len(prompts)


NEEDED = ("prompt_text", "token_id", "label", "author")


@pytest.mark.slow
@many
@given(file=files(LABEL_FIELDS, NEEDED))
def test_every_row_of_a_file_of_labels_is_counted_once(stores, file):
    """Rows vanished inside an unclosed quote; a bad value was a traceback that lost the file."""
    name, content, n = file
    with stores.at(content, name) as (store, path):
        before = size(store)
        try:
            report = import_labels(store, read_records(path), source=name)
        except RequestError as error:
            assert "\n" not in str(error) and size(store) == before
            str(error).encode()
            return
        left = len(report.left_out)
        assert report.records == report.added + report.duplicates + report.conflicts + left
        if n is not None:
            assert report.records == n
        after = size(store)
        assert after[0] - before[0] == report.added
        assert after[2] - before[2] == report.prompts
        report.model_dump_json()


@pytest.mark.slow
@many
@given(file=files(PROMPT_FIELDS, ("text",)))
def test_every_row_of_a_file_of_prompts_is_counted_once(stores, file):
    """Half an emoji, or a name nested too deeply, was a traceback, and no prompt was read."""
    name, content, n = file

    def plain(chat):
        return "\n".join(turn.content for turn in chat), {"template": "plain"}

    with stores.at(content, name) as (store, path):
        before = size(store)
        try:
            found = read_prompts(path, renderer=lambda: plain)
        except RequestError as error:
            assert "\n" not in str(error)
            str(error).encode()
            return
        added = len(store.prompts.add_all(found.prompts))
        known = len(found.prompts) - added
        assert found.rows == added + known + len(found.left_out)
        if n is not None:
            assert found.rows == n
        assert size(store)[2] - before[2] == added
        found.model_dump_json()


@pytest.mark.slow
@many
@given(data=st.data())
def test_a_lost_quote_never_takes_labels_along_unsaid(stores, data):
    """Two of three labels vanished inside the reason of the first: '1 added, 0 left out'."""
    n = data.draw(st.integers(1, 5))
    reasons = st.sampled_from(["x", 'said "eat"', "a, b", "", 'an "eat', '"eat" they said'])
    rows = [
        [prompt_id(TEXTS[0]), str(i % 3 + 1), "evil", f"{data.draw(st.integers())}", "r"]
        for i in range(n)
    ]
    for row in rows:
        row[-1] = data.draw(reasons)
    out = io.StringIO(newline="")
    writer = csv.writer(out, quoting=data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
    writer.writerow(["prompt_id", "token_id", "label", "author", "reason"])
    writer.writerows(rows)
    content = out.getvalue()
    quotes = [i for i, c in enumerate(content) if c == '"'] or [len(content) - 1]
    at = data.draw(st.sampled_from(quotes))
    with stores.at((content[:at] + content[at + 1 :]).encode(), "lost.csv") as (store, path):
        try:
            report = import_labels(store, read_records(path), source="lost.csv")
        except RequestError:
            return
        assert report.records == n or report.left_out
