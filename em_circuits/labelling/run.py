"""A labelling run: stages connected by queues in one event loop.

    source -> screening (batches) -> judge (many at once) -> store -> graphs, rollouts -> results

    run = Run(work, source, judge, settings, n=50, events=events)
    for result in run.results(): ...            # run.stop() from anywhere ends it

Stages wait for the network in the event loop and for models and disk in threads; whoever runs a
model holds `Workspace.running`, so that it is one at a time. What comes before a slow stage waits
for room in its queue. Every step is in the store when it is done: killed anywhere and started
again, a run repeats nothing. It ends when its number is reached, the source has no more, it is
stopped, the budget is spent, an endpoint takes no call, more than a fifth of at least ten prompts
failed, or the disk is nearly full.
"""

from __future__ import annotations

import asyncio
import queue
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from em_circuits.engine.events import EventLog
from em_circuits.labelling.judging import judge_screened, keep_answers
from em_circuits.labelling.label import begin, finish_prompt, record_failure
from em_circuits.labelling.result import LabelResult, LabelSettings
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.sources import ListSource, PromptStream
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RunEnds
from pivotal_tokens.judge import Judge, ModelJudge
from pivotal_tokens.judge.model import JudgeSession
from pivotal_tokens.llm import BudgetExhausted
from pivotal_tokens.schema import JudgedPrompt, Prompt
from pivotal_tokens.store import Screened

Item = TypeVar("Item")
Ending = Literal[
    "done", "no more prompts", "stopped", "budget", "endpoint", "errors", "disk", "failed"
]

BATCH = 32
"""Prompts that are screened together."""
_MOST_WAITING_GRAPHS = 64
_ERROR_RATE, _ERROR_LEAST = 0.2, 10
"""A run ends when more than this share of its prompts failed, of at least so many."""
_LEAST_FREE_BYTES = 500_000_000
"""A run ends when the disk has less."""
_BUILDERS = 4
"""Prompts with rollouts at a time where a model judges them: one runs the models, the rest ask."""
_GATHER_S = 0.01
"""How long the first of several answers waits for the others, so that one write stores them all."""


@dataclass
class RunState:
    """How far a run is."""

    generated: int = 0
    screened: int = 0
    judged: int = 0
    flagged: int = 0
    building: int = 0
    """Prompts that wait for graphs or rollouts, or get them."""
    finished: int = 0
    failed: int = 0
    filtered: int = 0
    """Prompts that a filter of the judge's endpoint refused; they are no failures."""
    ending: Ending | None = None
    """Why it ended; None while it runs."""
    message: str = ""

    @property
    def many_failed(self) -> str | None:
        """What ends a run that nobody watches: more prompts failed than a few broken ones."""
        if self.finished < _ERROR_LEAST or self.failed <= _ERROR_RATE * self.finished:
            return None
        return (
            f"{self.failed} of {self.finished} prompts failed; em-circuits status PROMPT says why"
        )


class Run:
    """One run."""

    def __init__(
        self,
        work: Workspace,
        source: PromptStream,
        judge: Judge,
        settings: LabelSettings,
        *,
        n: int | None = None,
        batch: int = BATCH,
        unattended: bool = True,
        events: EventLog | None = None,
    ) -> None:
        """Set up; nothing runs before `results` is iterated.

        Args:
            n: Prompts in all; None goes on.
            unattended: End the run when many prompts fail, or the disk is nearly full.
        """
        self._work, self._source, self._judge = work, source, judge
        self._settings, self._n, self._batch = settings, n, batch
        self._unattended, self._events = unattended, events
        self.state = RunState()
        self._loop = asyncio.new_event_loop()
        self._results: queue.SimpleQueue[LabelResult | BaseException | None] = queue.SimpleQueue()
        self._draining = False
        self._error: BaseException | None = None
        self._session: JudgeSession | None = None
        self._judge_ended = False

    def results(self) -> Iterator[LabelResult]:
        """Run, yielding each prompt's result when it is complete.

        Raises:
            BaseException: What went wrong with more than a prompt; what had begun is finished.
        """
        _ = self._work.pair  # loaded in this thread, before others need it
        thread = threading.Thread(target=self._run, name="labelling", daemon=True)
        thread.start()
        try:
            while (result := self._results.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self.stop()
            thread.join()

    def stop(self) -> None:
        """End after what is in flight; from any thread, or from a signal's handler."""
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(
                self._end, "stopped", "interrupted; what was in flight is finished"
            )

    # the event loop's thread

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._stages())
        except BaseException as error:  # raised to whoever takes; a thread has nobody else
            self._error = self._error or error
        self._results.put(self._error)

    async def _stages(self) -> None:
        judge = self._judge
        self._log("start", source=self._source.id, judge=judge.id, n=self._n)
        try:
            if isinstance(judge, ModelJudge):
                async with judge.session() as self._session:
                    await self._pump(2 * judge.concurrency)  # no slot stands idle
            else:
                await self._pump(0)
            if self.state.ending is None:
                reached = self._n is not None and self.state.generated >= self._n
                self.state.ending = "done" if reached else "no more prompts"
        finally:
            state = self.state
            self._log(
                "stop",
                ending=state.ending or "failed",
                finished=state.finished,
                failed=state.failed,
                filtered=state.filtered,
                flagged=state.flagged,
            )

    async def _pump(self, askers: int) -> None:
        """Let every stage work until the source has no more and all queues are empty."""
        waits = self._settings.rollouts is not None and self._session is not None
        self._unjudged: asyncio.Queue[Screened] = asyncio.Queue(BATCH)
        self._answered: asyncio.Queue[JudgedPrompt] = asyncio.Queue()
        self._to_build: asyncio.Queue[JudgedPrompt] = asyncio.Queue()
        self._to_finish: asyncio.Queue[JudgedPrompt] = asyncio.Queue(self._batch)
        self._room = asyncio.Event()
        self._room.set()
        workers = [
            *(self._worker(self._unjudged, self._ask) for _ in range(askers)),
            self._store_answers(),
            *(self._worker(self._to_build, self._build) for _ in range(_BUILDERS if waits else 1)),
            self._worker(self._to_finish, self._finish),
        ]
        tasks = [asyncio.create_task(worker) for worker in workers]
        try:
            async for prompts in self._batches():
                await self._guarded(self._screen, prompts)
            for each in (self._unjudged, self._answered, self._to_build, self._to_finish):
                await each.join()
        finally:
            for task in tasks:
                task.cancel()

    async def _worker(
        self, items: asyncio.Queue[Item], handle: Callable[[Item], Awaitable[None]]
    ) -> None:
        while True:
            await self._guarded(handle, await items.get())
            items.task_done()

    async def _guarded(self, handle: Callable[[Item], Awaitable[None]], item: Item) -> None:
        """Do something; what goes wrong with more than a prompt ends the run after the rest."""
        try:
            await handle(item)
        except RunEnds as error:
            self._ran_out(error)
        except Exception as error:
            self._fail(error)

    async def _batches(self) -> AsyncIterator[list[Prompt]]:
        """New prompts of the source, which writes one batch while another is worked on."""
        left, seen = self._n, set[str]()
        with ThreadPoolExecutor(1, thread_name_prefix="generator") as thread:

            def take() -> asyncio.Future[list[Prompt]]:
                n = self._batch if left is None else min(self._batch, left)
                return self._loop.run_in_executor(thread, self._source.take, n)

            ahead = None if left == 0 else take()
            try:
                while ahead is not None and self.state.ending is None:
                    prompts = await ahead
                    left = None if left is None else max(0, left - len(prompts))
                    ahead = take() if prompts and left != 0 and self.state.ending is None else None
                    new = {p.prompt_id: p for p in prompts if p.prompt_id not in seen}
                    seen |= new.keys()
                    yield list(new.values())
            except RunEnds as error:  # the generator's; what is in flight is finished
                self._ran_out(error)
            except Exception as error:
                self._fail(error)
            finally:
                if ahead is not None:  # written for the next start
                    await asyncio.wait([ahead])
                await self._loop.run_in_executor(thread, self._source.close)

    async def _screen(self, prompts: list[Prompt]) -> None:
        await self._room.wait()
        if not prompts or self.state.ending is not None:
            return
        state, work = self.state, self._work
        state.generated += len(prompts)
        self._log("generated", prompts=[prompt.prompt_id for prompt in prompts])
        if self._unattended and work.root.is_dir():
            free = shutil.disk_usage(work.root).free
            if free < _LEAST_FREE_BYTES:
                room = f"{work.root} has {free / 1e9:.2f} GB left; make room, then run it again"
                self._end("disk", room)
                return

        def screen() -> tuple[list[Screened], list[LabelResult]]:
            with work.running:
                begin(work, prompts)
                screened, failures = screen_prompts(work, prompts, top_k=thresholds.top_k)
            failed = [record_failure(work, each, self._judge.id, why) for each, why in failures]
            return screened, failed

        thresholds = self._settings.thresholds
        screened, failed = await asyncio.to_thread(screen)
        state.screened += len(screened)
        self._log("screened", prompts=len(screened), new=sum(item.new for item in screened))
        for result in failed:
            self._take(result)
        judged, unjudged = await asyncio.to_thread(
            judge_screened, work.store, work.pair.key, screened, self._judge, thresholds
        )
        for each in judged:
            await self._hand_on(each)
        for item in unjudged:
            await self._unjudged.put(item)

    async def _ask(self, item: Screened) -> None:
        """Have a model judge label a prompt."""
        assert self._session is not None
        if self._draining or self._judge_ended:
            return
        try:
            judged = await self._session.ask(item.prompt, item.next_tokens)
        except RunEnds as error:  # others in flight go on to their end, graphs too
            self._judge_ended = True
            self._session.client.stop()
            self._ran_out(error)
            return
        except Exception as error:  # of this prompt
            if self._draining or self._judge_ended:  # not sent any more; the next run asks
                return
            judged = JudgedPrompt(prompt=item.prompt, next_tokens=item.next_tokens, outcome=error)
        await self._answered.put(judged)

    async def _store_answers(self) -> None:
        """Store the answers that have come, in one write, on the thread of the ledger."""
        while True:
            answered = [await self._answered.get()]
            await asyncio.sleep(_GATHER_S)
            while not self._answered.empty():
                answered.append(self._answered.get_nowait())

            async def store(answered: list[JudgedPrompt] = answered) -> None:
                work, thresholds = self._work, self._settings.thresholds
                assert self._session is not None
                for each in await self._session.client.in_store(
                    keep_answers, work.store, work.pair.key, answered, thresholds
                ):
                    await self._hand_on(each)

            await self._guarded(lambda _: store(), None)
            for _ in answered:
                self._answered.task_done()

    async def _hand_on(self, judged: JudgedPrompt) -> None:
        state, verdict = self.state, judged.verdict
        state.judged += 1
        if verdict is not None:
            state.flagged += verdict.flagged
            self._log(
                "judged",
                prompt_id=judged.prompt.prompt_id,
                verdict=verdict.kind,
                flagged=verdict.flagged,
                new=judged.new,
            )
        if verdict is not None and self._settings.runs_models(verdict):
            state.building += 1
            if state.building > _MOST_WAITING_GRAPHS:  # no more are screened meanwhile
                self._room.clear()
            await self._to_build.put(judged)
        else:
            await self._to_finish.put(judged)

    async def _build(self, judged: JudgedPrompt) -> None:
        """Graphs and rollouts."""
        try:
            if not self._draining:
                await self._finish(judged)
        except RunEnds:  # of a rollout's judge; the other threads will run out, too
            self._draining = True
            raise
        finally:
            self.state.building -= 1
            if self.state.building <= _MOST_WAITING_GRAPHS:
                self._room.set()

    async def _finish(self, judged: JudgedPrompt) -> None:
        self._take(
            await asyncio.to_thread(finish_prompt, self._work, judged, self._judge, self._settings)
        )

    def _take(self, result: LabelResult) -> None:
        """Hand a result to the iterator."""
        state = self.state
        state.finished += 1
        if result.error is not None:
            state.failed += 1
            self._log("failed", prompt_id=result.prompt_id, error=result.error)
        elif result.filtered is not None:
            state.filtered += 1
            self._log("filtered", prompt_id=result.prompt_id, reason=result.filtered)
        else:
            keys = sorted(key for key in result.graphs.values() if key)
            self._log("finished", prompt_id=result.prompt_id, graphs=keys)
        self._results.put(result)
        if self._unattended and state.many_failed:
            self._end("errors", state.many_failed)

    def _ran_out(self, error: RunEnds) -> None:
        """Every further call would fail as this one did; what was written is finished."""
        ending: Ending = "budget" if isinstance(error, BudgetExhausted) else "endpoint"
        self._end(ending, str(error), drain=False)

    def _fail(self, error: Exception) -> None:
        """End with an error that is not of one prompt."""
        self._error = self._error or error
        self._end("failed", "")

    def _end(self, ending: Ending, message: str, *, drain: bool = True) -> None:
        """Take no more prompts; `drain`: start nothing more, only finish what was started."""
        if self.state.ending is None:
            self.state.ending, self.state.message = ending, message
        self._source.stop()
        if drain:
            self._draining = True
            if self._session is not None:
                self._session.client.stop()

    def _log(self, event: Any, **fields: Any) -> None:
        if self._events is not None:
            self._events.add(event, **fields)


def label_prompts(
    work: Workspace, prompts: Iterable[Prompt], judge: Judge, settings: LabelSettings
) -> Iterator[LabelResult]:
    """Take prompts through the whole run, streaming each result as soon as it is known.

    Yields:
        One result a prompt, failed ones included.

    Raises:
        WorkFailed: If the models are not what they are said to be (nothing is written then), the
            budget is spent or an endpoint takes no call.
    """
    run = Run(work, ListSource("given", prompts), judge, settings, unattended=False)
    yield from run.results()
    if run.state.ending in ("budget", "endpoint"):
        raise RunEnds(run.state.message)
