"""Progress of long work: a callable of a step's name, the items done, and the items in all.

for prompt in tracked(prompts, "steer", work.progress):
    ...
work.progress = Bars()          # a bar on a terminal for every step that is under way
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

_SILENCE_S = 30
_LONG_S = 5
_LARGE_MB = 100

Item = TypeVar("Item")

Progress = Callable[[str, int, int], None]
"""Called with a step's name, items done and items in all; what it raises stops the work."""


def no_progress(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


def tracked(items: Sequence[Item], step: str, progress: Progress) -> Iterator[Item]:
    """The items one by one; each counts as done when the next one is requested."""
    progress(step, 0, len(items))
    for done, item in enumerate(items, start=1):
        yield item
        progress(step, done, len(items))


class Bars:
    """A bar for each step under way; those inside another go when done.

    Where there is no terminal, lines on standard error instead: at the start of a step of many
    megabytes, every half a minute, whether or not a step counts, and at the end of a step that took
    long.
    """

    def __init__(self) -> None:
        self._open: dict[str, tqdm[NoReturn]] = {}
        self._began: dict[str, float] = {}
        self._start = self._said = time.monotonic()
        self._newest, self._closed = "working", threading.Event()
        if not sys.stderr.isatty():
            threading.Thread(target=self._while_silent, daemon=True).start()

    def _while_silent(self) -> None:
        """Say how far the work is whenever nothing was said for long."""
        while not self._closed.wait(max(0.0, self._said + _SILENCE_S - time.monotonic())):
            if time.monotonic() - self._said >= _SILENCE_S:
                self._print(f"{self._newest} ({time.monotonic() - self._start:.0f} s)")

    def _print(self, line: str) -> None:
        self._said = time.monotonic()
        print(line, file=sys.stderr, flush=True)

    def _say(self, step: str, done: int, total: int) -> None:
        now = time.monotonic()
        begins = self._began.setdefault(step, now) == now
        self._newest = f"{step}: {done} of {total}"
        large = begins and step.endswith("(MB)") and total >= _LARGE_MB
        if large or (done >= total and now - self._began[step] > _LONG_S):
            self._print(self._newest)
        if done >= total:
            self._began.pop(step)

    def __call__(self, step: str, done: int, total: int) -> None:
        if not sys.stderr.isatty():
            self._say(step, done, total)
            return
        from tqdm import tqdm

        bar = self._open.get(step)
        if bar is None:
            bar = tqdm(total=total, desc=step, leave=None, disable=None)
            self._open[step] = bar
        if bar.total != total or done < bar.n:
            bar.reset(total)
        bar.update(done - bar.n)
        if done >= total:
            self._open.pop(step).close()

    def close(self) -> None:
        """Close what an error left open, and say nothing more."""
        self._closed.set()
        while self._open:
            self._open.popitem()[1].close()


def above_bars(stream: Any) -> AbstractContextManager[Any]:
    """Print what is written inside above the current bars."""
    tqdm = sys.modules.get("tqdm")  # without it there is no bar
    return tqdm.tqdm.external_write_mode(stream) if tqdm else nullcontext()
