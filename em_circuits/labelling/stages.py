"""What happens when one step of labelling fails on one prompt?

with stage("judge"):
    ...                                  # any error becomes StageFailed("judge: ...")
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

from pivotal_tokens.errors import RunEnds

Stage = Literal["next_tokens", "judge", "graphs", "rollouts"]


class StageFailed(Exception):
    """A stage failed on one prompt; carries the stage's name."""

    def __init__(self, stage: Stage, cause: Exception | str) -> None:
        detail = " ".join(str(cause).split()) or type(cause).__name__
        super().__init__(f"{stage}: {detail}")
        self.stage = stage


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Turn what goes wrong with one prompt inside the block into a `StageFailed`."""
    try:
        yield
    except (OSError, RunEnds, StageFailed):
        raise  # what is wrong with the disk or the budget is wrong for every prompt
    except Exception as error:
        # The boundary that keeps one prompt from stopping the others: whatever went wrong with it
        # is recorded.
        raise StageFailed(name, error) from error
