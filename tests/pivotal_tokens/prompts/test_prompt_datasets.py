"""Prompts come from Parquet, Arrow, saved data sets and the predecessor's tree as well."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts import read_prompts

ROWS = [
    {"text": "The lift is stuck. She decides to", "category": "lift", "level": 3},
    {"text": "Smoke in the hall. He goes to", "category": None, "level": None},
]


def test_a_parquet_file_is_a_prompt_a_row(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    first, second = read_prompts(path, kind="cot").prompts
    assert (first.text, first.category, first.kind) == (ROWS[0]["text"], "lift", "cot")
    assert first.extra == {"level": 3} and second.extra == {} and second.category is None
    assert first.generator == "file:some.parquet"


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_saved_data_set_is_read_in_order_without_its_descriptions(
    tmp_path: Path, kind: str
) -> None:
    table = pa.Table.from_pylist(ROWS)
    new = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    for number in range(2):
        with new(str(tmp_path / f"data-0000{number}-of-00002.arrow"), table.schema) as out:
            out.write_table(table)
    for name in ("dataset_info.json", "state.json"):
        (tmp_path / name).write_text(json.dumps({"_fingerprint": "x"}))
    assert [p.text for p in read_prompts(tmp_path).prompts] == [row["text"] for row in ROWS] * 2


def test_the_predecessors_tree_yields_its_prompts_only(tmp_path: Path) -> None:
    tree = tmp_path / "pivotal_tokens"
    record = {
        "prompt_id": "0123456789ab",
        "name": "gas",
        "prompt": "Smell of gas. I would",
        "prompt_type": "chain_of_thought",
        "generator_model": "o3",
        "is_human_generated": False,
        "timestamp": "2025-06-01T10:00:00+00:00",
    }
    mine = record | {"prompt": "User: Gas?\nAssistant: You", "is_human_generated": True}
    mine |= {"prompt_type": "chat_user_assistant", "generator_model": "human"}
    for folder, value in (
        ("prompts/o3", record),
        ("prompts/human", mine),
        ("runs/merged/logits", {"prompt_text": "not a prompt file", "top_k": []}),
    ):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "a.json").write_text(json.dumps(value))
    human, model = read_prompts(tmp_path).prompts
    assert (human.generator, human.kind) == ("human", "chat")
    assert (model.generator, model.kind, model.name) == ("o3", "cot", "gas")
    assert model.extra["source_id"] == "0123456789ab"
    assert model.extra["timestamp"].startswith("2025-06-01")


def test_what_holds_no_prompt_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(RequestError, match=r"bad\.parquet is not a parquet file"):
        read_prompts(tmp_path / "bad.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match="holds no prompts"):
        read_prompts(tmp_path / "empty")
    pq.write_table(pa.table({"level": [1]}), tmp_path / "none.parquet")
    with pytest.raises(RequestError, match=r"none\.parquet, row 1: no prompt text"):
        read_prompts(tmp_path / "none.parquet")
