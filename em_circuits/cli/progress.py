"""How does a person see how far an attribution is?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from em_circuits.workspace import Workspace


@contextmanager
def attribution_bar(work: Workspace) -> Iterator[None]:
    """A bar of feature rows, base model first, for every graph built inside the block.

    It appears on a terminal only, with a graph's first rows, and is gone when the graph is done.
    """
    from tqdm import tqdm

    bar: tqdm[NoReturn] | None = None

    def show(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(desc="attribution", unit="row", position=1, leave=False, disable=None)
        if bar.total != total or done < bar.n:
            bar.reset(total)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            bar = None

    before, work.progress = work.progress, show
    try:
        yield
    finally:
        work.progress = before
        if bar is not None:
            bar.close()
