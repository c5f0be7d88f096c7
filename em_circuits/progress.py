"""Progress of long work: a callable of a step's name, the items done, and the items in all.

for prompt in tracked(prompts, "steer", work.progress):
    ...
work.progress = Bars()          # a bar on a terminal for every step that is under way
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

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
    """A bar for each step under way, on a terminal only; those inside another go when done."""

    def __init__(self) -> None:
        self._open: dict[str, tqdm[NoReturn]] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
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
        """Close what an error left open."""
        while self._open:
            self._open.popitem()[1].close()


def above_bars(stream: Any) -> AbstractContextManager[Any]:
    """Print what is written inside above the current bars."""
    tqdm = sys.modules.get("tqdm")  # without it there is no bar
    return tqdm.tqdm.external_write_mode(stream) if tqdm else nullcontext()
