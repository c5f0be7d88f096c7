"""Graphs for labelled prompts that have no valid ones.

    for result in build_missing(work, missing_graphs(work, settings), settings): ...

Labels may be a person's, imported or a judge's: nobody is asked anew. A graph's own logits replace
the screening's, and every verdict follows them under the thresholds it was given with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from em_circuits.labelling.graphs import with_graphs
from em_circuits.labelling.label import begin, ensure_graphs, record_failure
from em_circuits.labelling.result import (
    LabelResult,
    LabelSettings,
    StageFailed,
    label_result,
    stage,
)
from em_circuits.labelling.screening import screen_prompts
from em_circuits.progress import tracked
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.persist import refresh_verdicts
from pivotal_tokens.schema import HUMAN, JudgedPrompt, Prompt


def build_missing(
    work: Workspace, prompts: Sequence[Prompt], settings: LabelSettings
) -> Iterator[LabelResult]:
    """Build both graphs of labelled prompts, whatever their verdict.

    Yields:
        One result a prompt, failed ones included; the verdict is a person's where there is one.
    """
    store, pair = work.store, work.pair.key
    if prompts:
        begin(work, prompts)
    for prompt in tracked(prompts, "graphs", work.progress):
        verdicts = store.results.verdicts(prompt.prompt_id, pair)
        judge_id = HUMAN if HUMAN in verdicts else next(iter(verdicts), HUMAN)
        graphs: dict[str, str] = {}
        failure: StageFailed | None = None
        try:
            screened, failed = screen_prompts(work, [prompt], top_k=settings.thresholds.top_k)
            if failed:
                raise failed[0][1]
            with stage("graphs"):
                graphs, _ = ensure_graphs(work, screened[0].prompt, settings)
        except StageFailed as error:
            failure = error
        refresh_verdicts(store, prompt.prompt_id, pair)
        screened_now = failure is None or failure.stage == "graphs"
        judged = _judged(work, prompt, judge_id) if screened_now else None
        if failure is not None:
            yield record_failure(work, prompt, judge_id, failure, judged)
        else:
            yield label_result(work, prompt, judge_id, judged, graphs=graphs, reused=False)


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


def _judged(work: Workspace, prompt: Prompt, judge_id: str) -> JudgedPrompt | None:
    """What the store has of a judge's labels on a prompt; None without next tokens."""
    store, pair = work.store, work.pair.key
    lists = store.results.next_tokens(prompt.prompt_id, pair)
    if lists is None:
        return None
    return JudgedPrompt(
        prompt=prompt,
        next_tokens=lists,
        outcome=store.results.judgement(prompt.prompt_id, pair, judge_id),
        verdict=store.results.verdict(prompt.prompt_id, pair, judge_id),
    )
