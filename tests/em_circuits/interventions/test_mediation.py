"""Mediation of one prompt: candidates, shift, cumulative curve and shares."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from subjects import Subject, lifelike_settings, organism_settings

from em_circuits.contrast import Contrast
from em_circuits.interventions import ActivationCache, Mediation, mediate, pooled_share, run_rows
from em_circuits.interventions.patching import ActivationDiff
from em_circuits.models import ModelPair, PairSettings
from em_circuits.statistics import agreement
from pivotal_tokens.errors import RequestError


@pytest.fixture(scope="module")
def mediation(subject: Subject):
    return mediate(subject.pair, subject.input_ids, subject.groups)


def states(subject: Subject) -> tuple[ActivationCache, ActivationCache]:
    return tuple(ActivationCache.capture(m, subject.input_ids) for m in subject.pair.models)


def figures(mediation: Mediation, name: str) -> torch.Tensor:
    return torch.tensor([getattr(feature, name) for feature in mediation.features])


def diff_in_order(
    mediation: Mediation, own: ActivationCache, other: ActivationCache
) -> ActivationDiff:
    """The changed features in the order in which the curve takes them."""
    places = torch.tensor([(f.layer, f.position, f.feature) for f in mediation.features])
    before, after = (cache.activation_of(places).float() for cache in (own, other))
    return ActivationDiff(places, before, after)


def test_changed_features_are_all_that_differ_in_either_model(subject: Subject) -> None:
    base, merged = states(subject)
    changed = ActivationDiff.between(base, merged)
    dense = [torch.stack([s.dense_activations(i) for i in range(4)]) for s in (base, merged)]
    places = (dense[0] != dense[1]).nonzero()
    assert torch.equal(changed.coordinates, places)
    assert torch.equal(changed.change, (dense[1] - dense[0])[tuple(places.T)])


def test_the_shift_is_that_of_the_two_models(subject: Subject, mediation) -> None:
    base, merged = (float(subject.groups.value(s.logits)) for s in states(subject))
    assert (mediation.shift.base, mediation.shift.merged) == (base, merged)
    assert mediation.shift.change > 0.5


def test_everything_together_is_the_merged_model(mediation) -> None:
    shares = mediation.shares
    assert shares.together == pytest.approx(1.0, abs=1e-3)
    alone = shares.features + shares.errors + shares.attention
    assert shares.interaction == pytest.approx(shares.together - alone)


def test_the_end_of_the_curve_is_the_feature_share(mediation) -> None:
    last = mediation.cumulative[-1]
    assert last.k == mediation.n_changed and last.random_share is None
    assert last.share == pytest.approx(mediation.shares.features, abs=1e-4)


def test_the_curve_sets_the_top_features_together(subject: Subject, mediation) -> None:
    base, _ = states(subject)
    edits = diff_in_order(mediation, *states(subject)).edits([torch.arange(20)])
    value = float(subject.groups.value(run_rows(subject.pair.base, base, edits))[0])
    point = next(p for p in mediation.cumulative if p.k == 20)
    share = (value - mediation.shift.base) / mediation.shift.change
    assert point.share == pytest.approx(share, abs=1e-4)
    assert point.random_low <= point.random_share <= point.random_high < point.share


def test_the_gradient_predicts_setting_each_feature_alone(subject: Subject, mediation) -> None:
    base, _ = states(subject)
    diff = diff_in_order(mediation, *states(subject))
    scanned = diff.scanned_effects(subject.pair.base, base, subject.groups)
    found = agreement(figures(mediation, "effect"), scanned)
    # First order: random weights bend much more than trained ones.
    assert found.pearson > (0.9 if subject.name == "organism" else 0.5)


def test_a_scan_ranks_by_the_effect_of_each_feature_alone(subject: Subject, mediation) -> None:
    if subject.name == "organism":
        pytest.skip("the same code, and many more features")
    scan = mediate(subject.pair, subject.input_ids, subject.groups, order="scan")
    assert (scan.effects_by, mediation.effects_by) == ("scan", "gradient")
    assert (scan.ordered_by, mediation.ordered_by) == ("scan", "integrated")
    first = scan.cumulative[0].contrast - scan.shift.base
    assert first == pytest.approx(scan.features[0].effect, abs=1e-4)
    assert first >= mediation.cumulative[0].contrast - mediation.shift.base - 1e-4


def test_integrated_effects_sum_to_what_all_features_carry(mediation) -> None:
    carried = mediation.cumulative[-1].contrast - mediation.shift.base
    integrated = figures(mediation, "integrated")
    assert float(integrated.sum()) == pytest.approx(carried, rel=0.15, abs=0.05)
    assert (integrated.diff() <= 0).all()


def test_taken_jointly_features_carry_more_than_taken_by_the_gradient(subject: Subject) -> None:
    if subject.name != "organism":
        pytest.skip("random weights have no features that work together")
    by_gradient, jointly = (
        mediate(subject.pair, subject.input_ids, subject.groups, order=order)
        for order in ("gradient", "integrated")
    )
    shares = [next(p.share for p in m.cumulative if p.k == 20) for m in (by_gradient, jointly)]
    assert shares[1] > shares[0]


def test_necessity_takes_away_from_the_merged_model_what_sufficiency_adds_to_the_base(
    subject: Subject, mediation
) -> None:
    necessity = mediate(subject.pair, subject.input_ids, subject.groups, direction="necessity")
    assert necessity.shift == mediation.shift and necessity.evil_mass == mediation.evil_mass
    assert necessity.shares.together == pytest.approx(1.0, abs=1e-3)
    base, merged = states(subject)
    diff = diff_in_order(necessity, merged, base)
    assert torch.equal(diff.own, merged.activation_of(diff.coordinates).float())
    logits = run_rows(subject.pair.merged, merged, diff.edits([torch.arange(20)]))
    value = float(subject.groups.value(logits)[0])
    point = next(p for p in necessity.cumulative if p.k == 20)
    gone = (necessity.shift.merged - value) / necessity.shift.change
    assert point.share == pytest.approx(gone, abs=1e-4)
    assert (figures(necessity, "integrated").diff() >= 0).all()
    assert pooled_share([necessity], k=20) == pytest.approx(point.share, abs=1e-4)
    with pytest.raises(Exception, match="both"):  # by its own check, or by the run-time types
        mediate(subject.pair, subject.input_ids, subject.groups, direction="both")  # type: ignore[arg-type]


def test_json_has_the_promised_shape_and_no_nan(mediation) -> None:
    record = json.loads(json.dumps(mediation.model_dump(mode="json"), allow_nan=False))
    assert set(record) >= {
        "prompt_id", "shift", "evil_mass", "features", "cumulative", "shares",
    }  # fmt: skip
    assert set(record["shares"]) == {"features", "errors", "attention", "together", "interaction"}
    assert set(record["cumulative"][0]) >= {
        "k", "share", "evil_mass", "random_share", "random_low", "random_high",
    }  # fmt: skip
    assert len(record["features"]) == min(mediation.n_changed, 10_000)
    wanted = {"layer", "position", "feature", "effect", "integrated"}
    assert set(record["features"][0]) == wanted


def test_without_a_contrast_there_is_no_mediation(subject: Subject) -> None:
    with pytest.raises(RequestError, match="no contrast"):
        mediate(subject.pair, subject.input_ids, Contrast((5,), ()))


def test_a_shift_that_is_too_small_has_no_shares(subject: Subject) -> None:
    swapped = Contrast(subject.groups.safe, subject.groups.evil)
    mediation = mediate(subject.pair, subject.input_ids, swapped)
    assert set(mediation.shares.model_dump().values()) == {None}
    assert all(p.share is None and p.random_share is None for p in mediation.cumulative)
    assert pooled_share([mediation]) is None


def test_pooled_shares_are_a_ratio_of_sums(mediation) -> None:
    assert pooled_share([mediation, mediation], k=20) == pytest.approx(
        next(p.share for p in mediation.cumulative if p.k == 20), abs=1e-4
    )


@pytest.fixture(params=["lifelike", "organism"])
def silenced(request: pytest.FixtureRequest, tmp_path: Path):
    """A pair whose adapter is scaled by 0."""
    settings: PairSettings
    settings = lifelike_settings(tmp_path) if request.param == "lifelike" else organism_settings()
    assert settings.adapter is not None
    source, folder = Path(settings.adapter), tmp_path / "silenced"
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    weights = load_file(source / "adapter_model.safetensors")
    save_file({k: 0 * v for k, v in weights.items()}, folder / "adapter_model.safetensors")
    with ModelPair.load(settings.model_copy(update={"adapter": str(folder)})) as pair:
        yield pair


def test_an_adapter_scaled_by_0_shifts_nothing(silenced: ModelPair) -> None:
    ids = torch.tensor([1, 5, 6, 7, 8, 9])
    mediation = mediate(silenced, ids, Contrast((5, 9), (3,)))
    assert mediation.shift.change == 0 and mediation.evil_mass.change == 0
    assert mediation.n_changed == 0 and mediation.cumulative == ()
    assert set(mediation.shares.model_dump().values()) == {None}
    assert set(mediation.layers) == {None}


def test_a_down_proj_adapter_enters_by_the_errors(subject: Subject, mediation) -> None:
    if subject.name != "lifelike":
        pytest.skip("the organism's adapter is on attention")
    base, merged = states(subject)
    change = merged.errors(subject.pair.merged) - base.errors(subject.pair.base)
    assert change[:2].abs().max() == 0 and change[2].abs().max() > 0
    assert min(f.layer for f in mediation.features) == 3
    assert mediation.shares.errors > abs(mediation.shares.features)
