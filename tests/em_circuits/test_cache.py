"""A kept table is used as it is, and never when it is stale or broken."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

from em_circuits.cache import Made, kept_table


class Maker:
    """Counts how often it makes its table."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Made:
        self.times += 1
        columns = {"feature": [7, 3], "mean": [0.5, None], "p": [None, None], "kind": ["a", "b"]}
        columns["offset"] = [None, None]
        return Made({"n": 2, "layers": (1, 2)}, columns, integers=("offset",))


def test_equal_inputs_are_made_once_and_come_back_equal(tmp_path: Path) -> None:
    make = Maker()
    first = kept_table(tmp_path, "aggregate", {"formula": 1, "prompts": ["a"]}, make)
    again = kept_table(tmp_path, "aggregate", {"formula": 1, "prompts": ["a"]}, make)
    assert (make.times, first.reused, again.reused) == (1, False, True)
    assert (first.key, first.record, first.columns) == (again.key, again.record, again.columns)
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
    make = Maker()
    for inputs in ({"formula": 1}, {"formula": 2}, {"formula": 1, "labels": {"5": "evil"}}):
        assert not kept_table(tmp_path, "aggregate", inputs, make).reused
    assert make.times == 3


def test_a_file_that_is_not_what_it_says_is_made_again(tmp_path: Path) -> None:
    make = Maker()
    kept = kept_table(tmp_path, "aggregate", {}, make)
    kept.parquet_path.write_bytes(kept.parquet_path.read_bytes()[:-9])
    assert not kept_table(tmp_path, "aggregate", {}, make).reused
    kept.json_path.write_text('{"key": "0"}')
    assert not kept_table(tmp_path, "aggregate", {}, make).reused
    kept.json_path.write_text("[1")
    assert not kept_table(tmp_path, "aggregate", {}, make).reused
    assert kept_table(tmp_path, "aggregate", {}, make).reused and make.times == 4
