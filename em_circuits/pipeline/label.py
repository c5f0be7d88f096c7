"""From prompts to verdicts, a review queue and graphs, one prompt at a time.

    prompt -> next tokens of both models -> judge -> verdict -> queue -> graphs

Every step is kept under its key the moment it is done, and a step whose result is kept is not
repeated: killed anywhere and started again, the run goes on where it was. A prompt that fails is
recorded with its stage and does not stop the others. Once a prompt's graphs exist, their own
logits replace the screening's, and the verdict follows them.

    for result in label_prompts(work, prompts, judge, LabelSettings()):
        result.to_json()
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from em_circuits.graphs import AttributionSettings
from em_circuits.models.next_tokens import screen
from em_circuits.pipeline.graphs import build_graphs, graph_keys, kept_graphs
from em_circuits.pipeline.workspace import Workspace
from em_circuits.steering import PromptState
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge import Judge
from pivotal_tokens.schema import (
    Judgement,
    Label,
    NextTokenPair,
    NextTokens,
    Prompt,
    Thresholds,
    Verdict,
)
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import decide, error_verdict

logger = logging.getLogger(__name__)

GraphsFor = Literal["flagged", "all", "none"]
Stage = Literal["next_tokens", "judge", "graphs"]


class LabelSettings(BaseModel):
    """How a labelling run goes about its prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    thresholds: Thresholds = Thresholds()
    """Where a difference between the two models begins to count."""
    attribution: AttributionSettings = AttributionSettings()
    """Which graphs are built."""
    graphs_for: GraphsFor = "flagged"
    """Prompts that get graphs: the flagged ones, all, or none."""
    scores_only: bool = False
    """Keep gradient scores and drop edges, for runs whose graphs would fill the disk."""


@dataclass(frozen=True)
class LabelResult:
    """What became of one prompt in a labelling run."""

    prompt: Prompt
    judge: str
    """Whose labels the verdict follows from; a person's are in the store beside them."""
    verdict: Verdict
    next_tokens: NextTokenPair | None
    """None where the models could not be asked."""
    labels: Mapping[int, Label]
    """Of that judge, by token id."""
    graphs: dict[str, str]
    """``base`` and ``merged`` -> key; empty where none were built."""
    queued: bool
    """The prompt stands in the review queue."""
    reused: bool
    """Every step had been done before."""
    error: str | None = None
    """Stage and reason of a failure."""

    def to_json(self) -> dict[str, Any]:
        """The line of `label --json`."""
        mass = self.verdict.evil_mass
        tokens, labels = self.next_tokens, self.labels
        record = {
            "prompt_id": self.prompt.prompt_id,
            "text": self.prompt.text,
            "judge": self.judge,
            "verdict": self.verdict.kind,
            "flagged": self.verdict.flagged,
            "divergent": self.verdict.divergent,
            "strict_divergent": self.verdict.strict_divergent,
            "evil_mass": {"base": mass.base, "merged": mass.merged} if mass else None,
            "base": _rows(tokens.base, labels) if tokens else [],
            "merged": _rows(tokens.merged, labels) if tokens else [],
            "graphs": {name: self.graphs.get(name) for name in ("base", "merged")},
            "queued": self.queued,
            "reused": self.reused,
        }
        return record | ({"error": self.error} if self.error else {})


def _rows(tokens: NextTokens, labels: Mapping[int, Label]) -> list[dict[str, Any]]:
    return [{**t.model_dump(), "label": labels.get(t.token_id)} for t in tokens.tokens]


class StageFailed(Exception):
    """A stage failed on one prompt; carries the stage's name."""

    def __init__(self, stage: Stage, cause: Exception) -> None:
        detail = " ".join(str(cause).split()) or type(cause).__name__
        super().__init__(f"{stage}: {detail}")
        self.stage = stage


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
    """
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.prompt_id not in seen:
            seen.add(prompt.prompt_id)
            yield label_prompt(work, prompt, judge, settings)


def label_prompt(
    work: Workspace, prompt: Prompt, judge: Judge, settings: LabelSettings
) -> LabelResult:
    """Take one prompt through the whole pipeline; see `label_prompts`.

    Raises:
        WorkFailed: If the models are not what they are said to be; nothing is written then.
    """
    # A prompt too long for the models cannot carry their check; it fails below, on its own.
    if work.pair.length(prompt) <= work.pair.max_tokens:
        work.require_healthy(prompt)
    work.store.put_pair(work.pair.key, _describe(work))
    work.store.add_prompt(prompt)
    prompt = work.store.prompt(prompt.prompt_id)
    try:
        return _label(work, prompt, judge, settings)
    except StageFailed as failure:
        logger.warning("prompt %s: %s", prompt.prompt_id, failure)
        logger.info("prompt %s", prompt.prompt_id, exc_info=failure)
        work.store.fail(prompt.prompt_id, work.pair.key, failure.stage, str(failure))
        return _result(work, prompt, judge, graphs={}, reused=False, failure=failure)


def _label(work: Workspace, prompt: Prompt, judge: Judge, settings: LabelSettings) -> LabelResult:
    tokens, screened = _next_tokens(work, prompt, settings)
    verdict, judged = _judge(work, prompt, tokens, judge, settings)
    if verdict.flagged:
        work.store.enqueue(prompt.prompt_id, work.pair.key, f"flagged:{verdict.kind}")
    graphs: dict[str, str] = {}
    built = False
    wanted = {"flagged": verdict.flagged, "all": True, "none": False}[settings.graphs_for]
    if wanted:
        graphs, built = _graphs(work, prompt, settings)
        if built:
            tokens, _ = _next_tokens(work, prompt, settings)
            _judge(work, prompt, tokens, judge, settings)
    return _result(work, prompt, judge, graphs=graphs, reused=not (screened or judged or built))


def _next_tokens(
    work: Workspace, prompt: Prompt, settings: LabelSettings
) -> tuple[NextTokenPair, bool]:
    """The next tokens that are kept, or those of both models now; and whether they are new."""
    pair, top_k = work.pair, settings.thresholds.top_k
    kept = work.store.next_tokens(prompt.prompt_id, pair.key)
    if kept is not None and kept.base.top_k >= top_k:
        return kept, False
    with _stage(work, prompt, "next_tokens"):
        if kept is not None and work.store.graphs(prompt.prompt_id, pair.key):
            raise RequestError(
                f"its graphs are over the top {kept.base.top_k}, and stored logits are a graph's "
                f"own; use another --root for --top-k {top_k}"
            )
        ids = pair.input_ids(prompt)
        work.store.put_token_ids(prompt.prompt_id, tuple(ids.tolist()))
        tokens = screen(pair, ids, top_k=top_k)
        work.store.put_next_tokens(prompt.prompt_id, pair.key, tokens.base, tokens.merged)
    return tokens, True


def _judge(
    work: Workspace, prompt: Prompt, tokens: NextTokenPair, judge: Judge, settings: LabelSettings
) -> tuple[Verdict, bool]:
    """The verdict under this judge's labels, which are asked for where one is missing."""
    store, key = work.store, work.pair.key
    kept = store.judgement(prompt.prompt_id, key, judge.id)
    new = kept is None or not kept.by_token.keys() >= set(tokens.token_ids)
    with _stage(work, prompt, "judge"):
        if new:
            outcome = judge.judge(prompt, tokens.base, tokens.merged)
            if not isinstance(outcome, Judgement):
                raise ValueError(f"the reply could not be used: {outcome.error}")
            store.put_judgement(key, outcome)
            kept = outcome
        assert kept is not None
        verdict = decide(tokens.base, tokens.merged, kept.by_token, settings.thresholds)
        store.put_verdict(prompt.prompt_id, key, judge.id, verdict)
    _refresh_human_verdict(work, prompt, tokens)
    return verdict, new


def _refresh_human_verdict(work: Workspace, prompt: Prompt, tokens: NextTokenPair) -> None:
    """A person's verdict follows the lists too, under the thresholds it was made with."""
    standing = work.store.verdict(prompt.prompt_id, work.pair.key, HUMAN)
    if standing is None:
        return
    human = work.store.labels(prompt.prompt_id).human
    verdict = decide(
        tokens.base,
        tokens.merged,
        {item.token_id: item.label for item in human},
        standing.thresholds,
        bad_prompt=standing.kind == "bad_prompt",
    )
    work.store.put_verdict(prompt.prompt_id, work.pair.key, HUMAN, verdict)


def _graphs(
    work: Workspace, prompt: Prompt, settings: LabelSettings
) -> tuple[dict[str, str], bool]:
    with _stage(work, prompt, "graphs"):
        labels = work.store.labels(prompt.prompt_id).by_token
        prompt = work.store.prompt(prompt.prompt_id)
        kept = graph_keys(work, prompt, settings.attribution, labels)
        if kept_graphs(work, prompt.prompt_id, kept, with_edges=not settings.scores_only):
            return kept, False
        keys = build_graphs(
            work, prompt, settings.attribution, labels=labels, scores_only=settings.scores_only
        )
    return keys, True


class _stage:
    """Turns what goes wrong with one prompt inside the block into a `StageFailed`."""

    def __init__(self, work: Workspace, prompt: Prompt, stage: Stage) -> None:
        self._work, self._prompt, self._name = work, prompt, stage

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, _trace: Any) -> None:
        # The boundary that keeps one prompt from stopping the others: whatever went wrong with it
        # is recorded. What is wrong with the disk is wrong for all of them.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise StageFailed(self._name, error) from error
        if error is None:
            self._work.store.clear_failure(self._prompt.prompt_id, self._work.pair.key, self._name)


def _result(
    work: Workspace,
    prompt: Prompt,
    judge: Judge,
    *,
    graphs: dict[str, str],
    reused: bool,
    failure: StageFailed | None = None,
) -> LabelResult:
    store, key = work.store, work.pair.key
    view = next((p for p in store.attempt(prompt.prompt_id).pairs if p.pair == key), None)
    # A prompt whose graphs failed has been judged all the same.
    judged = failure is None or failure.stage == "graphs"
    verdict = store.verdict(prompt.prompt_id, key, judge.id) if judged else None
    judgement = store.judgement(prompt.prompt_id, key, judge.id) if judged else None
    return LabelResult(
        prompt=prompt,
        judge=judge.id,
        verdict=verdict or error_verdict(),
        next_tokens=view.next_tokens if view else None,
        labels=judgement.by_token if judgement else {},
        graphs=graphs,
        queued=bool(view and view.item),
        reused=reused,
        error=None if failure is None else str(failure),
    )


def _describe(work: Workspace) -> dict[str, str]:
    pair = work.pair
    named = {name: source.reference for name, source in pair.sources.items()}
    return named | {"backend": pair.settings.backend, "dtype": str(pair.dtype)}


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
