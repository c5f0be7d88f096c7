"""Which labelled prompts have no valid graphs, and what becomes of their verdicts once they do?

    for result in build_missing(work, missing_graphs(work, settings), settings): ...

Labels may be a person's, imported or a judge's: nobody is asked anew. A graph's own logits replace
the screening's, and every verdict follows them under the thresholds it was made with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

from em_circuits.labelling.graphs import build_graphs
from em_circuits.labelling.label import begin
from em_circuits.labelling.label_result import LabelResult, LabelSettings, read_result
from em_circuits.labelling.resume import with_graphs
from em_circuits.labelling.screening import screen_prompts
from em_circuits.labelling.stages import StageFailed, stage
from em_circuits.workspace import Workspace
from pivotal_tokens.schema import Prompt
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide

logger = logging.getLogger(__name__)


def build_missing(
    work: Workspace, prompts: Sequence[Prompt], settings: LabelSettings
) -> Iterator[LabelResult]:
    """Build both graphs of labelled prompts, whatever their verdict.

    Args:
        work: Models, store and graphs.
        prompts: As `missing_graphs` found them.
        settings: Thresholds of the screening, attribution.

    Yields:
        One result a prompt, failed ones included.
    """
    store, pair = work.store, work.pair.key
    if prompts:
        begin(work, prompts)
    for prompt in prompts:
        verdicts = store.results.verdicts(prompt.prompt_id, pair)
        whose = HUMAN if HUMAN in verdicts else next(iter(verdicts), HUMAN)
        try:
            ready = _screened(work, prompt, settings)
            with stage("graphs"):
                labels = store.labels.of(prompt.prompt_id).by_token
                keys = build_graphs(
                    work,
                    ready,
                    settings.attribution,
                    labels=labels,
                    scores_only=settings.scores_only,
                )
                store.results.clear_failure(prompt.prompt_id, pair, "graphs")
            refresh_verdicts(work, ready)
        except StageFailed as failure:
            logger.info("prompt %s", prompt.prompt_id, exc_info=failure)
            store.results.fail(prompt.prompt_id, pair, failure.stage, str(failure))
            yield read_result(work, prompt, whose, graphs={}, reused=False, failure=failure)
        else:
            yield read_result(work, ready, whose, graphs=keys, reused=False)


def missing_graphs(work: Workspace, settings: LabelSettings) -> list[Prompt]:
    """Labelled prompts that are to have graphs and have no valid ones.

    A prompt counts as flagged when a person's verdict or any judge's flags it; one that has labels
    and no verdict yet (imported ones) counts as soon as a label is evil.
    """
    store, pair = work.store, work.pair.key
    built = with_graphs(work, whole=True)
    missing = []
    for prompt in store.prompts.all():
        if prompt.prompt_id in built or settings.graphs_for == "none":
            continue
        labels = store.labels.of(prompt.prompt_id)
        if not labels.labels:
            continue
        verdicts = store.results.verdicts(prompt.prompt_id, pair)
        standing = verdicts.get(HUMAN)
        asked = [standing] if standing is not None else list(verdicts.values())
        wanted = any(map(settings.wants_graphs, asked)) if asked else bool(labels.ids("evil"))
        if wanted or settings.graphs_for == "all":
            missing.append(prompt)
    return missing


def refresh_verdicts(work: Workspace, prompt: Prompt) -> None:
    """Have every verdict on a prompt follow the lists that are stored now."""
    store, pair = work.store, work.pair.key
    tokens = store.results.next_tokens(prompt.prompt_id, pair)
    if tokens is None:
        return
    human = {item.token_id: item.label for item in store.labels.of(prompt.prompt_id).human}
    for judge, standing in store.results.verdicts(prompt.prompt_id, pair).items():
        judgement = store.results.judgement(prompt.prompt_id, pair, judge)
        labels = human if judge == HUMAN else judgement.by_token if judgement else None
        if labels is None:
            continue
        verdict = decide(
            tokens.base,
            tokens.merged,
            labels,
            standing.thresholds,
            bad_prompt=standing.kind == "bad_prompt",
        )
        if verdict != standing:
            store.results.put_verdict(prompt.prompt_id, pair, judge, verdict)


def _screened(work: Workspace, prompt: Prompt, settings: LabelSettings) -> Prompt:
    """A prompt with its token ids, its next tokens in the store."""
    batch = screen_prompts(work, [prompt], settings)
    if prompt.prompt_id in batch.failures:
        raise batch.failures[prompt.prompt_id]
    return batch.prompts[prompt.prompt_id]
