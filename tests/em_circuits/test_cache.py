"""A stored result is used as it is, and never when it is stale or broken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from em_circuits.cache import (
    JOURNAL,
    PLAN,
    CachedTable,
    Journal,
    cached_table,
    read_json,
    read_model,
)
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen


class Computation:
    """Counts how often it computes its table."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> tuple[dict, pd.DataFrame]:
        self.times += 1
        columns = {"feature": [7, 3], "mean": [0.5, None], "p": [None, None], "kind": ["a", "b"]}
        frame = pd.DataFrame(columns).assign(offset=pd.array([None, None], "Int64"))
        return {"n": 2, "layers": (1, 2)}, frame


def test_equal_inputs_are_computed_once_and_come_back_equal(tmp_path: Path) -> None:
    compute = Computation()
    first = cached_table(tmp_path, "aggregate", {"formula": 1, "prompts": ["a"]}, compute)
    again = cached_table(tmp_path, "aggregate", {"formula": 1, "prompts": ["a"]}, compute)
    assert (compute.times, first.reused, again.reused) == (1, False, True)
    assert (first.key, first.record, first.rows()) == (again.key, again.record, again.rows())
    assert again.record == {"n": 2, "layers": [1, 2]}
    assert again.rows()[1] == {"feature": 3, "mean": None, "p": None, "kind": "b", "offset": None}
    types = {f.name: str(f.type) for f in pq.read_schema(again.parquet_path)}
    assert types == {
        "feature": "int64",
        "mean": "double",
        "p": "double",
        "kind": "string",
        "offset": "int64",
    }
    for path in (again.json_path, again.parquet_path):
        record = json.loads(path.with_name(path.name + ".provenance.json").read_text())
        assert record["key"] == first.key and record["inputs"]["prompts"] == ["a"]


def test_any_other_input_is_another_table(tmp_path: Path) -> None:
    """B28: caches by name alone gave yesterday's labels, graphs and formulas back."""
    compute = Computation()
    for inputs in ({"formula": 1}, {"formula": 2}, {"formula": 1, "labels": {"5": "evil"}}):
        assert not cached_table(tmp_path, "aggregate", inputs, compute).reused
    assert compute.times == 3
    assert len(CachedTable.newest(tmp_path, "aggregate")) == 3


def test_a_file_that_is_not_what_it_says_is_computed_again(tmp_path: Path) -> None:
    compute = Computation()
    table = cached_table(tmp_path, "aggregate", {}, compute)
    table.parquet_path.write_bytes(table.parquet_path.read_bytes()[:-9])
    assert not cached_table(tmp_path, "aggregate", {}, compute).reused
    for broken in ('{"key": "0"}', "[1", "[1]", '{"key": 1, "record": 2}'):
        table.json_path.write_text(broken)
        assert CachedTable.newest(tmp_path, "aggregate") == []
        assert not cached_table(tmp_path, "aggregate", {}, compute).reused
    assert cached_table(tmp_path, "aggregate", {}, compute).reused and compute.times == 6


def test_a_result_in_a_file_of_its_own_is_used_by_its_key_alone(tmp_path: Path) -> None:
    class Result(Frozen):
        key: str
        n: int

    path = tmp_path / "result.json"
    assert read_model(path, Result, "k") is None and read_json(path) is None
    for text, found in (
        ('{"key": "k", "n": 3}', Result(key="k", n=3)),
        ('{"key": "other", "n": 3}', None),
        ('{"key": "k", "of": "another form"}', None),
        ("{", None),
    ):
        path.write_text(text)
        assert read_model(path, Result, "k") == found


def test_a_journal_goes_on_after_a_line_was_cut_off(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, {"plan": 1})
    journal.add("a", {"rows": [1]})
    journal.add("b", {"rows": [2]})
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal.open(tmp_path, {"plan": 1})
    assert "a" in again and "b" not in again and len(again) == 1
    pieces = [("b", lambda: {"rows": [3]}), ("a", lambda: {"rows": ["never computed"]})]
    assert again.complete(pieces) == [{"rows": [3]}, {"rows": [1]}]
    assert Journal.open(tmp_path, {"plan": 1}).complete(pieces) == [{"rows": [3]}, {"rows": [1]}]


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"plan": 1})
    with pytest.raises(RequestError, match="another plan"):
        Journal.open(tmp_path, {"plan": 2})
    (tmp_path / PLAN).write_text("key: [")
    with pytest.raises(RequestError, match="another plan"):
        Journal.open(tmp_path, {"plan": 1})


def test_an_experiment_by_older_formulas_is_refused_and_called_that(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"plan": 1, "formula": 1})
    before = (tmp_path / PLAN).read_bytes()
    with pytest.raises(RequestError, match="an experiment of an older version"):
        Journal.open(tmp_path, {"plan": 1, "formula": 2})
    assert (tmp_path / PLAN).read_bytes() == before


def test_reading_needs_no_torch() -> None:
    code = "import sys, em_circuits.cache; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
