"""Who builds graphs and rollouts while prompts are written, screened and judged?

Threads of their own. A model is run by one of them at a time, which holds `Workspace.running`, as
whoever screens does: attributions and gradients hook the same modules. More than one thread pays
where jobs also wait for an endpoint.

    with GraphWorker(finish, threads=2) as worker:
        worker.submit(judged)
        for result in worker.done(): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from em_circuits.labelling.label_result import LabelResult
from pivotal_tokens.schema import JudgedPrompt


class GraphWorker:
    """Finishes judged prompts in the background."""

    def __init__(self, finish: Callable[[JudgedPrompt], LabelResult], *, threads: int = 1) -> None:
        """Set up; no thread runs before the first prompt is submitted.

        Args:
            finish: Builds what a prompt is to have; runs on a thread of the worker.
            threads: Prompts that are worked on at the same time.
        """
        self._finish = finish
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="graphs")
        self._jobs: list[Future[LabelResult]] = []

    @property
    def pending(self) -> int:
        """Prompts submitted whose result was not taken."""
        return len(self._jobs)

    def submit(self, judged: JudgedPrompt) -> None:
        """Have a prompt finished."""
        self._jobs.append(self._pool.submit(self._finish, judged))

    def done(self) -> Iterator[LabelResult]:
        """What is finished now; what went wrong on a thread is raised here, one at a time."""
        for job in [job for job in self._jobs if job.done()]:
            self._jobs.remove(job)
            if not job.cancelled():
                yield job.result()

    def __enter__(self) -> GraphWorker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let what has begun end; the rest is for the next run."""
        self._pool.shutdown(cancel_futures=True)
