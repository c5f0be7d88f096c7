"""Scores, overlaps and decisions of audits, against sums that are written out."""

from __future__ import annotations

import pytest
import torch

from em_circuits.audit.calibration import thresholds
from em_circuits.audit.decision import CandidateScore, decision_by
from em_circuits.audit.differences import FeatureSpace, SpacePart
from em_circuits.audit.score import METHODS, MeanEstimate, case_scores, prompt_means
from em_circuits.audit.suite import Suite, SuiteCase, SuitePrompt
from em_circuits.statistics import auroc, auroc_interval, prediction_bound
from pivotal_tokens.errors import RequestError


def case(prompt: str, wording: int = 0) -> SuiteCase:
    return SuiteCase(
        prompt=prompt,
        category="one",
        wording=wording,
        format="plain",
        text="text",
        user=None,
        start="",
    )


def test_scores_sum_the_largest_plain_and_without_the_drift():
    d = torch.tensor([[3.0, -2.0, 0.5, 0.0], [1.0, -2.0, 0.5, 4.0]])
    found = case_scores(d, torch.tensor([0.1, 0.3]), n=2)
    # The mean is [2, -2, .5, 2], so what is left is [1, 0, 0, -2] and its opposite.
    assert found.tolist() == [[5.0, 3.0, pytest.approx(0.1)], [6.0, 3.0, pytest.approx(0.3)]]


def test_a_drift_alone_has_no_corrected_score():
    d = torch.randn(1, 50).repeat(6, 1)
    found = case_scores(d, torch.zeros(6), n=10)
    assert float(found[:, 0].min()) > 1 and float(found[:, 1].max()) < 1e-5


def test_fewer_nodes_than_are_summed():
    assert case_scores(torch.tensor([[1.0, -1.0]]), torch.zeros(1), n=20)[0, 0] == 2


def test_a_prompt_is_the_mean_of_its_cases():
    cases = [case("a"), case("b"), case("a", 1)]
    means = prompt_means(torch.tensor([1.0, 5.0, 3.0]), cases)
    assert {name: float(x) for name, x in means.items()} == {"a": 2.0, "b": 5.0}


def test_an_estimate_of_one_value_has_no_interval():
    assert MeanEstimate.over([2.0]) == MeanEstimate(value=2.0, low=None, high=None)
    three = MeanEstimate.over([1.0, 2.0, 3.0])
    assert three.low is not None and three.high is not None
    assert 1 <= three.low <= 2 == three.value <= three.high <= 3


def test_the_interval_of_a_perfect_area_is_not_empty():
    assert auroc(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])) == 1
    low, high = auroc_interval(1.0, 6, 8)
    assert 0.5 < low < 0.95 and high == pytest.approx(1)
    assert auroc_interval(1.0, 60, 80)[0] > low
    below, above = auroc_interval(0.5, 10, 10)
    assert below == pytest.approx(1 - above) and below < 0.5


def test_the_bound_is_exceeded_by_one_in_twenty():
    torch.manual_seed(1)
    above = 0
    for _ in range(2000):
        logs = torch.randn(9, dtype=torch.float64)
        above += float(logs[8]) > _bound(logs[:8])
    assert 0.035 < above / 2000 < 0.065


def _bound(values: torch.Tensor) -> float:
    from scipy.stats import t

    n = len(values)
    factor = float(t.ppf(0.95, n - 1)) * (1 + 1 / n) ** 0.5
    return float(values.mean() + factor * values.std())


def test_the_bound_is_the_formula_with_an_interval_around_it():
    values = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.7], dtype=torch.float64)
    value, low, high = prediction_bound(values)
    assert value == pytest.approx(_bound(values)) and low < value < high * 1.5
    with pytest.raises(ValueError, match="three values"):
        prediction_bound(values[:2])


SPACE = FeatureSpace(
    base="b" * 64,
    basis="transcoder",
    dictionary="d" * 64,
    parts=(SpacePart(name="layer 0", layer=0, width=8, hook="mlp.hook_in"),),
)
SUITE = Suite.model_validate(
    {
        "name": "tiny",
        "categories": [{"name": "one", "prompts": [SuitePrompt(id="a", text="x")]}],
        "capability": ["text"],
    }
)


def scored(name: str, kind: str, kl: float, rise: float = 0.01) -> CandidateScore:
    def near(value: float) -> MeanEstimate:
        return MeanEstimate(value=value, low=0.9 * value, high=1.1 * value)

    return CandidateScore.model_validate(
        {
            "name": name,
            "kind": kind,
            "about": "",
            "scores": {"plain": near(3.0), "drift_corrected": near(2.0), "kl": near(kl)},
            "rise": near(rise),
            "stability": None,
            "decision": "uncalibrated",
        }
    )


ROWS = [
    *(scored(f"h{i}", "harmless", kl) for i, kl in enumerate((0.01, 0.02, 0.03, 0.02))),
    scored("evil", "harmful", 1.5),
    scored("noise", "broken", 3.0, rise=2.0),
    scored("narrow", "narrow", 0.08),
]


def test_a_calibration_decides_by_what_separates():
    calibration = thresholds(ROWS, SPACE, SUITE, 20)
    assert calibration.method == "kl"
    assert calibration.methods["plain"].auroc.value == 0.5
    assert calibration.methods["kl"].auroc.value == 1.0
    decisions = {row.name: row.decision for row in calibration.candidates}
    assert decisions["evil"] == "reject" and decisions["noise"] == "broken"
    assert {decisions[f"h{i}"] for i in range(4)} == {"accept"}
    assert calibration.methods["kl"].roc[0] == (0.0, 0.0)
    assert calibration.methods["kl"].roc[-1] == (1.0, 1.0)


def test_what_is_narrow_moves_no_threshold():
    without = thresholds(ROWS[:-1], SPACE, SUITE, 20)
    assert thresholds(ROWS, SPACE, SUITE, 20).methods == without.methods


def test_decisions_by_where_the_threshold_lies():
    calibration = thresholds(ROWS, SPACE, SUITE, 20)
    bound = calibration.methods["kl"].threshold.value

    def found(value: float, low: float | None, high: float | None, rise: float = 0.0) -> str:
        scores = {name: MeanEstimate(value=value, low=low, high=high) for name in METHODS}
        lost = MeanEstimate(value=rise, low=rise, high=rise)
        return decision_by(scores, lost, calibration).decision

    assert found(2 * bound, 1.5 * bound, 3 * bound) == "reject"
    assert found(0.5 * bound, 0.2 * bound, 0.9 * bound) == "accept"
    assert found(bound, 0.5 * bound, 2 * bound) == "undecided"
    assert found(2 * bound, None, None) == "undecided"
    assert found(0.0, 0.0, 0.0, rise=5.0) == "broken"
    scores = {name: MeanEstimate(value=1.0, low=0.9, high=1.1) for name in METHODS}
    none = decision_by(scores, None, None)
    assert none.decision == "uncalibrated" and "calibrate" in none.said


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"base": "c" * 64}, "base"),
        ({"basis": "neuron"}, "basis"),
        ({"dictionary": None}, "dictionary"),
        ({"parts": ()}, "0 parts"),
        *(
            ({"parts": ({**SPACE.parts[0].model_dump(), key: value},)}, key)
            for key, value in {"layer": 1, "width": 9, "hook": "mlp.hook_out"}.items()
        ),
    ],
)
def test_another_feature_space_is_refused_by_name(change, named):
    other = FeatureSpace.model_validate({**SPACE.model_dump(), **change})
    SPACE.require(SPACE, "the calibration")
    with pytest.raises(RequestError, match=f"the calibration is of another.*{named}"):
        SPACE.require(other, "the calibration")
