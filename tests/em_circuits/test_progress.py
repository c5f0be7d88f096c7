"""Progress is one callable: of a step, the items done, and the items in all."""

from __future__ import annotations

import io
import threading
import time

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


def test_without_a_terminal_long_silence_is_broken_until_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where nothing counts; a sweep of 418 s once printed nothing into its log."""
    monkeypatch.setattr("em_circuits.progress._SILENCE_S", 0.05)
    log, said = io.StringIO(), threading.Event()
    write = log.write

    def heard(text: str) -> int:
        said.set()
        return write(text)

    monkeypatch.setattr(log, "write", heard)
    monkeypatch.setattr("sys.stderr", log)
    bars = Bars()
    assert said.wait(60) and log.getvalue().startswith("working (")
    bars("sweep", 3, 9)
    said.clear()
    assert said.wait(60)
    while "sweep: 3 of 9 (" not in log.getvalue():
        time.sleep(0.01)
    bars.close()
    time.sleep(0.2)  # what was being written is
    before = log.getvalue()
    time.sleep(0.2)
    assert log.getvalue() == before
