"""Labelling stages after the verdict: graphs, rollouts, and the prompt's result.

Every step is in the store under its key the moment it is done, and is not repeated. A prompt that
fails is recorded with its stage and does not stop the others. Once a prompt's graphs exist, their
own logits replace the screening's, and every verdict follows them.

    result = finish_prompt(work, judged, judge, LabelSettings())
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from em_circuits.labelling.graphs import build_graphs, graph_keys, has_graphs
from em_circuits.labelling.judging import judge_one, raise_for_judge
from em_circuits.labelling.result import (
    LabelResult,
    LabelSettings,
    StageFailed,
    label_result,
    stage,
)
from em_circuits.labelling.rollouts import Followed, roll_out
from em_circuits.workspace import Workspace
from pivotal_tokens.judge import Judge
from pivotal_tokens.judge.continuations import continuation_judge
from pivotal_tokens.judge.persist import refresh_verdicts
from pivotal_tokens.schema import JudgedPrompt, Prompt
from pivotal_tokens.store import Screened

logger = logging.getLogger(__name__)


def begin(work: Workspace, prompts: Sequence[Prompt]) -> None:
    """Check the models on the first prompt that they can take, and store what they are.

    Raises:
        WorkFailed: If the models are not what they are said to be; nothing is written then.
    """
    allowed = (p for p in prompts if work.pair.length(p) <= work.pair.max_tokens)
    first = next(allowed, None)
    if first is not None:
        work.require_healthy(first)
    work.register_pair()


def record_failure(
    work: Workspace,
    prompt: Prompt,
    judge_id: str,
    failure: StageFailed,
    judged: JudgedPrompt | None = None,
) -> LabelResult:
    """Store a prompt's error; it is reported in the prompt's result only."""
    logger.info("prompt %s", prompt.prompt_id, exc_info=failure)
    work.store.prompts.add(prompt)
    work.store.results.fail(prompt.prompt_id, work.pair.key, failure.stage, str(failure))
    return label_result(work, prompt, judge_id, judged, reused=False, failure=failure)


def finish_prompt(
    work: Workspace, judged: JudgedPrompt, judge: Judge, settings: LabelSettings
) -> LabelResult:
    """Build what a verdict asks for; the prompt's result."""
    store, pair, prompt = work.store, work.pair.key, judged.prompt
    graphs: dict[str, str] = {}
    followed = Followed(None, (), new=False)
    new = judged.new
    try:
        raise_for_judge(judged)
        if judged.verdict is not None and settings.wants_graphs(judged.verdict):
            with stage("graphs"), work.running:
                graphs, built = ensure_graphs(work, prompt, settings)
                tokens = store.results.next_tokens(prompt.prompt_id, pair)
            if built:
                assert tokens is not None
                again = Screened(prompt=prompt, next_tokens=tokens)
                judged, new = judge_one(store, pair, again, judge, settings.thresholds), True
                refresh_verdicts(store, prompt.prompt_id, pair)
                raise_for_judge(judged)
        if settings.rollouts and judged.verdict is not None and judged.verdict.flagged:
            with stage("rollouts"):
                followed = roll_out(work, prompt, continuation_judge(judge), settings.rollouts)
                if followed.new:
                    store.results.clear_failure(prompt.prompt_id, pair, "rollouts")
            new = new or followed.new
    except StageFailed as failure:
        return record_failure(work, prompt, judge.id, failure, judged)
    return label_result(
        work,
        prompt,
        judge.id,
        judged,
        graphs=graphs,
        reused=not new,
        rollouts=followed.tokens,
        free=followed.free,
    )


def ensure_graphs(
    work: Workspace, prompt: Prompt, settings: LabelSettings
) -> tuple[dict[str, str], bool]:
    """The keys of a prompt's graphs by model, and whether they were built now.

    Raises:
        RequestError: See `build_graphs`.
    """
    labels = work.store.labels.of(prompt.prompt_id).by_token
    keys = graph_keys(work, prompt, settings.attribution, labels)
    if has_graphs(work, prompt.prompt_id, keys, with_edges=not settings.scores_only):
        return keys, False
    keys = build_graphs(
        work, prompt, settings.attribution, labels=labels, scores_only=settings.scores_only
    )
    work.store.results.clear_failure(prompt.prompt_id, work.pair.key, "graphs")
    return keys, True


def require_space(work: Workspace, prompts: Sequence[Prompt], settings: LabelSettings) -> None:
    """Estimate the disk that a run's graphs will take, as if every prompt without graphs got two as
    large as its longest prompt's, with as many active features as the memory plan allows for; of
    frozen graphs, also the temporary files of rows and of the model that waits.

    Raises:
        WorkFailed: If the disk has less.
    """
    lengths = [work.pair.length(prompt) for prompt in prompts]
    allowed = [n for n in lengths if n <= work.pair.max_tokens]
    if settings.graphs_for == "none" or not allowed:
        return
    longest = max(allowed)
    plan = work.plan(longest)
    active = plan.n_active
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
        waiting = plan.offloaded if settings.attribution.edges == "frozen" else 0
        work.graphs.require_space(2 * missing * each + waiting)
