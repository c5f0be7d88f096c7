"""Which verdict follows on each screened prompt, and who is told?

Labels of a judge that are kept and cover the lists are not asked for again. A flagged prompt
stands in the review queue in the moment its verdict is written.

    for judged in judge_prompts(work, batch, judge, settings):
        judged.verdict.flagged
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from em_circuits.pipeline.label_result import LabelSettings
from em_circuits.pipeline.screening import ScreenedBatch
from em_circuits.pipeline.stages import StageFailed, stage
from em_circuits.pipeline.workspace import Workspace
from pivotal_tokens.judge import Judge
from pivotal_tokens.schema import Judgement, NextTokenPair, Prompt, Verdict
from pivotal_tokens.store import HUMAN, Judged
from pivotal_tokens.verdict import decide


@dataclass(frozen=True)
class JudgedPrompt:
    """The verdict on one prompt under one judge's labels."""

    prompt: Prompt
    verdict: Verdict | None
    """None where the judge could not be used; then `failure` says why."""
    new: bool
    """The judge was asked now."""
    failure: StageFailed | None = None


def judge_prompts(
    work: Workspace, batch: ScreenedBatch, judge: Judge, settings: LabelSettings
) -> Iterator[JudgedPrompt]:
    """Judge every screened prompt of a batch and keep each verdict as soon as it exists."""
    for prompt_id, tokens in batch.next_tokens.items():
        yield judge_prompt(work, batch.prompts[prompt_id], tokens, judge, settings)


def judge_prompt(
    work: Workspace, prompt: Prompt, tokens: NextTokenPair, judge: Judge, settings: LabelSettings
) -> JudgedPrompt:
    """The verdict under this judge's labels, which are asked for where one is missing."""
    kept = work.store.judgement(prompt.prompt_id, work.pair.key, judge.id)
    try:
        with stage("judge"):
            if kept is not None and kept.by_token.keys() >= set(tokens.token_ids):
                return JudgedPrompt(prompt, keep_verdict(work, tokens, kept, settings), new=False)
            outcome = judge.judge(prompt, tokens.base, tokens.merged)
            if not isinstance(outcome, Judgement):
                raise ValueError(f"the reply could not be used: {outcome.error}")
            return JudgedPrompt(prompt, keep_verdict(work, tokens, outcome, settings), new=True)
    except StageFailed as failure:
        return JudgedPrompt(prompt, None, new=True, failure=failure)


def keep_verdict(
    work: Workspace, tokens: NextTokenPair, judgement: Judgement, settings: LabelSettings
) -> Verdict:
    """Decide, and keep judgement, verdict and the place in the queue in one write."""
    store, pair = work.store, work.pair.key
    verdict = decide(tokens.base, tokens.merged, judgement.by_token, settings.thresholds)
    standing = store.verdict(judgement.prompt_id, pair, judgement.judge)
    same = standing == verdict and judgement == store.judgement(
        judgement.prompt_id, pair, judgement.judge
    )
    if not same:
        queue = f"flagged:{verdict.kind}" if verdict.flagged else None
        store.put_judged(pair, [Judged(judgement=judgement, verdict=verdict, queue=queue)])
    refresh_human_verdict(work, judgement.prompt_id, tokens)
    return verdict


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
