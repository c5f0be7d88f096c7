"""How are prompts written while earlier ones are worked on?

    with Prefetch(source, batch=32) as ahead:
        ahead.ready()                 # a batch, None while one is being written
        ahead.exhausted

The source is asked on a thread of its own, a batch ahead at most.
"""

from __future__ import annotations

import queue
import threading
from types import TracebackType

from em_circuits.labelling.sources import Source
from pivotal_tokens.schema import Prompt


class Prefetch:
    """Asks a source for its next batch before that is needed."""

    def __init__(self, source: Source, *, batch: int, limit: int | None = None) -> None:
        """Set up; nothing is asked before the block is entered.

        Args:
            source: Gives prompts; it is closed at the end, on the thread that asked it.
            batch: Prompts asked for at a time.
            limit: Prompts in all; None: without end.
        """
        self._source, self._batch, self._left = source, batch, limit
        self._ready: queue.Queue[list[Prompt] | Exception] = queue.Queue(maxsize=1)
        self._stopping = threading.Event()
        self._exhausted = False
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)

    @property
    def exhausted(self) -> bool:
        """There will be no further batch."""
        return self._exhausted

    def ready(self) -> list[Prompt] | None:
        """The next batch, if it is there.

        Raises:
            Exception: What ended the source.
        """
        try:
            got = self._ready.get_nowait()
        except queue.Empty:
            return None
        if isinstance(got, Exception):
            self._exhausted = True
            raise got
        if not got:
            self._exhausted = True
            return None
        return got

    def stop(self) -> None:
        """Ask for no further batch."""
        self._stopping.set()
        self._source.stop()

    def __enter__(self) -> Prefetch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        while self._thread.is_alive():
            self._thread.join(timeout=0.05)
            try:  # it may wait for room
                self._ready.get_nowait()
            except queue.Empty:
                continue

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                wanted = self._batch if self._left is None else min(self._batch, self._left)
                batch = self._source.take(wanted) if wanted else []
                if self._left is not None:
                    self._left = max(0, self._left - len(batch))
                self._ready.put(batch)
                if not batch:
                    return
        except Exception as error:  # told to whoever takes; a thread has nobody else to tell
            self._ready.put(error)
        finally:
            self._source.close()
