"""Agreement of scores with measured effects, beside numpy and by construction."""

import json

import numpy as np
import pytest
import torch
from subjects import Subject

from em_circuits.interventions import (
    Regime,
    ablation_effects,
    agreement_by_method,
    compare_with_ablations,
)
from em_circuits.interventions.validate import Comparison
from em_circuits.statistics import agreement, agreement_intervals, ranks
from pivotal_tokens.errors import RequestError


def test_agreement_equals_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(200, generator=generator)
    x = y + torch.randn(200, generator=generator)
    found = agreement(x, y)
    a, b = x.numpy(), y.numpy()
    assert found.pearson == pytest.approx(np.corrcoef(a, b)[0, 1])
    ranks = np.argsort(np.argsort(a)), np.argsort(np.argsort(b))
    assert found.spearman == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found.sign == pytest.approx(float((x.sign() == y.sign()).float().mean()))
    both = set(np.argsort(-abs(a))[:20].tolist()) & set(np.argsort(-abs(b))[:20].tolist())
    assert found.top20 == len(both)


def test_ties_share_their_mean_rank() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_scores_without_variance_have_no_correlation() -> None:
    found = agreement(torch.zeros(30), torch.arange(30).float())
    assert found.pearson is None and found.spearman is None


def test_effects_validate_themselves_in_their_own_regime(subject: Subject) -> None:
    state, groups = subject.state(), subject.groups
    features = state.active[-150:]
    direct = ablation_effects(
        subject.model, state, targets=groups, features=features, regime=Regime.DIRECT
    )[:, 0]
    noise = torch.randn(150, generator=torch.Generator().manual_seed(0))
    pairs = compare_with_ablations(
        subject.model, state, {"direct": direct, "noise": noise}, features=features, contrast=groups
    )
    rows = {(r.method, str(r.regime)): r for r in agreement_by_method(pairs)}
    assert len(rows) == 10
    exact = rows["direct", "direct"]
    assert exact.agreement.pearson == pytest.approx(1, abs=1e-6)
    assert exact.agreement.sign == 1 and exact.agreement.top20 == 20
    random = rows["noise", "free"]
    low, high = random.intervals["pearson"]
    assert low < random.agreement.pearson < high and abs(low) < 0.5
    record = json.loads(json.dumps(random.model_dump(mode="json"), allow_nan=False))
    assert set(record) == {
        "method", "regime", "pearson", "spearman", "sign", "top20", "low", "high", "intervals",
    }  # fmt: skip
    assert (record["low"], record["high"]) == (low, high)
    for name in ("pearson", "spearman", "sign", "top20"):
        low, high = record["intervals"][name]
        assert low <= record[name] <= high


def test_several_prompts_are_averaged_and_resampled_as_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for noise in (0.1, 0.5, 2.0):
        y = torch.randn(50, generator=generator)
        x = y + noise * torch.randn(50, generator=generator)
        pairs.append(Comparison("gradient", Regime.FREE, x, y))
    (row,) = agreement_by_method(pairs)
    each = [agreement(p.predicted, p.measured).pearson for p in pairs]
    assert row.n_prompts == 3 and row.agreement.pearson == pytest.approx(sum(each) / 3)
    low, high = row.intervals["pearson"]
    assert min(each) <= low <= row.agreement.pearson <= high <= max(each)


def test_an_interval_over_features_is_that_of_resampled_agreements() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(60, generator=generator)
    x = y + 0.5 * torch.randn(60, generator=generator)
    found = agreement_intervals([(x, y)], n_bootstrap=400, seed=1)
    draws = torch.randint(60, (400, 60), generator=torch.Generator().manual_seed(1))
    each = [agreement(x[d], y[d]) for d in draws]
    for name in ("pearson", "sign"):
        values = np.array([getattr(a, name) for a in each])
        assert found[name] == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
    low, high = found["spearman"]
    ranked = np.quantile([a.spearman for a in each], [0.025, 0.975])
    assert low == pytest.approx(ranked[0], abs=0.03) and high == pytest.approx(ranked[1], abs=0.03)
    nothing = agreement_intervals([(torch.zeros(30), y[:30])], n_bootstrap=50, seed=0)
    assert nothing["pearson"] == (None, None)


def test_scores_of_other_features_are_refused(subject: Subject) -> None:
    state = subject.state()
    with pytest.raises(RequestError, match="3 scores for 5 features"):
        compare_with_ablations(
            subject.model,
            state,
            {"gradient": torch.zeros(3)},
            features=state.active[:5],
            contrast=subject.groups,
        )
