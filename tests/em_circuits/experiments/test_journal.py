"""What is done stays done, and a line that was cut off does not count."""

from __future__ import annotations

from pathlib import Path

import pytest

from em_circuits.experiments.journal import JOURNAL, Journal
from pivotal_tokens.errors import RequestError


def test_a_journal_goes_on_after_a_line_was_cut_off(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, {"plan": 1})
    journal.add("a", {"rows": [1]})
    journal.add("b", {"rows": [2]})
    path = tmp_path / JOURNAL
    path.write_bytes(path.read_bytes()[:-9])
    again = Journal.open(tmp_path, {"plan": 1})
    assert "a" in again and "b" not in again and len(again) == 1
    again.add("b", {"rows": [3]})
    last = Journal.open(tmp_path, {"plan": 1})
    assert list(last.values(["b", "a", "c"])) == [{"rows": [3]}, {"rows": [1]}]


def test_another_plan_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path, {"plan": 1})
    with pytest.raises(RequestError, match="another plan"):
        Journal.open(tmp_path, {"plan": 2})
