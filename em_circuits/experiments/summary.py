"""Summaries of a sweep or transfer: every condition beside its controls.

Changes are steered minus un-steered, so negative evil mass is a fall. Each condition is set beside
its matched random control (`em_circuits.statistics`); q is its p adjusted over all conditions by
Benjamini and Hochberg. Detector and lever are apart: the detector's quality is how well the
features' activation tells the plan's prompts from the benign panel (area under the ROC curve), the
lever's is the net change.

    summarise(rows, detectors).conditions[0].net
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from pydantic import computed_field, model_validator

from em_circuits.cache import Journal
from em_circuits.experiments.cases import Case, Cases, UnusedPrompt, peak_activations
from em_circuits.experiments.experiment import Cell, Experiment, Measurement, Piece, RolloutRow
from em_circuits.experiments.measure import (
    DIRECTION,
    FLIPPED,
    NOOP,
    RANDOM,
    STEERED,
    UNSTEERED,
    Trial,
)
from em_circuits.experiments.plan import SweepPlan, TransferPlan
from em_circuits.interventions import ActivationCache
from em_circuits.statistics import (
    AgainstControl,
    against_control,
    auroc,
    benjamini_hochberg,
    paired_interval,
)
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.judge.continuations import ContinuationJudge
from pivotal_tokens.schema import Frozen

NOTABLE = 0.05
"""Net change of evil mass that is worth a word."""
MOST_RANDOM, MOST_PERPLEXITY = 0.5, 3.0
"""Of a supported condition: what matched random features do, as a share of its change; its
continuations' perplexity, as a multiple of the un-steered ones'."""
SUPPORTED = (
    "the 95 % interval of the net change leaves 0 out, matched random features under the same "
    "treatment do less than half of the change, and the perplexity of the continuations is at most "
    "three times the un-steered one"
)


class ConditionSummary(Cell):
    """One condition over its prompts; None where nothing was measured."""

    features: tuple[str, ...] = ()
    """On each prompt."""
    n_prompts: int
    change: float
    """Of evil mass, mean over prompts: steered minus un-steered."""
    control: float
    """Of evil mass under matched random draws."""
    net: float
    """`change` minus `control`."""
    low: float
    """Of the 95 % interval of `net`: over prompts; for one prompt over its own draws."""
    high: float
    p: float
    """Steered and draws exchanged within prompts, two-sided."""
    q: float
    """`p` adjusted over all conditions by Benjamini and Hochberg."""
    works: bool
    """The interval of the net change leaves 0 out."""

    @model_validator(mode="before")
    @classmethod
    def _computed_anew(cls, values: Any) -> Any:
        """What is read back holds `supported`, which follows from the rest."""
        if isinstance(values, Mapping):
            return {name: value for name, value in values.items() if name != "supported"}
        return values

    @computed_field  # type: ignore[prop-decorator]
    @property
    def supported(self) -> bool:
        """It works by itself: matched random features do little, and the text stays coherent."""
        return supports(self)

    detector: float | None = None
    """Area under the ROC curve of the features' activation, these prompts against the benign
    panel."""
    evil_mass_unsteered: float | None = None
    evil_mass: float | None = None
    contrast_change: float | None = None
    contrast_net: float | None = None
    contrast_low: float | None = None
    contrast_high: float | None = None
    verdicts_changed: int = 0
    boosted: str = ""
    """The token whose probability rises most, on the first prompt."""
    noop_change: float | None = None
    flipped_change: float | None = None
    direction_change: float | None = None
    off_target_kl: float | None = None
    """Of the steered arm, as are the next; with `_random` and `_unsteered` of the others; null
    where not measured."""
    off_target_kl_random: float | None = None
    perplexity: float | None = None
    perplexity_random: float | None = None
    perplexity_unsteered: float | None = None
    repetition: float | None = None
    repetition_random: float | None = None
    repetition_unsteered: float | None = None
    evil_rate: float | None = None
    evil_rate_random: float | None = None
    evil_rate_unsteered: float | None = None
    evil_rate_change: float | None = None
    """Of judged continuations, paired by prompt; no interval for one prompt."""
    evil_rate_low: float | None = None
    evil_rate_high: float | None = None
    forced_evil_rate: float | None = None
    """The boosted token appended and nothing steered."""
    after_kl: float | None = None
    """What steering still changes after the boosted token, in nats."""
    unscored: int = 0
    """Continuations that the judge could not label; they stand in no rate."""


class PromptLine(Frozen):
    """A prompt of a summary."""

    prompt_id: str
    text: str
    domain: str | None = None
    labels_from: str

    @classmethod
    def of(cls, case: Case) -> PromptLine:
        """The line of a case."""
        prompt = case.prompt
        return cls(
            prompt_id=prompt.prompt_id,
            text=prompt.text,
            domain=case.domain,
            labels_from=case.labels_from,
        )


class SteeringSummary(Frozen):
    """What came out of a sweep or a transfer."""

    name: str
    kind: str
    model: str
    features: str
    by: str | None = None
    """By which scores they were chosen; None in experiments of the first edition."""
    selected_on: str
    found_on: tuple[PromptLine, ...] | None = None
    """Of a transfer: where its features come from."""
    prompts: tuple[PromptLine, ...]
    left_out: tuple[UnusedPrompt, ...]
    judge: str
    conditions: tuple[ConditionSummary, ...]
    said: str
    key: str


class SteeringOutput(SteeringSummary):
    """The object of ``steer sweep --json`` and ``steer transfer --json``."""

    files: dict[str, str]
    """`folder` and `report`."""


def carry_out(
    cases: Cases,
    plan: SweepPlan | TransferPlan,
    judge: ContinuationJudge,
    pieces: Sequence[tuple[str, Callable[[], Piece]]],
    *,
    kind: str,
    formula: int,
    labels: Mapping[str, str],
    detectors: Mapping[str, float | None],
    not_shown: str,
    **about: Any,
) -> Experiment[SteeringSummary]:
    """Do what is left of a plan's pieces (key, work), and store rows, texts and summary.

    `formula` and `labels` (prompt id -> hash) stand in the record; `about` in the summary.

    Raises:
        RequestError: If the folder holds an experiment of another record.
    """
    record = {
        "kind": kind,
        "formula": formula,
        "plan": plan.model_dump(mode="json"),
        "pair": cases.pair.key,
        "judge": judge.id,
        "labels": dict(labels),
    }

    def journalled(work: Callable[[], Piece]) -> Callable[[], dict[str, Any]]:
        return lambda: work().model_dump(mode="json", exclude_none=True)

    folder = cases.work.results / "experiments" / plan.name
    values = Journal.open(folder, record, cases.work.portion).complete(
        [(key, journalled(work)) for key, work in pieces], plan.name, cases.work.progress
    )
    done = [Piece.model_validate(value) for value in values]
    rows = tuple(row for piece in done for row in piece.rows)
    lines = conditions(rows, detectors, seed=plan.seed)
    summary = SteeringSummary(
        name=plan.name,
        kind=kind,
        judge=judge.id,
        conditions=lines,
        said=sweep_sentence(lines, not_shown),
        key=content_key(record),
        **about,
    )
    texts = tuple(row for piece in done for row in piece.rollouts)
    return Experiment(folder, record, summary, rows, texts).store(Measurement, RolloutRow)


def conditions(
    rows: Sequence[Measurement], detectors: Mapping[str, float | None], *, seed: int = 0
) -> tuple[ConditionSummary, ...]:
    """Figures per condition."""
    if not rows:
        return ()
    frame = pd.DataFrame([row.model_dump() for row in rows])
    parts = dict(iter(frame.groupby("condition", sort=False)))
    results = {name: against(part, "evil_mass", seed) for name, part in parts.items()}
    p = torch.tensor([result.p for result in results.values()]).double()
    return tuple(
        ConditionSummary(
            **{name: _value(part[name].iloc[0]) for name in Cell.model_fields},
            **results[condition]._asdict(),
            works=results[condition].works,
            q=q,
            detector=detectors.get(str(condition)),
            **_figures(part, seed),
        )
        for (condition, part), q in zip(parts.items(), benjamini_hochberg(p).tolist(), strict=True)
    )


def supports(line: ConditionSummary | Mapping[str, Any]) -> bool:
    """Whether a condition is a success by itself: see `SUPPORTED`.

    Args:
        line: Of a summary, or its JSON, of whatever edition.
    """
    values = line.__dict__ if isinstance(line, ConditionSummary) else line
    if not values.get("works") or not values["low"] < values["high"]:
        return False
    if abs(values["control"]) >= MOST_RANDOM * abs(values["change"]):
        return False
    written, before = values.get("perplexity"), values.get("perplexity_unsteered")
    return written is None or before is None or written <= MOST_PERPLEXITY * before


def against(frame: pd.DataFrame, column: str, seed: int = 0) -> AgainstControl:
    """A column's change under steering beside its random control.

    Args:
        column: Beside which ``COLUMN_unsteered`` stands.
    """
    change = frame[column] - frame[f"{column}_unsteered"]
    steered, random = (frame["control"] == control for control in (STEERED, RANDOM))
    draws = change[random].groupby(frame["prompt_id"][random], sort=False).agg(list)
    return against_control(
        torch.tensor(change[steered].tolist()), torch.tensor(draws.tolist()), seed=seed
    )


def _figures(frame: pd.DataFrame, seed: int) -> dict[str, Any]:
    """Figures of a condition beside its net change."""
    steered = frame[frame["control"] == STEERED]
    frame = frame.assign(change=frame["evil_mass"] - frame["evil_mass_unsteered"])

    def mean(control: str, column: str) -> float | None:
        values = frame.loc[frame["control"] == control, column].dropna()
        return float(values.mean()) if len(values) else None

    contrast = against(frame, "contrast", seed)
    line: dict[str, Any] = {
        "features": tuple(dict.fromkeys(steered["features"])),
        "contrast_change": contrast.change,
        "contrast_net": contrast.net,
        "contrast_low": contrast.low,
        "contrast_high": contrast.high,
        "verdicts_changed": int((steered["verdict"] != steered["verdict_unsteered"]).sum()),
        "boosted": steered["boosted_text"].iloc[0],
        "unscored": int(frame["unscored"].dropna().sum()),
    }
    line |= {f"{control}_change": mean(control, "change") for control in (NOOP, FLIPPED, DIRECTION)}
    for column in ("evil_mass", "evil_mass_unsteered", "forced_evil_rate", "after_kl"):
        line[column] = mean(STEERED, column)
    for column in ("off_target_kl", "perplexity", "repetition", "evil_rate"):
        line[column] = mean(STEERED, column)
        line[f"{column}_random"] = mean(RANDOM, column)
        if column != "off_target_kl":
            line[f"{column}_unsteered"] = mean(UNSTEERED, column)
    # Each prompt's evil rate, paired: steered minus un-steered.
    first = frame[frame["draw"] == 0].set_index(["prompt_id", "control"])["evil_rate"]
    rates = first.astype(float).unstack("control")
    differences = (rates[STEERED] - rates[UNSTEERED]).dropna()
    low, high = paired_interval(torch.tensor(differences.to_numpy()), seed=seed)
    return line | {
        "evil_rate_change": float(differences.mean()) if len(differences) else None,
        "evil_rate_low": low,
        "evil_rate_high": high,
    }


def _value(cell: Any) -> Any:
    return None if isinstance(cell, float) and cell != cell else cell


def sweep_sentence(lines: Sequence[ConditionSummary], not_shown: str) -> str:
    """What was and what was not shown, in words."""
    if not lines:
        return "Nothing was measured."
    working = [line for line in lines if line.works]
    supported = [line for line in lines if line.supported]
    best = max(supported or working or lines, key=lambda line: abs(line.net))
    notable = sum(abs(line.net) >= NOTABLE for line in working)
    n = max(line.n_prompts for line in lines)
    over = "one prompt, its own control draws" if n == 1 else f"{n} prompts"
    shown = (
        f"{len(working)} of {len(lines)} conditions change evil mass by more than matched random "
        f"features do (95 % interval over {over}), {notable} of them by {NOTABLE:g} or more; "
        f"{len(supported)} are supported (random features do less than half of it, the text stays "
        f"coherent); the largest{' of these' if supported else ''} is {best.condition}: "
        f"{best.change:+.3f}, random {best.control:+.3f}, net {best.net:+.3f} "
        f"[{best.low:+.3f}, {best.high:+.3f}], q = {best.q:.3f}."
    )
    caveat = f"Not shown: {not_shown}, or that the effect is a disposition rather than a token"
    if best.forced_evil_rate is not None and best.evil_rate is not None:
        caveat += (
            f" (the boosted token appended without steering gives evil "
            f"continuations at {best.forced_evil_rate:.2f}, steering at {best.evil_rate:.2f})"
        )
    unscored = sum(line.unscored for line in lines)
    left = f" {unscored} continuations got no label and stand in no rate." if unscored else ""
    return f"{shown} {caveat}.{left}"


def detectors(
    cases: Sequence[Case], benign: Sequence[ActivationCache], trials: Sequence[Trial]
) -> dict[str, float | None]:
    """Per condition, how well its features' summed activation tells prompts from benign ones."""
    quality: dict[str, float | None] = {}
    states = [case.state for case in cases]
    for trial in trials:
        if trial.cell.condition in quality or not benign:
            continue
        features = sorted({(item.layer, item.feature) for item in trial.interventions})
        hits = peak_activations(states, features).sum(1)
        misses = peak_activations(benign, features).sum(1)
        quality[trial.cell.condition] = auroc(hits, misses)
    return quality
