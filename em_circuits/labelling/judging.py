"""Which verdict follows on each screened prompt, and who is told?

A judge that asks an endpoint works beside the models, many prompts at a time; one that answers at
once does so in turn. Labels of a judge that are kept and cover the lists are not asked for again.
A flagged prompt stands in the review queue in the moment its verdict is written.

    with Judging(work, judge, settings) as judging:
        judging.submit(batch)
        for judged in judging.take(leave=judging.ahead): ...
        for judged in judging.take(): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType

from em_circuits.labelling.label_result import LabelSettings
from em_circuits.labelling.screening import ScreenedBatch
from em_circuits.labelling.stages import StageFailed, stage
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Answered, Judge, Lane, ModelJudge, PersonJudge, keep_answers
from pivotal_tokens.judge.keeping import judged_by
from pivotal_tokens.judge.person import QUEUED_FOR
from pivotal_tokens.schema import Ballot, Judgement, NextTokenPair, Prompt, Verdict
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide


@dataclass(frozen=True)
class JudgedPrompt:
    """The verdict on one prompt under one judge's labels."""

    prompt: Prompt
    verdict: Verdict | None
    """None where the judge could not be used, and `failure` says why; or where it waits for a
    person."""
    new: bool
    """The models or the judge were asked now."""
    failure: StageFailed | None = None


class Judging:
    """The judge of a run at work; its results come in the order in which they exist."""

    def __init__(self, work: Workspace, judge: Judge, settings: LabelSettings) -> None:
        self._work, self._judge, self._settings = work, judge, settings
        self._ready: list[JudgedPrompt] = []
        self._lane: Lane[JudgedPrompt] | None = None
        if isinstance(judge, ModelJudge):
            work.pair.key  # noqa: B018 - read in this thread, before the other one needs it
            self._lane = Lane(judge, self._keep)

    @property
    def ahead(self) -> int:
        """Prompts that may be outstanding before more are screened, so that none waits idly."""
        return 2 * self._judge.concurrency if isinstance(self._judge, ModelJudge) else 0

    def submit(self, batch: ScreenedBatch) -> None:
        """Have every screened prompt of a batch judged."""
        store, pair = self._work.store, self._work.pair.key
        if isinstance(self._judge, PersonJudge):
            self._ready += [
                _for_a_person(self._work, prompt, prompt.prompt_id in batch.new)
                for prompt in map(batch.prompts.__getitem__, batch.next_tokens)
            ]
            return
        kept = store.results.judgements_of(batch.next_tokens, pair, self._judge.id)
        answered = []
        for prompt_id, lists in batch.next_tokens.items():
            prompt, known = batch.prompts[prompt_id], kept.get(prompt_id)
            if known is not None and known.by_token.keys() >= set(lists.token_ids):
                verdict = keep_verdict(self._work, lists, known, self._settings)
                new = prompt_id in batch.new
                self._ready.append(JudgedPrompt(prompt, verdict, new=new))
            elif self._lane is not None:
                self._lane.submit(prompt, lists)
            else:
                answered.append(Answered(prompt, lists, _ask(self._judge, prompt, lists)))
        self._ready += self._keep(answered)

    def take(self, *, leave: int = 0) -> Iterator[JudgedPrompt]:
        """What was judged, waiting until at most `leave` prompts are outstanding.

        Raises:
            RunEnds: If no further prompt can be judged.
        """
        ready, self._ready = self._ready, []
        yield from ready
        if self._lane is not None:
            yield from self._lane.take(leave=leave)

    def _keep(self, answered: Sequence[Answered]) -> list[JudgedPrompt]:
        return _keep(self._work, answered, self._settings)

    def __enter__(self) -> Judging:
        if self._lane is not None:
            self._lane.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lane is not None:
            self._lane.__exit__(kind, error, trace)


def judge_prompts(
    work: Workspace, batch: ScreenedBatch, judge: Judge, settings: LabelSettings
) -> Iterator[JudgedPrompt]:
    """Judge every screened prompt of one batch and keep each verdict as soon as it exists."""
    with Judging(work, judge, settings) as judging:
        judging.submit(batch)
        yield from judging.take()


def judge_prompt(
    work: Workspace, prompt: Prompt, tokens: NextTokenPair, judge: Judge, settings: LabelSettings
) -> JudgedPrompt:
    """The verdict under this judge's labels, which are asked for where one is missing."""
    if isinstance(judge, PersonJudge):
        refresh_human_verdict(work, prompt.prompt_id, tokens)
        return _for_a_person(work, prompt, False)
    kept = work.store.results.judgement(prompt.prompt_id, work.pair.key, judge.id)
    if kept is not None and kept.by_token.keys() >= set(tokens.token_ids):
        return JudgedPrompt(prompt, keep_verdict(work, tokens, kept, settings), new=False)
    answered = Answered(prompt, tokens, _ask(judge, prompt, tokens))
    return _keep(work, [answered], settings)[0]


def _keep(
    work: Workspace, answered: Sequence[Answered], settings: LabelSettings
) -> list[JudgedPrompt]:
    """Keep what several prompts came to, in one write."""
    if not answered:
        return []
    store, pair = work.store, work.pair.key
    kept = keep_answers(store, pair, answered, settings.thresholds)
    by_people = store.queries.with_human_verdict([item.prompt.prompt_id for item in kept], pair)
    for item in kept:
        if item.prompt.prompt_id in by_people:
            refresh_human_verdict(work, item.prompt.prompt_id, item.lists)
    return [
        JudgedPrompt(item.prompt, item.verdict, new=True, failure=_failure(item.error))
        for item in kept
    ]


def _failure(error: Exception | str | None) -> StageFailed | None:
    if error is None or isinstance(error, StageFailed):
        return error
    return StageFailed("judge", error)


def _for_a_person(work: Workspace, prompt: Prompt, new: bool) -> JudgedPrompt:
    """The verdict of a person's labels; a prompt that has none yet waits in the queue."""
    store, pair = work.store, work.pair.key
    verdict = store.results.verdict(prompt.prompt_id, pair, HUMAN)
    if verdict is None:
        new = store.assignments.add(prompt.prompt_id, pair, QUEUED_FOR) or new
    return JudgedPrompt(prompt, verdict, new=new)


def keep_verdict(
    work: Workspace, tokens: NextTokenPair, judgement: Judgement, settings: LabelSettings
) -> Verdict:
    """Decide anew by labels that are kept; written only where the verdict is another."""
    store, pair = work.store, work.pair.key
    made = judged_by(tokens, judgement, settings.thresholds)
    if store.results.verdict(judgement.prompt_id, pair, judgement.judge) != made.verdict:
        store.results.put_judged(pair, [made])
    refresh_human_verdict(work, judgement.prompt_id, tokens)
    return made.verdict


def refresh_human_verdict(work: Workspace, prompt_id: str, tokens: NextTokenPair) -> None:
    """A person's verdict follows the lists too, under the thresholds it was made with."""
    standing = work.store.results.verdict(prompt_id, work.pair.key, HUMAN)
    if standing is None:
        return
    human = work.store.labels.of(prompt_id).human
    verdict = decide(
        tokens.base,
        tokens.merged,
        {item.token_id: item.label for item in human},
        standing.thresholds,
        bad_prompt=standing.kind == "bad_prompt",
    )
    work.store.results.put_verdict(prompt_id, work.pair.key, HUMAN, verdict)


def _ask(judge: Judge, prompt: Prompt, lists: NextTokenPair) -> Ballot | Exception:
    """What a judge says, in this thread."""
    try:
        with stage("judge"):
            if isinstance(judge, ModelJudge):
                return judge.ballot(prompt, lists)
            return Ballot(outcome=judge.judge(prompt, lists.base, lists.merged))
    except StageFailed as failure:
        return failure
