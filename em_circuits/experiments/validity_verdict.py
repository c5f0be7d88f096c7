"""The validity card as a value: what was found, each check of it, and the verdict in plain words.

checks = card_checks(thresholds, claims, ...)
tier_of(checks)                 # "carries it", "takes part" or "not shown"
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from em_circuits.experiments.cases import UnusedPrompt
from em_circuits.experiments.shares import Share
from em_circuits.experiments.validity_settings import CardThresholds, Reference
from pivotal_tokens.schema import Frozen, ModelName


class ClaimShare(Share):
    """A share of the shift, beside random and simple circuits of the same size."""

    random: Share
    """Of matched random circuits: mean and middle 95 % of draws."""
    baselines: dict[str, Share]
    lead: dict[str, Share]
    """Over each baseline, paired by prompt."""


class FaithfulnessCurve(Frozen):
    """Faithfulness by circuit size."""

    ranking: str
    faithfulness: tuple[float, ...]
    """At each of the card's fractions."""
    cpr: float
    """Area under the curve; higher is better."""
    cmd: float
    """Area between the curve and 1; lower is better."""


class NodeContribution(Frozen):
    """What one node adds to the circuit: mean of both shares with it minus without it."""

    node: str
    contribution: float
    low: float | None
    high: float | None
    above_random: bool
    """More than nine in ten nodes that are added at random."""
    p: float
    """Of the minimality test."""


class SideEffect(Frozen):
    """Change of the next token where the nodes are removed: KL divergence, in nats."""

    claimed: float
    """Mean over the prompts of the claim."""
    unrelated: float
    random: float
    """Of matched random circuits, on unrelated prompts."""
    ratio: float


class ChoiceStability(Frozen):
    """Jaccard index of circuits chosen on other prompts."""

    resampled: float | None
    """Mean over pairs of bootstrap resamples of the prompts."""
    halves: float | None
    """Of the two halves of the categories."""
    seeds: float | None
    """Mean over the circuits of other draws of the prompts that a search measures; null where none
    were asked for."""
    paraphrases: float | None
    """Mean over rounds of paraphrases, each beside the circuit of the same prompts as they were;
    null where none were given."""
    chance: float
    """Of two random circuits of this size."""
    noise_floor: float
    """Least figure that is above 97.5 % of pairs of *matched* random circuits: what alike layers,
    activations and writes bring by themselves."""
    circuits: int
    """Resamples."""
    paraphrased: int
    """Rounds of paraphrases."""


class CircuitTest(Frozen):
    """One hypothesis test; an ideal circuit is not rejected."""

    test: str
    p: float | None
    rejected: bool | None
    says: str


class CardCheck(Frozen):
    """One line of the verdict."""

    name: str
    passed: bool | None
    """Null where it could not be asked."""
    value: float | None
    threshold: float
    says: str


Tier = Literal["carries it", "takes part", "not shown"]


class ValidityCard(Frozen):
    """What a claim about a circuit is worth."""

    key: str
    nodes: tuple[tuple[str, ...], ...]
    """Names, most important first: one circuit, or one a half."""
    asked: str
    chosen_by: str
    chosen_on: str
    in_sample: bool
    """Chosen on the very prompts that it is judged on."""
    reference: Reference
    model: ModelName
    prompts: tuple[str, ...]
    left_out: tuple[UnusedPrompt, ...]
    shift: float
    """Mean contrast of the whole model minus that of the reference, in logits."""
    tier: Tier
    sentence: str
    checks: tuple[CardCheck, ...]
    necessity: ClaimShare
    sufficiency: ClaimShare
    fractions: tuple[float, ...]
    curves: tuple[FaithfulnessCurve, ...]
    minimality: float
    """Share of the nodes that are above random ones."""
    contributions: tuple[NodeContribution, ...]
    specificity: SideEffect | None
    prompts_above_random: float
    """Share of the prompts on which necessity is above every matched random circuit."""
    stability: ChoiceStability | None
    """Null for named nodes: nothing was chosen."""
    components: dict[str, Share]
    """What features, errors and attention carry of the shift from base to merged."""
    tests: tuple[CircuitTest, ...]
    thresholds: CardThresholds
    thresholds_sha256: str


class ValidityOutput(ValidityCard):
    """The object of ``validity --json``."""

    files: dict[str, str]
    """`html` and `json`."""


def card_checks(
    asked: CardThresholds,
    claims: Sequence[ClaimShare],
    minimality: float,
    side: SideEffect | None,
    stability: ChoiceStability | None,
    errors: Share | None,
    in_sample: bool,
) -> tuple[CardCheck, ...]:
    """Every line of the verdict."""
    checks = [
        _claim_check("necessity", claims[0], asked.necessity),
        _claim_check("sufficiency", claims[1], asked.sufficiency),
        _baseline_check(claims, asked.baseline_margin),
        _check(
            "minimality",
            minimality,
            at_least=asked.minimality,
            says=f"{minimality:.0%} of the nodes add more than nine in ten random ones would",
        ),
        _check(
            "specificity",
            None if side is None else side.ratio,
            at_most=asked.specificity,
            says="not asked"
            if side is None
            else f"KL {side.unrelated:.3f} on unrelated prompts, {side.claimed:.3f} on the claim's",
        ),
        _stability_check(stability, asked),
        _check(
            "error share",
            None if errors is None else errors.share,
            at_most=asked.error_share,
            says="known between base and merged alone"
            if errors is None
            else f"errors alone carry {errors} of the shift",
        ),
    ]
    if in_sample:
        says = "chosen on the very prompts it is judged on"
        checks.append(
            CardCheck(name="held out", passed=False, value=None, threshold=0.0, says=says)
        )
    return tuple(checks)


def _check(
    name: str,
    value: float | None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    says: str,
) -> CardCheck:
    """A value against its one limit; not asked where there is no value."""
    threshold = at_most if at_least is None else at_least
    assert threshold is not None
    passed = None
    if value is not None:
        passed = value <= threshold if at_least is None else value >= threshold
    return CardCheck(name=name, passed=passed, value=value, threshold=threshold, says=says)


def _claim_check(name: str, claim: ClaimShare, least: float) -> CardCheck:
    low = claim.share if claim.low is None else claim.low
    above = low is not None and claim.random.high is not None and low > claim.random.high
    return CardCheck(
        name=name,
        passed=above and claim.share is not None and claim.share >= least,
        value=claim.share,
        threshold=least,
        says=f"{claim}; matched random circuits {claim.random}",
    )


def _baseline_check(claims: Sequence[ClaimShare], margin: float) -> CardCheck:
    leads = {
        name: sum(claim.lead[name].share or 0.0 for claim in claims) / len(claims)
        for name in claims[0].lead
    }
    closest = min(leads, key=lambda name: leads[name])
    return CardCheck(
        name="baselines",
        passed=leads[closest] > margin,
        value=leads[closest],
        threshold=margin,
        says=f"mean lead of both shares over {closest}, the closest simple circuit",
    )


def _stability_check(stability: ChoiceStability | None, asked: CardThresholds) -> CardCheck:
    if stability is None:
        return _check("stability", None, at_least=asked.stability, says="nothing was chosen")
    asked_of = {
        "resampled prompts": stability.resampled,
        "other draws of the search": stability.seeds,
        "paraphrases": stability.paraphrases,
    }
    known = {name: value for name, value in asked_of.items() if value is not None}
    least = max(
        asked.stability, asked.stability_over_chance * stability.chance, stability.noise_floor
    )
    says = ", ".join(f"{value:.2f} over {name}" for name, value in known.items())
    says = f"Jaccard {says or 'not asked'}; by chance {stability.chance:.3f}, "
    says += f"noise floor {stability.noise_floor:.3f}"
    value = min(known.values()) if known else None
    return _check("stability", value, at_least=least, says=says)


def tier_of(checks: Sequence[CardCheck]) -> Tier:
    passed = {check.name: check.passed for check in checks}
    if all(value is not False for value in passed.values()):
        return "carries it"
    if passed["necessity"] or passed["sufficiency"]:
        return "takes part"
    return "not shown"


def card_sentence(
    tier: Tier,
    n: int,
    prompts: int,
    claims: Sequence[ClaimShare],
    checks: Sequence[CardCheck],
) -> str:
    """The verdict in plain words."""
    failed = [check.name for check in checks if check.passed is False]
    what = {
        "carries it": "carry the shift, and nothing that was asked speaks against it",
        "takes part": "take part in it, but the claim fails on " + ", ".join(failed),
        "not shown": "are not shown to carry anything: the claim fails on " + ", ".join(failed),
    }[tier]
    return (
        f"These {n} nodes {what}. Removed they take {claims[0]} of the shift with them, by "
        f"themselves they bring {claims[1]} ({prompts} prompts)."
    )
