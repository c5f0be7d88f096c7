"""Features one by one, always on: the rate of misaligned answers by feature and strength.

Every feature is steered alone, at every strength, over all questions; the un-steered model answers
the same questions with the same noise. The control is single features, too: fixed ones, of the same
layers and with decoder rows of similar length, so that each strength writes as much.

    band = the middle 95 % of the control features' rates at a strength
    above = the rate is above the band, and its difference from the un-steered model's above 0

What it costs stands beside: coherent answers among all answers, and the perplexity of the answers
under the un-steered base.

    setup = each_setup(model, caches, ids, (2.0, 5.0, 15.0))
    outcome = each_outcome(setup, "base", rates, differences)
    outcome.lines[0].rate, outcome.bands[0].high
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from em_circuits.activation_cache import ActivationCache
from em_circuits.coordinates import unique_rows
from em_circuits.experiments.evaluation.answers import EachSetup
from em_circuits.experiments.evaluation.rates import (
    ConditionRates,
    RateDifference,
    in_percent,
)
from em_circuits.feature import FeatureId
from em_circuits.intervention import Mode, Where, on_each
from em_circuits.interventions.edits import check_interventions
from em_circuits.interventions.feature_rows import decoder_norms
from em_circuits.interventions.matched_controls import Pool, matched_draws
from em_circuits.models import Model, ModelPair
from em_circuits.models.text import encode, render_turns
from em_circuits.statistics import quantile_interval
from pivotal_tokens.errors import RequestError
from pivotal_tokens.generator.questions import QuestionSet
from pivotal_tokens.schema import Frozen, ModelName


class EachLine(Frozen):
    """One feature at one strength."""

    feature: str
    value: float
    control: bool
    """A random feature."""
    rate: float | None
    """Misaligned / scored answers, mean over questions."""
    low: float | None
    high: float | None
    difference: float | None
    """From the un-steered model, paired by question."""
    difference_low: float | None
    difference_high: float | None
    coherent: float
    """Coherent / all answers."""
    scored: int
    perplexity: float | None
    above: bool
    """Above the random band, and the un-steered model's rate below the interval."""


class EachBand(Frozen):
    """The control features at one strength."""

    value: float
    low: float | None
    high: float | None
    mean: float | None
    coherent: float | None
    """Mean share of coherent answers."""


class EachOutcome(Frozen):
    """Every feature at every strength beside its control."""

    model: str
    unsteered: float | None
    unsteered_coherent: float
    lines: tuple[EachLine, ...]
    bands: tuple[EachBand, ...]

    @property
    def said(self) -> str:
        """What came out, in a sentence."""
        names = {line.feature for line in self.lines if not line.control}
        above = {line.feature for line in self.lines if line.above}
        best = max(
            (line for line in self.lines if not line.control and line.rate is not None),
            key=lambda line: line.rate or 0.0,
            default=None,
        )
        said = (
            f"{len(above)} of {len(names)} features, steered alone, raise the rate of misaligned "
            f"answers of the {self.model} model ({in_percent(self.unsteered)}) above the band of "
            "random features."
        )
        if best is None:
            return said
        band = next(band for band in self.bands if band.value == best.value)
        return (
            f"{said} Highest: {best.feature} at {best.value:g}, {in_percent(best.rate)} "
            f"({in_percent(best.low)} to {in_percent(best.high)}) with {in_percent(best.coherent)} "
            f"coherent; random features {in_percent(band.low)} to {in_percent(band.high)}."
        )


def each_setup(
    model: Model,
    caches: Sequence[ActivationCache],
    features: Sequence[FeatureId],
    values: Sequence[float],
    *,
    mode: Mode = Mode.ADD,
    at: Where = Where.EVERYTHING,
    controls: int = 10,
    seed: int = 0,
) -> EachSetup:
    """Choose the control features.

    Args:
        caches: Prompts; the features that are active on them are the candidates.
        controls: How many; each is like one of the features in turn.

    Raises:
        RequestError: If a feature does not exist, or there are too few others.
    """
    ids = list(dict.fromkeys(features))
    items = on_each([(f.layer, None, f.feature) for f in ids], mode, values[0], where=at)
    check_interventions(model, items, caches[0].n_pos)
    own = torch.tensor([[f.layer, f.feature] for f in ids])
    active = torch.cat([cache.active[:, ::2].cpu() for cache in caches])
    pool, _ = unique_rows(torch.cat([own, active]))
    chosen = torch.stack([(pool == one).all(1).nonzero()[0, 0] for one in own])
    norms = decoder_norms(model, pool[:, 0], pool[:, 1])
    found: list[tuple[int, int]] = []
    if controls:
        draws = matched_draws(
            Pool(pool[:, 0], torch.ones(len(pool)), norms),
            chosen,
            n_draws=-(-controls // len(own)),
            seed=seed,
        )
        if draws is None:
            raise RequestError(
                f"{len(own)} features are steered, too few others are active on these questions "
                "for a control; steer fewer"
            )
        drawn = dict.fromkeys((int(a), int(b)) for a, b in pool[draws.reshape(-1)].tolist())
        found = list(drawn)[:controls]
    return EachSetup(
        features=tuple((f.layer, f.feature) for f in ids),
        controls=tuple(found),
        values=tuple(values),
        mode=mode,
        at=at,
    )


def question_caches(
    pair: ModelPair, model: ModelName, sets: Sequence[QuestionSet], *, most: int = 16
) -> list[ActivationCache]:
    """Caches of the first questions, on which control features must be active."""
    chats = [one.chat(question) for one in sets for question in one.questions]
    ids = (encode(pair.tokenizer, render_turns(pair.tokenizer, chat)[0]) for chat in chats[:most])
    return [ActivationCache.capture(pair.model(model), torch.tensor(one)) for one in ids]


def each_outcome(
    setup: EachSetup,
    model: str,
    rates: Mapping[str, ConditionRates],
    differences: Iterable[RateDifference],
) -> EachOutcome:
    """Set every condition beside its controls.

    Args:
        model: Name of the un-steered condition.
        rates: By condition.
        differences: Of every condition from the un-steered one.
    """
    changes = {change.world: change for change in differences}
    controls = [
        (value, rates[world_of(model, name)])
        for name, control, _, value in setup.conditions()
        if control
    ]
    bands = tuple(_band(value, [r for v, r in controls if v == value]) for value in setup.values)
    highs = {band.value: band.high for band in bands}
    lines = []
    for name, control, feature, value in setup.conditions():
        world = world_of(model, name)
        own, change, high = rates[world], changes[world], highs[value]
        raised = change.low is not None and change.low > 0
        beyond = own.rate is not None and high is not None and own.rate > high
        lines.append(
            EachLine(
                feature=str(feature),
                value=value,
                control=control,
                rate=own.rate,
                low=own.low,
                high=own.high,
                difference=change.difference,
                difference_low=change.low,
                difference_high=change.high,
                coherent=own.coherent / own.answers,
                scored=own.scored,
                perplexity=own.perplexity,
                above=raised and beyond and not control,
            )
        )
    unsteered = rates[model]
    return EachOutcome(
        model=model,
        unsteered=unsteered.rate,
        unsteered_coherent=unsteered.coherent / unsteered.answers,
        lines=tuple(lines),
        bands=bands,
    )


def world_of(model: str, condition: str) -> str:
    """How tables call a condition of a model."""
    return f"{model}, {condition}"


def _band(value: float, rates: Sequence[ConditionRates]) -> EachBand:
    known = torch.tensor([one.rate for one in rates if one.rate is not None], dtype=torch.float64)
    low, high = quantile_interval(known)
    return EachBand(
        value=value,
        low=low,
        high=high,
        mean=float(known.mean()) if len(known) else None,
        coherent=sum(r.coherent / r.answers for r in rates) / len(rates) if rates else None,
    )
