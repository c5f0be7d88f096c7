"""Who builds graphs while prompts are written, screened and judged?

One thread, because circuit-tracer must not attribute twice at once over shared transcoders. Whoever
runs a model (screening too: gradients hook the same modules) holds `models` meanwhile.

    with GraphWorker(finish, models=lock) as worker:
        worker.submit(judged)
        for result in worker.done(): ...
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from em_circuits.pipeline.judging import JudgedPrompt
from em_circuits.pipeline.label_result import LabelResult


class GraphWorker:
    """Finishes judged prompts in the background, one after another."""

    def __init__(
        self, finish: Callable[[JudgedPrompt], LabelResult], *, models: threading.Lock
    ) -> None:
        """Set up; nothing runs before the block is entered.

        Args:
            finish: Builds what a prompt is to have; runs on the thread, holding `models`.
            models: Held by whoever runs a model.
        """
        self._finish, self._models = finish, models
        self._jobs: queue.Queue[JudgedPrompt | None] = queue.Queue()
        self._results: queue.Queue[LabelResult | BaseException] = queue.Queue()
        self._pending = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="graphs", daemon=True)

    @property
    def pending(self) -> int:
        """Prompts submitted whose result was not taken."""
        return self._pending

    def submit(self, judged: JudgedPrompt) -> None:
        """Have a prompt finished."""
        self._pending += 1
        self._jobs.put(judged)

    def done(self) -> Iterator[LabelResult]:
        """What is finished now; an error of the thread is raised here.

        Raises:
            Exception: What ended the thread.
        """
        while True:
            try:
                result = self._results.get_nowait()
            except queue.Empty:
                return
            if isinstance(result, BaseException):
                raise result
            self._pending -= 1
            yield result

    def __enter__(self) -> GraphWorker:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let what has begun end; the rest is for the next run."""
        self._stopping.set()
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (judged := self._jobs.get()) is not None and not self._stopping.is_set():
            try:
                with self._models:
                    result = self._finish(judged)
            except BaseException as error:  # told to whoever takes; a thread has nobody else
                self._results.put(error)
                return
            self._results.put(result)
