"""How are prompts judged at the same time while the models go on with the next ones?

An event loop in a thread of its own. What is judged is kept at once, all that was finished
meanwhile in one write, and comes out in the order in which it was finished. Left with an error or
Ctrl-C, the lane lets the calls in flight finish and keeps what they say; the rest is not asked.

    with Lane(judge, keep) as lane:
        lane.submit(prompt, lists)
        for result in lane.take(leave=20): ...       # until no more than 20 are outstanding
        for result in lane.take(): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from pivotal_tokens.errors import RunEnds, WorkFailed
from pivotal_tokens.judge.model import JudgeSession, ModelJudge
from pivotal_tokens.schema import JudgedPrompt, NextTokenPair, Prompt

Result = TypeVar("Result")
_POLL_S = 1.0
_GATHER_S = 0.01
"""How long the first of several answers waits for the others, so that one write keeps them all."""


class Lane(Generic[Result]):
    """Judges prompts in the background."""

    def __init__(
        self, judge: ModelJudge, keep: Callable[[Sequence[JudgedPrompt]], Sequence[Result]]
    ) -> None:
        """Set up; nothing is asked before the block is entered.

        Args:
            judge: Whom to ask.
            keep: Keeps what several prompts came to, in one write; it runs beside the caller, on
                the thread that writes the ledger.
        """
        self._judge = judge
        self._keep = keep
        self._results: queue.Queue[Result | BaseException] = queue.Queue()
        self._outstanding = 0
        self._stopping = False
        self._answered: list[JudgedPrompt] = []
        self._loop = asyncio.new_event_loop()
        self._end, self._slots = asyncio.Event(), asyncio.Semaphore(2 * judge.concurrency)
        self._session: asyncio.Future[JudgeSession] = self._loop.create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)

    @property
    def outstanding(self) -> int:
        """Prompts submitted and not yet taken."""
        return self._outstanding

    def submit(self, prompt: Prompt, lists: NextTokenPair) -> None:
        """Have a prompt judged."""
        self._outstanding += 1
        with contextlib.suppress(RuntimeError):  # ended with an error that `take` will raise
            self._loop.call_soon_threadsafe(self._start, prompt, lists)

    def take(self, *, leave: int = 0) -> Iterator[Result]:
        """What is finished, waiting until at most `leave` prompts are outstanding.

        Raises:
            RunEnds: If no further prompt can be judged.
        """
        while self._outstanding:
            try:
                got = self._results.get(block=self._outstanding > leave, timeout=_POLL_S)
            except queue.Empty:
                if self._outstanding <= leave:
                    return
                if not self._thread.is_alive():
                    raise WorkFailed("the judge's thread ended; run again to go on") from None
                continue
            if isinstance(got, BaseException):
                raise got
            self._outstanding -= 1
            yield got

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = self._stopping or error is not None
        with contextlib.suppress(RuntimeError):  # ended before
            self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except Exception as error:  # told to whoever takes; a thread has nobody else to tell
            self._results.put(error)
        finally:
            self._end_tasks()
            self._loop.close()

    def _end_tasks(self) -> None:
        """After an error nothing is left behind that waits for ever."""
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left))

    def _start(self, prompt: Prompt, lists: NextTokenPair) -> None:
        task = self._loop.create_task(self._one(prompt, lists))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self) -> None:
        async with self._judge.session() as session:
            self._session.set_result(session)
            await self._end.wait()
            if self._stopping:
                session.client.stop()
            while self._tasks or self._keeper:
                waiting = [*self._tasks, *([self._keeper] if self._keeper else [])]
                await asyncio.wait(waiting)

    async def _one(self, prompt: Prompt, lists: NextTokenPair) -> None:
        session = await asyncio.shield(self._session)
        async with self._slots:  # as many again wait for their turn, so that no slot stands idle
            if self._stopping:
                return
            try:
                judged = await session.ask(prompt, lists)
            except RunEnds as error:
                self._stopping = True
                session.client.stop()
                self._results.put(error)
                return
            except Exception as error:  # of this prompt; the caller says what becomes of it
                if self._stopping:  # nobody takes it any more; the next run asks
                    return
                judged = JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=error)
        self._answered.append(judged)
        if self._keeper is None:
            self._keeper = self._loop.create_task(self._keep_all(session))

    async def _keep_all(self, session: JudgeSession) -> None:
        try:
            while self._answered:
                await asyncio.sleep(_GATHER_S)
                answered, self._answered = self._answered, []
                for result in await session.in_store(self._keep, answered):
                    self._results.put(result)
        except Exception as error:  # of the store; told to whoever takes
            self._stopping = True
            self._results.put(error)
        finally:
            self._keeper = None
