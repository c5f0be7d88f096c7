"""How does a run go on unattended: write, screen, judge, queue, build, until something says stop?

    generator thread -> screening (batches) -> judge (many at once) -> queue
                                                     |-> graph worker

    loop = Loop(work, source, judge, settings, LoopSettings(n=50), events=events, stop=stop)
    for result in loop.results(): ...

Every step is kept under its key when it is done: killed anywhere and started again, the run repeats
nothing. It ends when its number is reached, the source has no more, `stop` is set, the budget is
spent, an endpoint takes no call, more than a fifth of at least ten prompts failed, or the disk is
nearly full.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field

from em_circuits.labelling.events import EventLog
from em_circuits.labelling.judging import Judging
from em_circuits.labelling.label import BATCH, begin, finish_prompt, record_failure
from em_circuits.labelling.label_result import LabelResult, LabelSettings
from em_circuits.labelling.prefetch import Prefetch
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.sources import Source
from em_circuits.labelling.worker import GraphWorker
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RunEnds
from pivotal_tokens.judge import Judge, ModelJudge
from pivotal_tokens.llm import BudgetExhausted
from pivotal_tokens.schema import Frozen, JudgedPrompt, Prompt

_POLL_S = 0.02
_MOST_WAITING_GRAPHS = 64
_FINISHERS = 4
"""Prompts with rollouts at a time where a model judges them: one runs the models, the rest ask."""
_EVERYTHING = 10**9  # leave all outstanding: take what is there, wait for nothing

Ending = Literal["done", "no more prompts", "stopped", "budget", "endpoint", "errors", "disk"]


class LoopSettings(Frozen):
    """When a run ends, and how much it does at a time."""

    n: int | None = Field(default=None, ge=0)
    """Prompts in all; None goes on."""
    batch: int = Field(default=BATCH, ge=1)
    """Prompts screened together, at most."""
    error_rate: float = Field(default=0.2, ge=0, le=1)
    """The run ends when more than this share of its prompts failed ..."""
    error_least: int = Field(default=10, ge=1)
    """... of at least so many."""
    least_free_bytes: int = Field(default=500_000_000, ge=0)
    """The run ends when the disk has less."""


@dataclass
class Progress:
    """How far a run is."""

    generated: int = 0
    screened: int = 0
    judged: int = 0
    flagged: int = 0
    finished: int = 0
    failed: int = 0
    waiting_graphs: int = 0
    ending: Ending | None = None
    """Why it ended; None while it goes on."""
    message: str = ""
    started: float = field(default_factory=time.monotonic)

    @property
    def error_rate(self) -> float:
        return self.failed / self.finished if self.finished else 0.0

    def per_minute(self) -> float:
        """Prompts finished a minute."""
        return 60 * self.finished / max(time.monotonic() - self.started, 1e-9)


class Loop:
    """One run."""

    def __init__(
        self,
        work: Workspace,
        source: Source,
        judge: Judge,
        settings: LabelSettings,
        limits: LoopSettings,
        *,
        events: EventLog,
        stop: threading.Event,
    ) -> None:
        """Set up; nothing runs before `results` is iterated.

        Args:
            work: Models, store and graphs; the store is written.
            source: Gives the prompts; closed at the end.
            judge: Labels tokens.
            settings: Thresholds, graphs, rollouts.
            limits: When the run ends.
            events: Told everything that happens.
            stop: Set from outside to end the run after what is in flight.
        """
        self._work, self._source, self._judge = work, source, judge
        self._settings, self._limits = settings, limits
        self._events, self._stop = events, stop
        self._seen: set[str] = set()
        self._judge_ended = False
        self.progress = Progress()

    def results(self) -> Iterator[LabelResult]:
        """Run, yielding each prompt's result when everything about it is done."""
        self._events.add("start", source=self._source.id, judge=self._judge.id, n=self._limits.n)
        try:
            with ExitStack() as stack:
                limit = self._limits.n
                ahead = stack.enter_context(
                    Prefetch(self._source, batch=self._limits.batch, limit=limit)
                )
                worker = stack.enter_context(GraphWorker(self._finish, threads=self._threads))
                judging = stack.enter_context(Judging(self._work, self._judge, self._settings))
                yield from self._run(ahead, judging, worker)
        except _Hurry:  # what had begun was finished on the way out of the block
            yield from self._rest(worker)
        finally:
            progress = self.progress
            self._events.add(
                "stop",
                ending=progress.ending or "failed",
                finished=progress.finished,
                failed=progress.failed,
                flagged=progress.flagged,
            )

    def _run(self, ahead: Prefetch, judging: Judging, worker: GraphWorker) -> Iterator[LabelResult]:
        while not self._over(ahead, worker):
            before = self.progress.finished, self.progress.judged, self.progress.generated
            for judged in self._take(judging):
                result = self._judged(judged, worker)
                if result is not None:
                    yield self._finished(result)
            try:
                yield from map(self._finished, worker.done())
            except RunEnds as error:  # a rollout's judge; its thread has ended
                self._ran_out(error)
                raise _Hurry from error
            self.progress.waiting_graphs = worker.pending
            self._check_limits()
            if self.progress.ending in ("stopped", "disk", "errors"):
                raise _Hurry
            if self._has_room(judging, worker):
                for failed in self._screen(self._batch(ahead), judging):
                    yield self._finished(failed)
            if before == (self.progress.finished, self.progress.judged, self.progress.generated):
                time.sleep(_POLL_S)
        if self.progress.ending is None:
            reached = self._limits.n is not None and self.progress.generated >= self._limits.n
            self._end("done" if reached else "no more prompts", "")

    @property
    def _threads(self) -> int:
        """Of the graph worker: more than one where rollouts wait for an endpoint."""
        waits = self._settings.rollouts is not None and isinstance(self._judge, ModelJudge)
        return _FINISHERS if waits else 1

    def _rest(self, worker: GraphWorker) -> Iterator[LabelResult]:
        """What the worker had begun; every thread may have run out of the same budget."""
        while worker.pending:
            with suppress(RunEnds):
                yield from map(self._finished, worker.done())

    def _over(self, ahead: Prefetch, worker: GraphWorker) -> bool:
        """Nothing is left to do."""
        more = self.progress.ending is None and not ahead.exhausted
        judging = self._outstanding and not self._judge_ended
        return not more and not judging and not worker.pending

    def _take(self, judging: Judging) -> Iterator[JudgedPrompt]:
        """What was judged meanwhile; a spent budget ends judging, graphs go on."""
        if self._judge_ended:
            return
        try:
            yield from judging.take(leave=_EVERYTHING)
        except RunEnds as error:
            self._judge_ended = True
            self._ran_out(error)

    def _batch(self, ahead: Prefetch) -> list[Prompt]:
        """The next prompts, none where there are none yet or no more are to be begun."""
        if self.progress.ending is not None:
            ahead.stop()
            return []
        try:
            return ahead.ready() or []
        except RunEnds as error:  # the generator's; what is in flight is finished
            self._ran_out(error)
            return []

    @property
    def _outstanding(self) -> int:
        return self.progress.screened - self.progress.judged

    def _has_room(self, judging: Judging, worker: GraphWorker) -> bool:
        return self._outstanding <= judging.ahead and worker.pending <= _MOST_WAITING_GRAPHS

    def _ran_out(self, error: RunEnds) -> None:
        """Every further call would fail as this one did."""
        self._end("budget" if isinstance(error, BudgetExhausted) else "endpoint", str(error))

    def _end(self, ending: Ending, message: str) -> None:
        if self.progress.ending is None:
            self.progress.ending, self.progress.message = ending, message

    def _check_limits(self) -> None:
        progress, limits = self.progress, self._limits
        if progress.ending is not None:
            return
        if self._stop.is_set():
            self._end("stopped", "interrupted; what was in flight is finished")
        elif progress.finished >= limits.error_least and progress.error_rate > limits.error_rate:
            self._end(
                "errors",
                f"{progress.failed} of {progress.finished} prompts failed; "
                "em-circuits status PROMPT says why",
            )

    def _screen(self, prompts: list[Prompt], judging: Judging) -> Iterator[LabelResult]:
        progress, work = self.progress, self._work
        if not prompts:
            return
        new = [p for p in prompts if p.prompt_id not in self._seen]
        self._seen.update(p.prompt_id for p in new)
        progress.generated += len(new)
        self._events.add("generated", prompts=[p.prompt_id for p in new])
        free = shutil.disk_usage(work.root).free
        if free < self._limits.least_free_bytes:
            self._end(
                "disk", f"{work.root} has {free / 1e9:.2f} GB left; make room, then run it again"
            )
            return
        with work.running:
            begin(work, new)
            batch = screen_prompts(work, new, self._settings)
        self._events.add("screened", prompts=len(batch.next_tokens), new=len(batch.new))
        for prompt_id, failure in batch.failures.items():
            yield record_failure(work, batch.prompts[prompt_id], self._judge, failure)
        progress.screened += len(batch.next_tokens)
        judging.submit(batch)

    def _judged(self, judged: JudgedPrompt, worker: GraphWorker) -> LabelResult | None:
        """Hand a prompt on; its result where nothing is to be built."""
        progress, verdict = self.progress, judged.verdict
        progress.judged += 1
        prompt_id = judged.prompt.prompt_id
        if verdict is not None:
            progress.flagged += verdict.flagged
            self._events.add(
                "judged",
                prompt_id=prompt_id,
                verdict=verdict.kind,
                flagged=verdict.flagged,
                new=judged.new,
            )
            if self._settings.builds(verdict):
                worker.submit(judged)
                return None
        return self._finish(judged)

    def _finish(self, judged: JudgedPrompt) -> LabelResult:
        return finish_prompt(self._work, judged, self._judge, self._settings)

    def _finished(self, result: LabelResult) -> LabelResult:
        progress = self.progress
        progress.finished += 1
        if result.error is not None:
            progress.failed += 1
            self._events.add("failed", prompt_id=result.prompt.prompt_id, error=result.error)
        else:
            self._events.add(
                "finished", prompt_id=result.prompt.prompt_id, graphs=sorted(result.graphs.values())
            )
        return result


class _Hurry(Exception):
    """Only what has begun is finished."""
