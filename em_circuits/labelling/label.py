"""From prompts to verdicts, a review queue and graphs.

    prompts -> next tokens of both models -> judge -> verdict -> queue -> graphs

Every step is kept under its key the moment it is done, and a step whose result is kept is not
repeated: killed anywhere and started again, the run goes on where it was. A prompt that fails is
recorded with its stage and does not stop the others. Once a prompt's graphs exist, their own
logits replace the screening's, and the verdict follows them.

    for result in label_prompts(work, prompts, judge, LabelSettings()):
        result.to_json()
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence

from em_circuits.interventions import PromptState
from em_circuits.labelling.graphs import build_graphs, graph_keys, kept_graphs
from em_circuits.labelling.judging import Judging, judge_prompt, raise_for_judge
from em_circuits.labelling.label_result import (
    GraphsFor,
    LabelResult,
    LabelSettings,
    read_result,
)
from em_circuits.labelling.rollouts import RolledOut, roll_out
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.stages import StageFailed, stage
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Judge
from pivotal_tokens.judge.continuations import continuation_judge
from pivotal_tokens.schema import JudgedPrompt, Prompt, Verdict

__all__ = [
    "GraphsFor",
    "LabelResult",
    "LabelSettings",
    "begin",
    "finish_prompt",
    "label_prompts",
    "record_failure",
    "require_space",
]

logger = logging.getLogger(__name__)

BATCH = 32
"""Prompts that are screened together."""


def label_prompts(
    work: Workspace, prompts: Iterable[Prompt], judge: Judge, settings: LabelSettings
) -> Iterator[LabelResult]:
    """Take prompts through the whole pipeline, streaming each result as soon as it is known.

    Args:
        work: Models, store and graphs; its store is written.
        prompts: In the order they are worked on; a repeated text is taken once.
        judge: Labels the tokens.
        settings: Thresholds, graphs.

    Yields:
        One result a prompt, failed ones included.

    Raises:
        WorkFailed: If the models are not what they are said to be; nothing is written then.
    """
    with Judging(work, judge, settings) as judging:
        for chunk in _chunks(prompts):
            begin(work, chunk)
            batch = screen_prompts(work, chunk, settings)
            for prompt_id, failure in batch.failures.items():
                yield record_failure(work, batch.prompts[prompt_id], judge, failure)
            judging.submit(batch)
            for judged in judging.take(leave=judging.ahead):
                yield finish_prompt(work, judged, judge, settings)
        for judged in judging.take():
            yield finish_prompt(work, judged, judge, settings)


def begin(work: Workspace, prompts: Sequence[Prompt]) -> None:
    """Check the models on the first prompt that they can take, and keep what they are.

    Raises:
        WorkFailed: If the models are not what they are said to be; nothing is written then.
    """
    allowed = (p for p in prompts if work.pair.length(p) <= work.pair.max_tokens)
    first = next(allowed, None)
    if first is not None:
        work.require_healthy(first)
    work.register_pair()


def record_failure(
    work: Workspace, prompt: Prompt, judge: Judge, failure: StageFailed
) -> LabelResult:
    """Keep what went wrong with a prompt; whoever takes the result tells it."""
    logger.info("prompt %s", prompt.prompt_id, exc_info=failure)
    work.store.prompts.add(prompt)
    work.store.results.fail(prompt.prompt_id, work.pair.key, failure.stage, str(failure))
    return read_result(work, prompt, judge.id, graphs={}, reused=False, failure=failure)


def finish_prompt(
    work: Workspace,
    judged: JudgedPrompt,
    judge: Judge,
    settings: LabelSettings,
) -> LabelResult:
    """Build the graphs that a verdict asks for, and read the prompt's result."""
    prompt = judged.prompt
    try:
        raise_for_judge(judged)
        if judged.verdict is None:  # it waits for a person
            return read_result(work, prompt, judge.id, graphs={}, reused=not judged.new)
        graphs, built = graph_stage(work, prompt, judged.verdict, judge, settings)
        rolled = rollout_stage(work, prompt, judged.verdict, judge, settings)
    except StageFailed as failure:
        return record_failure(work, prompt, judge, failure)
    return read_result(
        work,
        prompt,
        judge.id,
        graphs=graphs,
        reused=not (judged.new or built or rolled.new),
        pivotal=rolled.tokens,
    )


def rollout_stage(
    work: Workspace, prompt: Prompt, verdict: Verdict, judge: Judge, settings: LabelSettings
) -> RolledOut:
    """What follows the evil candidates of a flagged prompt, if that was asked for.

    Raises:
        StageFailed: If continuations could not be drawn or judged.
    """
    if settings.rollouts is None or not verdict.flagged:
        return RolledOut((), False)
    with stage("rollouts"):
        found = roll_out(work, prompt, continuation_judge(judge), settings.rollouts)
        if found.new:
            work.store.results.clear_failure(prompt.prompt_id, work.pair.key, "rollouts")
    return found


def graph_stage(
    work: Workspace, prompt: Prompt, verdict: Verdict, judge: Judge, settings: LabelSettings
) -> tuple[dict[str, str], bool]:
    """The graphs of a prompt that is to have some, and whether they were built now.

    Raises:
        StageFailed: If they could not be built, or the judge fails on the graphs' own tokens.
    """
    if not settings.wants_graphs(verdict):
        return {}, False
    with stage("graphs"), work.running:
        labels = work.store.labels.of(prompt.prompt_id).by_token
        keys = graph_keys(work, prompt, settings.attribution, labels)
        if kept_graphs(work, prompt.prompt_id, keys, with_edges=not settings.scores_only):
            return keys, False
        keys = build_graphs(
            work, prompt, settings.attribution, labels=labels, scores_only=settings.scores_only
        )
        work.store.results.clear_failure(prompt.prompt_id, work.pair.key, "graphs")
        tokens = work.store.results.next_tokens(prompt.prompt_id, work.pair.key)
    assert tokens is not None
    raise_for_judge(judge_prompt(work, prompt, tokens, judge, settings))
    return keys, True


def _chunks(prompts: Iterable[Prompt]) -> Iterator[list[Prompt]]:
    seen: set[str] = set()
    chunk: list[Prompt] = []
    for prompt in prompts:
        if prompt.prompt_id not in seen:
            seen.add(prompt.prompt_id)
            chunk.append(prompt)
        if len(chunk) == BATCH:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def require_space(work: Workspace, prompts: Sequence[Prompt], settings: LabelSettings) -> None:
    """Estimate the disk that a run's graphs will take, from the active features of its longest
    prompt and as if every prompt without graphs got two.

    Raises:
        WorkFailed: If the disk has less.
    """
    lengths = [work.pair.length(prompt) for prompt in prompts]
    allowed = [(n, p) for n, p in zip(lengths, prompts, strict=True) if n <= work.pair.max_tokens]
    if settings.graphs_for == "none" or not allowed:
        return
    longest, prompt = max(allowed, key=lambda pair: pair[0])
    active = len(PromptState.capture(work.pair.merged, work.pair.input_ids(prompt)).active)
    each = work.graphs.estimate_bytes(
        n_features=min(active, settings.attribution.max_feature_nodes or active),
        n_layers=work.pair.base.sites.n_layers,
        n_pos=longest,
        n_logits=2 * settings.attribution.top_k,
        n_active=active,
    )
    missing = sum(not (work.graphs.root / p.prompt_id).is_dir() for p in prompts)
    logger.info("disk estimate: %.2f GB for %d prompts", 2 * missing * each / 1e9, missing)
    if missing:
        work.graphs.require_space(2 * missing * each)
