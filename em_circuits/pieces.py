"""Pieces of a command's work by key: done here, shared between jobs, or left to workers.

A command whose work splits (trials of a sweep, questions of an evaluation, prompts of a mediation)
names every piece by a key, and each piece keeps its own result when it is done. Which of them a
process does is its `Portion`: all, a share, or none but those that it is given.

    works = {"a": lambda: journal.add("a", ...), "b": ...}
    portion.do(works, left=["b"], step="sweep", progress=bars)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from em_circuits.progress import Progress, no_progress, tracked
from pivotal_tokens.artefacts import atomic_path

if TYPE_CHECKING:
    from torch import Tensor

Works = Mapping[str, Callable[[], object]]
TensorWorks = Sequence[tuple[str, Callable[[], "dict[str, Tensor]"]]]
"""Key and work of pieces whose results are tensors by name."""


class PiecesCollected(Exception):
    """A command came to pieces that a worker waits to be given."""

    def __init__(self, works: Works, left: Collection[str], more: bool) -> None:
        self.works, self.left, self.more = works, tuple(left), more


class OthersLeft(Exception):
    """This share of the pieces is done; the command ends when the others are, too."""


@dataclass(frozen=True)
class Portion:
    """The pieces of a command that this process does."""

    name: str = ""
    """Of its own journal beside those of others."""
    share: Callable[[str], bool] | None = None
    """Which keys it does; None: all."""
    collects: bool = False
    """Do none: a worker is given keys."""

    def do(
        self,
        works: Works,
        left: Collection[str],
        step: str = "",
        progress: Progress = no_progress,
        *,
        more: bool = False,
    ) -> None:
        """Do the pieces that are left, or those of them that are this process's.

        Args:
            works: Every piece by key; each keeps its own result.
            left: Keys without a result.
            more: Other pieces follow from these.

        Raises:
            PiecesCollected: On a worker.
            OthersLeft: If the rest is for other shares.
        """
        if self.collects and (left or not more):
            raise PiecesCollected(works, left, more)
        if not works:
            return
        mine = [key for key in left if self.share is None or self.share(key)]
        before = len(works) - len(left)
        progress(step, before, len(works))
        for done, key in enumerate(mine, start=before + 1):
            works[key]()
            progress(step, done, len(works))
        if len(mine) < len(left):
            raise OthersLeft(
                f"this share is done; {len(left) - len(mine)} of {len(works)} pieces are left to "
                "other shares: when all are done, run the command without --share"
            )

    def tensors(
        self,
        folder: Path,
        step: str,
        works: TensorWorks,
        progress: Progress = no_progress,
    ) -> list[dict[str, Tensor]]:
        """Results of pieces that are tensors, each in a file of its own; see `do`.

        Other pieces may follow from them: ``do({}, [])`` says that none do.
        """
        from safetensors.torch import load_file, save_file

        files = {f"{step}-{key}": folder / f"{step}-{key}.safetensors" for key, _ in works}

        def kept(file: Path, work: Callable[[], dict[str, Tensor]]) -> None:
            with atomic_path(file) as temporary:
                save_file({name: x.contiguous() for name, x in work().items()}, temporary)

        todo = {
            key: partial(kept, file, work)
            for (key, file), (_, work) in zip(files.items(), works, strict=True)
        }
        left = [key for key, file in files.items() if not file.is_file()]
        self.do(todo, left, step, progress, more=True)
        return [load_file(file) for file in files.values()]


EVERYTHING = Portion()

KeepTensors = Callable[[str, TensorWorks], "list[dict[str, Tensor]]"]
"""Does the pieces of a step and gives their results, in order."""


def in_memory(
    step: str, works: TensorWorks, progress: Progress = no_progress
) -> list[dict[str, Tensor]]:
    """Do pieces one after the other; keep nothing."""
    return [work() for _, work in tracked(works, step, progress)]
