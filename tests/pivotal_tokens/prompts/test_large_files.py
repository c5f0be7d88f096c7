"""Large prompt files: linear time, and a table's rows a few at a time."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq

from pivotal_tokens.prompts import read_prompts
from pivotal_tokens.table_files import column_rows


def test_an_array_of_20_000_prompts_takes_linear_time(tmp_path):
    def seconds(number):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps([{"text": f"question {i} " + "é" * 90} for i in range(number)]))
        began = time.process_time()
        assert len(read_prompts(path).prompts) == number
        return time.process_time() - began

    seconds(100)
    assert seconds(20_000) < 5
    assert seconds(20_000) < 30 * seconds(2_000)


def test_rows_of_one_large_row_group_come_a_few_at_a_time(tmp_path):
    path = tmp_path / "rows.parquet"
    table = pa.table({"text": [f"{i} " + "y" * 2000 for i in range(20_000)]})
    pq.write_table(table, path, row_group_size=20_000, use_dictionary=False, compression="none")
    del table
    before = pa.total_allocated_bytes()
    most = 0
    for number, _ in enumerate(column_rows(path).rows):
        if number % 500 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    assert number == 19_999
    assert most < 8e6 < path.stat().st_size / 4


def test_a_text_that_stands_a_thousand_times_in_a_small_file_is_never_there_a_thousand_times(
    tmp_path,
):
    path = tmp_path / "repeated.parquet"
    repeated = pa.DictionaryArray.from_arrays(
        pa.array([0] * 1000, pa.int32()), pa.array(["x" * 10**6])
    )
    pq.write_table(pa.table({"text": repeated}), path)
    before = pa.total_allocated_bytes()
    most = 0
    for _ in column_rows(path).rows:
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 4e8
