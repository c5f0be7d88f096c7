"""What is a labelling run asked for, and what does it say about each prompt?

LabelSettings(graphs_for="none")
read_result(work, prompt, judge.id, graphs={}, reused=True).to_json()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from em_circuits.graphs import AttributionSettings
from em_circuits.labelling.stages import StageFailed
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.judge.continuations import Pivotality
from pivotal_tokens.schema import (
    Label,
    NextTokenPair,
    NextTokens,
    Prompt,
    Thresholds,
    Verdict,
)
from pivotal_tokens.store import HUMAN
from pivotal_tokens.verdict import error_verdict

GraphsFor = Literal["flagged", "all", "none"]


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

    rollouts: Sampling | None = None
    """How what follows the evil candidates of flagged prompts is sampled; None: not at all."""

    def builds(self, verdict: Verdict) -> bool:
        """Whether a model has to run again on a prompt with this verdict."""
        return self.wants_graphs(verdict) or (self.rollouts is not None and verdict.flagged)

    def wants_graphs(self, verdict: Verdict) -> bool:
        """Whether a prompt with this verdict gets graphs."""
        return {"flagged": verdict.flagged, "all": True, "none": False}[self.graphs_for]


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
    pivotal: tuple[Pivotality, ...] = ()
    """What the sampled continuations say about each evil candidate, where some were sampled."""

    @property
    def waiting(self) -> bool:
        """A person is the judge and has not labelled it yet; its verdict is of kind "error"."""
        return self.judge == HUMAN and self.error is None and self.verdict.kind == "error"

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
        if self.waiting:
            record["waiting"] = True
        if self.pivotal:
            record["rollouts"] = [self._pivotal(item) for item in self.pivotal]
        return record | ({"error": self.error} if self.error else {})

    def _pivotal(self, item: Pivotality) -> dict[str, Any]:
        texts = self.next_tokens.base.by_id if self.next_tokens else {}
        text = texts[item.token_id].text if item.token_id in texts else None
        return {**item.model_dump(), "text": text, "pivotal": item.pivotal}


def read_result(
    work: Workspace,
    prompt: Prompt,
    judge_id: str,
    *,
    graphs: dict[str, str],
    reused: bool,
    failure: StageFailed | None = None,
    pivotal: tuple[Pivotality, ...] = (),
) -> LabelResult:
    """The result of a prompt as the store has it now.

    Args:
        work: Its store is read.
        prompt: Whose result.
        judge_id: Under whose labels.
        graphs: Keys by model.
        reused: Nothing had to be done.
        failure: What went wrong.
        pivotal: What continuations say about its evil candidates.
    """
    key, attempt = work.pair.key, work.store.attempt(prompt.prompt_id)
    view = next((p for p in attempt.pairs if p.pair == key), None)
    # A prompt whose graphs failed has been judged all the same.
    judged = view is not None and (failure is None or failure.stage in ("graphs", "rollouts"))
    verdict = view.verdicts.get(judge_id) if judged and view else None
    judgements = {j.judge: j for j in view.judgements} if judged and view else {}
    judgement = judgements.get(judge_id)
    labels = judgement.by_token if judgement else {}
    if judge_id == HUMAN:
        labels = {item.token_id: item.label for item in attempt.labels.human}
    return LabelResult(
        prompt=prompt,
        judge=judge_id,
        verdict=verdict or error_verdict(),
        next_tokens=view.next_tokens if view else None,
        labels=labels,
        graphs=graphs,
        queued=bool(view and view.item),
        reused=reused,
        error=None if failure is None else str(failure),
        pivotal=pivotal,
    )


def _rows(tokens: NextTokens, labels: Mapping[int, Label]) -> list[dict[str, Any]]:
    return [{**t.model_dump(), "label": labels.get(t.token_id)} for t in tokens.tokens]
