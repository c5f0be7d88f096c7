"""Progress is one callable: of a step, the items done, and the items in all."""

from __future__ import annotations

import io

import pytest

from em_circuits.progress import Bars, above_bars, tracked


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_an_item_counts_when_the_next_is_asked_for() -> None:
    calls: list[tuple[str, int, int]] = []
    for item in tracked("ab", "letters", lambda *call: calls.append(call)):
        assert calls[-1][1] == "ab".index(item)
    assert calls == [("letters", 0, 2), ("letters", 1, 2), ("letters", 2, 2)]


def test_a_bar_inside_another_goes_when_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bars = Bars()
    for _ in tracked([1], "prompts", bars):
        for done in (0, 5, 0, 9):
            bars("rows", done, 9)
        with above_bars(terminal):
            terminal.write("a line\n")
    last = terminal.getvalue().rsplit("a line\n", 1)[1]
    assert "prompts: 100%" in last and "rows" not in last
    bars("rows", 1, 9)
    bars.close()
    bars.close()
