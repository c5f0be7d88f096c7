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
from types import TracebackType

from em_circuits.labelling.label_result import LabelSettings
from em_circuits.labelling.screening import ScreenedBatch
from em_circuits.labelling.stages import StageFailed, stage
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Judge, Lane, ModelJudge, PersonJudge, persist
from pivotal_tokens.judge.persist import decided
from pivotal_tokens.judge.protocol import QUEUED_FOR
from pivotal_tokens.schema import JudgedPrompt, Judgement, NextTokenPair, Prompt, Unparsed
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide


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
                _for_a_person(self._work, batch.prompts[i], lists, i in batch.new)
                for i, lists in batch.next_tokens.items()
            ]
            return
        kept = store.judgements_of(batch.next_tokens, pair, self._judge.id)
        answered = []
        for prompt_id, lists in batch.next_tokens.items():
            prompt, known = batch.prompts[prompt_id], kept.get(prompt_id)
            if known is not None and known.by_token.keys() >= set(lists.token_ids):
                judged = keep_verdict(self._work, prompt, lists, known, self._settings)
                new = prompt_id in batch.new
                self._ready.append(judged.model_copy(update={"new": new}))
            elif self._lane is not None:
                self._lane.submit(prompt, lists)
            else:
                answered.append(_ask(self._judge, prompt, lists))
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

    def _keep(self, answered: Sequence[JudgedPrompt]) -> list[JudgedPrompt]:
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
        return _for_a_person(work, prompt, tokens, False)
    kept = work.store.judgement(prompt.prompt_id, work.pair.key, judge.id)
    if kept is not None and kept.by_token.keys() >= set(tokens.token_ids):
        return keep_verdict(work, prompt, tokens, kept, settings)
    return _keep(work, [_ask(judge, prompt, tokens)], settings)[0]


def _keep(
    work: Workspace, answered: Sequence[JudgedPrompt], settings: LabelSettings
) -> list[JudgedPrompt]:
    """Keep what several prompts came to, in one write."""
    if not answered:
        return []
    store, pair = work.store, work.pair.key
    judged = persist(store, pair, answered, settings.thresholds)
    by_people = store.with_human_verdict([item.prompt.prompt_id for item in judged], pair)
    for item in judged:
        if item.prompt.prompt_id in by_people:
            refresh_human_verdict(work, item.prompt.prompt_id, item.next_tokens)
    return judged


def raise_for_judge(judged: JudgedPrompt) -> None:
    """Raise `StageFailed` where a judge gave no labels that can be used."""
    if isinstance(judged.error, StageFailed):
        raise judged.error
    if judged.error is not None:
        raise StageFailed("judge", judged.error)


def _for_a_person(
    work: Workspace, prompt: Prompt, tokens: NextTokenPair, new: bool
) -> JudgedPrompt:
    """The verdict of a person's labels; a prompt that has none yet waits in the queue."""
    store, pair = work.store, work.pair.key
    verdict = store.verdict(prompt.prompt_id, pair, HUMAN)
    if verdict is None:
        new = store.enqueue(prompt.prompt_id, pair, QUEUED_FOR) or new
    return JudgedPrompt(prompt=prompt, next_tokens=tokens, outcome=None, verdict=verdict, new=new)


def keep_verdict(
    work: Workspace,
    prompt: Prompt,
    tokens: NextTokenPair,
    judgement: Judgement,
    settings: LabelSettings,
) -> JudgedPrompt:
    """Decide anew by labels that are kept; written only where the verdict is another."""
    store, pair = work.store, work.pair.key
    judged = JudgedPrompt(prompt=prompt, next_tokens=tokens, outcome=judgement, new=False)
    judged = decided(judged, settings.thresholds)
    if store.verdict(judgement.prompt_id, pair, judgement.judge) != judged.verdict:
        store.put_judged(pair, [judged])
    refresh_human_verdict(work, judgement.prompt_id, tokens)
    return judged


def refresh_human_verdict(work: Workspace, prompt_id: str, tokens: NextTokenPair) -> None:
    """A person's verdict follows the lists too, under the thresholds it was made with."""
    standing = work.store.verdict(prompt_id, work.pair.key, HUMAN)
    if standing is None:
        return
    human = work.store.labels(prompt_id).human
    verdict = decide(
        tokens.base,
        tokens.merged,
        {item.token_id: item.label for item in human},
        standing.thresholds,
        bad_prompt=standing.kind == "bad_prompt",
    )
    work.store.put_verdict(prompt_id, work.pair.key, HUMAN, verdict)


def _ask(judge: Judge, prompt: Prompt, lists: NextTokenPair) -> JudgedPrompt:
    """What a judge says, in this thread."""
    outcome: Judgement | Unparsed | Exception
    try:
        with stage("judge"):
            if isinstance(judge, ModelJudge):
                return judge.judge_prompt(prompt, lists)
            outcome = judge.judge(prompt, lists.base, lists.merged)
    except StageFailed as failure:
        outcome = failure
    return JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=outcome)
