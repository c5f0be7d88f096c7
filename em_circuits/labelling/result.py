"""Settings and results of a labelling run: one result per prompt, a line of `label --json`.

LabelSettings(graphs_for="none")
result = label_result(work, prompt, judge.id, judged, reused=False)
result.verdict, result.flagged, result.evil_mass.merged
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from em_circuits.graphs.settings import AttributionSettings
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RunEnds
from pivotal_tokens.pivotality import EvilRates, Pivotality
from pivotal_tokens.schema import (
    HUMAN,
    Frozen,
    JudgedPrompt,
    Judgement,
    Label,
    NextTokenPair,
    NextTokens,
    PairMass,
    Prompt,
    Thresholds,
    TokenScore,
    Verdict,
    VerdictKind,
)
from pivotal_tokens.verdict import error_verdict

GraphsFor = Literal["flagged", "all", "none"]
Stage = Literal["next_tokens", "judge", "graphs", "rollouts"]


class StageFailed(Exception):
    """A stage failed on one prompt; carries the stage's name."""

    def __init__(self, stage: Stage, cause: Exception | str) -> None:
        detail = " ".join(str(cause).split()) or type(cause).__name__
        super().__init__(f"{stage}: {detail}")
        self.stage = stage


@contextlib.contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Turn what goes wrong with one prompt inside the block into a `StageFailed`."""
    try:
        yield
    except (OSError, RunEnds, StageFailed):
        raise  # what is wrong with the disk or the budget is wrong for every prompt
    except Exception as error:
        # The boundary that keeps one prompt from stopping the others: whatever went wrong with it
        # is recorded.
        raise StageFailed(name, error) from error


class LabelSettings(Frozen):
    """How a labelling run goes about its prompts."""

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

    def runs_models(self, verdict: Verdict) -> bool:
        """Whether a model has to run again on a prompt with this verdict."""
        return self.wants_graphs(verdict) or self.wants_rollouts(verdict)

    def wants_graphs(self, verdict: Verdict) -> bool:
        """Whether a prompt with this verdict gets graphs."""
        return {"flagged": verdict.flagged, "all": True, "none": False}[self.graphs_for]

    def wants_rollouts(self, verdict: Verdict) -> bool:
        """Whether what follows the evil candidates of a prompt with this verdict is sampled."""
        return self.rollouts is not None and verdict.flagged


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledToken(TokenScore):
    """A candidate next token of one model with its label; None where it has none."""

    label: Label | None


class TokenRollouts(Pivotality):
    """What the continuations after one evil candidate say."""

    text: str | None
    """The candidate's; null where it is in no list any more."""


class LabelResult(Frozen):
    """What became of one prompt in a labelling run."""

    prompt_id: str
    text: str
    category: str | None = Field(exclude=True)
    judge: str
    """Whose labels the verdict follows from; a person's are in the store beside them."""
    verdict: VerdictKind
    flagged: bool
    divergent: bool
    strict_divergent: bool
    evil_mass: PairMass | None
    base: tuple[LabelledToken, ...]
    """Both lists cover the union of the two top-k; empty where the models could not be run."""
    merged: tuple[LabelledToken, ...]
    graphs: dict[str, str | None]
    """Keys; None where none was built."""
    queued: bool
    """Whether the prompt is in the review queue."""
    reused: bool
    """Every step had been done before."""
    waiting: bool = Field(default=False, exclude_if=lambda value: not value)
    """A person is the judge and has not labelled it yet; its verdict is of kind "error"."""
    rollouts: tuple[TokenRollouts, ...] = Field(default=(), exclude_if=lambda value: not value)
    free_rollouts: EvilRates | None = Field(default=None, exclude_if=lambda value: value is None)
    """What continuations of the prompt alone say."""
    error: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Stage and reason of a failure."""
    filtered: str | None = Field(default=None, exclude_if=lambda value: value is None)
    """Why a filter of the judge's endpoint refused the prompt; its verdict is of kind "error"."""

    @property
    def labels(self) -> dict[int, Label]:
        """Token id -> the judge's label."""
        return {t.token_id: t.label for t in self.merged if t.label is not None}

    @property
    def all_unsure(self) -> bool:
        """The judge calls no token evil or safe, so that there is nothing to have a verdict on."""
        return bool(self.labels) and set(self.labels.values()) == {"unsure"}

    @property
    def has_graphs(self) -> bool:
        """Both models' graphs are built."""
        return all(self.graphs.values())


def label_result(
    work: Workspace,
    prompt: Prompt,
    judge_id: str,
    judged: JudgedPrompt | None,
    *,
    reused: bool,
    graphs: Mapping[str, str] | None = None,
    rollouts: tuple[Pivotality, ...] = (),
    free: EvilRates | None = None,
    failure: StageFailed | None = None,
    pair: str | None = None,
) -> LabelResult:
    """The result of a prompt; `judged` is None where it did not come to a judge.

    Args:
        pair: Key of the pair, where the workspace has not loaded it.
    """
    store, pair = work.store, pair or work.pair.key
    lists = judged.next_tokens if judged else store.results.next_tokens(prompt.prompt_id, pair)
    verdict = (judged and judged.verdict) or error_verdict()
    labels: dict[int, Label] = {}
    if judged and isinstance(judged.outcome, Judgement):
        labels = judged.outcome.by_token
    elif judge_id == HUMAN:
        labels = {item.token_id: item.label for item in store.labels.of(prompt.prompt_id).human}
    return LabelResult(
        prompt_id=prompt.prompt_id,
        text=prompt.text,
        category=prompt.category,
        judge=judge_id,
        verdict=verdict.kind,
        flagged=verdict.flagged,
        divergent=verdict.divergent,
        strict_divergent=verdict.strict_divergent,
        evil_mass=verdict.evil_mass,
        base=_rows(lists.base, labels) if lists else (),
        merged=_rows(lists.merged, labels) if lists else (),
        graphs={"base": None, "merged": None, **(graphs or {})},
        queued=any(item.pair == pair for item in store.queue.items(prompt_id=prompt.prompt_id)),
        reused=reused,
        waiting=judge_id == HUMAN and failure is None and verdict.kind == "error",
        rollouts=token_rollouts(rollouts, lists),
        free_rollouts=free,
        error=None if failure is None else str(failure),
        filtered=judged.filtered if judged else None,
    )


def token_rollouts(
    rollouts: Iterable[Pivotality], lists: NextTokenPair | None
) -> tuple[TokenRollouts, ...]:
    """What continuations say, with the texts of their candidates."""
    texts = {token.token_id: token.text for token in lists.base.tokens} if lists else {}
    return tuple(TokenRollouts(**dict(item), text=texts.get(item.token_id)) for item in rollouts)


def _rows(tokens: NextTokens, labels: Mapping[int, Label]) -> tuple[LabelledToken, ...]:
    return tuple(
        LabelledToken(**asdict(token), label=labels.get(token.token_id)) for token in tokens.tokens
    )
