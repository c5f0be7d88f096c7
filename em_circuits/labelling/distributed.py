"""Labelling and graph building by several workers: what each does for a unit of prompts.

    run = DistributedRun(work, ids, LabelTask(open_judge, settings), EngineSettings(workers=4))
    for result in run.results(): ...

The driver loads no model: it stores the prompts and gives out their ids. Workers screen, judge,
build and store exactly as one process does; rows and graph keys are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from em_circuits.engine.distributed import DistributedWork
from em_circuits.engine.events import EventLog
from em_circuits.engine.pool import UnitOutcome
from em_circuits.engine.settings import EngineSettings
from em_circuits.engine.station import Doing, Task
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.labelling.graphs import BuiltGraphs, graphs_of_prompt
from em_circuits.labelling.result import (
    LabelResult,
    LabelSettings,
    StageFailed,
    label_result,
)
from em_circuits.labelling.run import Ending, RunState, label_prompts
from em_circuits.target_request import TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RunEnds
from pivotal_tokens.judge import Judge
from pivotal_tokens.llm import BudgetExhausted
from pivotal_tokens.schema import Prompt


@dataclass(frozen=True)
class LabelTask(Task):
    """Labels prompts."""

    judge: Callable[[Workspace], Judge]
    """Opens the judge; picklable."""
    settings: LabelSettings

    def open(self, work: Workspace) -> Doing:
        """Open the judge on a worker."""
        judge = self.judge(work)

        def label(ids: Sequence[str]) -> list[LabelResult]:
            prompts = [work.store.prompts.get(each) for each in ids]
            return list(label_prompts(work, prompts, judge, self.settings))

        return label


@dataclass(frozen=True)
class GraphsTask(Task):
    """Builds both graphs of prompts."""

    attribution: AttributionSettings
    target: TargetRequest
    scores_only: bool

    def open(self, work: Workspace) -> Doing:
        """Nothing is to be prepared."""

        def build(ids: Sequence[str]) -> list[BuiltGraphs]:
            return [
                graphs_of_prompt(
                    work,
                    work.store.prompts.get(each),
                    self.attribution,
                    target=self.target,
                    scores_only=self.scores_only,
                )
                for each in ids
            ]

        return build


class DistributedRun:
    """A labelling run on several workers; what shows a `Run` shows this, too."""

    def __init__(
        self,
        work: Workspace,
        prompts: Sequence[Prompt],
        task: LabelTask,
        settings: EngineSettings,
        *,
        judge: str,
        events: EventLog,
    ) -> None:
        """Set up; nothing starts before `results` is iterated."""
        self._work, self._prompts, self._judge, self._events = work, prompts, judge, events
        self._distributed = DistributedWork(work, task, settings, events)
        self.state = RunState(generated=len(prompts))

    def stop(self) -> None:
        """End after what is in flight."""
        self._end("stopped", "interrupted; what was in flight is finished")

    def results(self) -> Iterator[LabelResult]:
        """Run, yielding each prompt's result when it is complete.

        Raises:
            Exception: What went wrong with more than a prompt; what had begun is finished.
        """
        state, store = self.state, self._work.store
        for prompt in self._prompts:
            store.prompts.add(prompt)
        self._events.add("start", judge=self._judge, n=len(self._prompts))
        try:
            for outcome in self._distributed.outcomes([p.prompt_id for p in self._prompts]):
                for result in outcome.results or self._given_up(outcome):
                    self._count(result)
                    yield result
        except RunEnds as error:
            self._end("budget" if isinstance(error, BudgetExhausted) else "endpoint", str(error))
        if state.ending is None:
            state.ending = "done"
        self._events.add(
            "stop",
            ending=state.ending,
            finished=state.finished,
            failed=state.failed,
            filtered=state.filtered,
            flagged=state.flagged,
        )

    def _given_up(self, outcome: UnitOutcome) -> Iterator[LabelResult]:
        work = self._work
        for prompt in map(work.store.prompts.get, outcome.unit):
            failure = StageFailed("next_tokens", outcome.given_up or "no result")
            pair = self._distributed.pair
            assert pair is not None, "a worker has begun"
            if pair not in work.store.results.pairs():
                work.store.results.put_pair(pair, {})  # the first prompt that succeeds says more
            work.store.results.fail(prompt.prompt_id, pair, failure.stage, str(failure))
            yield label_result(
                work, prompt, self._judge, None, reused=False, failure=failure, pair=pair
            )

    def _count(self, result: LabelResult) -> None:
        state = self.state
        state.finished += 1
        state.screened += 1
        state.judged += 1
        state.flagged += result.flagged
        state.failed += result.error is not None
        state.filtered += result.filtered is not None
        what: Any = "failed" if result.error else "filtered" if result.filtered else "finished"
        self._events.add(what, prompt_id=result.prompt_id)
        if state.many_failed:
            self._end("errors", state.many_failed)

    def _end(self, ending: Ending, message: str) -> None:
        if self.state.ending is None:
            self.state.ending, self.state.message = ending, message
        self._distributed.stop()
