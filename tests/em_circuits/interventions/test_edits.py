"""Forms of a change, units of a value, directions, and tensors of another model."""

from __future__ import annotations

import pytest
import torch
from subjects import Subject
from test_continuations import GREEDY, closeness, loudest

from em_circuits.interventions import (
    ActivationCache,
    Control,
    Direction,
    Intervention,
    Mode,
    Regime,
    Replacement,
    Tensors,
    Treatment,
    Unit,
    Weighting,
    Where,
    generate,
    on_each,
    own_activation,
    run_rows,
)
from em_circuits.interventions.edits import no_op_interventions, resolve_units
from em_circuits.interventions.feature_rows import decoder_vectors
from pivotal_tokens.errors import RequestError


def test_every_value_survives_json(subject: Subject) -> None:
    item = Intervention(layer=1, position=Where.LAST, feature=3, mode=Mode.SET, value=2.0)
    own = item.model_copy(update={"unit": Unit.RELATIVE, "position": None})
    whole = Treatment(
        interventions=(item, own), control=Control.RANDOM_DIRECTION, seed=4, regime=Regime.DIRECT
    )
    swap = Treatment(replacement=Replacement(layers=(1, 2), tensors=Tensors.MLP_OUTPUTS))
    direction = Direction.of(subject.model, [(0, 1), (1, 2)], [0.5, -2.0])
    for value in (item, own, whole, swap, direction):
        assert type(value).model_validate_json(value.model_dump_json()) == value
    everything = Intervention.model_validate({"layer": 1, "position": "everything", "feature": 3})
    assert everything.position is None


def test_own_units_multiply_the_undisturbed_activation(subject: Subject) -> None:
    state = subject.state()
    layer, position, feature = loudest(state, 1)[0]
    own = float(state.activation_of(torch.tensor([[layer, position, feature]])))
    item = Intervention(
        layer=layer,
        position=position,
        feature=feature,
        mode=Mode.SET,
        value=3.0,
        unit=Unit.RELATIVE,
    )
    assert resolve_units(state, [item])[0].value == pytest.approx(3 * own)
    tripled = item.model_copy(update={"mode": Mode.SCALE, "unit": Unit.ABSOLUTE})
    logits = run_rows(subject.model, state, [[item], [tripled]])
    assert torch.allclose(logits[0], logits[1], atol=closeness(subject))
    anywhere = item.model_copy(update={"position": None})
    assert own_activation(state, anywhere) >= own


def test_multiplying_cannot_wake_an_inactive_feature(subject: Subject) -> None:
    state = subject.state()
    quiet = int((state.dense_activations(1)[1:] == 0).all(0).nonzero()[0, 0])
    scale = Intervention(layer=1, feature=quiet, mode=Mode.SCALE, value=100.0)
    own = Intervention(layer=1, feature=quiet, mode=Mode.ADD, value=100.0, unit=Unit.RELATIVE)
    put = Intervention(layer=1, feature=quiet, mode=Mode.SET, value=3.0)
    logits = run_rows(subject.model, state, [[], [scale], [own], [put]])
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert not torch.equal(logits[0], logits[3])
    assert no_op_interventions(state, [scale, own, put]) == (scale, own)


def test_a_unit_with_a_factor_is_refused() -> None:
    with pytest.raises(RequestError, match="has no unit"):
        Intervention(layer=0, feature=0, mode=Mode.SCALE, value=2.0, unit=Unit.RELATIVE)


def test_controls_of_one_change(subject: Subject) -> None:
    state = subject.state()
    items = on_each([tuple(p) for p in loudest(state, 3)], Mode.ABLATE)
    written: dict[int, list[torch.Tensor]] = {}

    def keep(layer: int, output: torch.Tensor) -> None:
        written.setdefault(layer, []).append(output.clone())

    rows = [[], Treatment(interventions=items)] + [
        Treatment(interventions=items, control=control, seed=1)
        for control in (Control.NOOP, Control.SIGN_FLIP, Control.RANDOM_DIRECTION)
    ]
    logits = run_rows(subject.model, state, rows, share_prefix=False)
    assert torch.equal(logits[0], logits[2])  # the no-op, bit for bit
    layer = min(item.layer for item in items)
    # At the first layer that is changed all rows still have the same input.
    outputs = _outputs_of(subject, state, rows, layer)
    change = outputs - outputs[0]
    assert torch.allclose(change[1], -change[3], atol=1e-4)
    lengths = change.norm(dim=-1)
    assert torch.allclose(lengths[4], lengths[1], rtol=1e-3, atol=1e-3)
    loud = lengths[1] > 1e-3
    cosine = torch.cosine_similarity(change[1], change[4], dim=-1)[loud]
    assert (cosine.abs() < 0.6).all()


def _outputs_of(subject: Subject, state: ActivationCache, rows: list, layer: int) -> torch.Tensor:
    """MLP outputs of a layer as the next layer sees them."""
    seen: list[torch.Tensor] = []
    site = subject.model.sites.writes[layer].module
    from em_circuits.interventions.hooks import Hooks

    original = Hooks._write

    def spy(self: Hooks, at: int, output: torch.Tensor) -> torch.Tensor | None:
        result = original(self, at, output)
        if at == layer:
            seen.append(output if result is None else result)
        return result

    assert site is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Hooks, "_write", spy)
        run_rows(subject.model, state, rows, share_prefix=False)
    return seen[0]


def test_a_direction_adds_its_weighted_decoders(subject: Subject) -> None:
    state, model = subject.state(), subject.model
    features, differences = [(0, 3), (2, 5), (2, 9)], [0.5, -2.0, 1.0]
    plain = Direction.of(model, features, differences)
    assert plain.weights == (0.5, -2.0, 1.0)
    assert Direction.of(model, features, differences, Weighting.SIGN).weights == (1.0, -1.0, 1.0)
    unit = Direction.of(model, features, differences, Weighting.NORMALISED)
    assert unit.length(model) == pytest.approx(1.0, abs=1e-6)
    ratio = plain.length(model)
    assert unit.weights == pytest.approx([w / ratio for w in plain.weights])
    logits = run_rows(model, state, [plain.interventions(2.0), unit.interventions(2.0 * ratio)])
    assert torch.allclose(logits[0], logits[1], atol=closeness(subject))
    # The oracle: the vectors themselves, added by hand at every position but the first.
    layers, ids = torch.tensor(features).unbind(1)
    vectors = 2.0 * torch.tensor(differences)[:, None] * decoder_vectors(model, layers, ids)

    def by_hand(layer: int, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[:, 1:] += vectors[layers == layer].sum(0)
        return output

    with model.sites.hooked(write=by_hand):
        expected = model.next_logits(subject.input_ids)
    assert torch.allclose(logits[0], expected.float(), atol=closeness(subject))


@pytest.mark.parametrize(
    ("features", "differences", "named"),
    [
        ([(0, 1)], [1.0, 2.0], "2 differences"),
        ([(0, 1), (0, 1)], [1.0, 2.0], "twice"),
        ([(0, 1)], [float("nan")], "finite"),
        ([(0, 1)], [0.0], "cannot be normalised"),
    ],
)
def test_a_direction_that_means_nothing_is_refused(
    subject: Subject, features: list, differences: list, named: str
) -> None:
    with pytest.raises(RequestError, match=named):
        Direction.of(subject.model, features, differences, Weighting.NORMALISED)


@pytest.mark.parametrize("tensors", list(Tensors))
def test_replaced_tensors_are_right_with_the_cache(subject: Subject, tensors: Tensors) -> None:
    """Step by step with both caches = one pass over the whole text with the source's values."""
    base, merged = subject.pair.base, subject.pair.merged
    state = ActivationCache.capture(base, subject.input_ids)
    swap = Treatment(replacement=Replacement(layers=(2, 3), tensors=tensors))
    made = generate(base, state, [[], swap], GREEDY, source=merged, keep_logits=True)
    plain = generate(base, state, [[]], GREEDY, keep_logits=True)
    assert made.logits is not None and plain.logits is not None
    assert torch.allclose(made.logits[0], plain.logits[0], atol=closeness(subject))
    ids = subject.input_ids
    for step, token in enumerate(made.ids(1, 0)):
        whole = ActivationCache.capture(merged, ids)

        def put(layer: int, output: torch.Tensor, whole: ActivationCache = whole) -> torch.Tensor:
            return whole.mlp_outputs[layer][None] if layer in (2, 3) else output

        inputs: dict[int, torch.Tensor] = {}

        def features(
            layer: int,
            output: torch.Tensor,
            whole: ActivationCache = whole,
            inputs: dict[int, torch.Tensor] = inputs,
        ) -> torch.Tensor:
            if layer not in (2, 3):
                return output
            own = base.transcoders[layer].encode(inputs[layer])
            own[:, :1] = 0
            change = whole.dense_activations(layer) - own
            return output + change @ base.transcoders[layer].W_dec

        write = put if tensors is Tensors.MLP_OUTPUTS else features
        with base.sites.hooked(lambda i, x, inputs=inputs: inputs.update({i: x}), write):  # type: ignore[misc]
            expected = base.next_logits(ids).float()
        assert (made.logits[1, 0, step] - expected).abs().max() <= closeness(subject)
        ids = torch.cat([ids, torch.tensor([token])])


def test_all_mlp_outputs_of_the_same_model_change_nothing(subject: Subject) -> None:
    base, merged = subject.pair.base, subject.pair.merged
    state = ActivationCache.capture(merged, subject.input_ids)
    swap = Treatment(replacement=Replacement(layers=(0, 1, 2, 3), tensors=Tensors.MLP_OUTPUTS))
    with pytest.raises(RequestError, match="another model"):
        run_rows(merged, state, [swap], source=merged)
    with pytest.raises(RequestError, match="layer 9"):
        far = Treatment(replacement=Replacement(layers=(9,)))
        run_rows(merged, state, [far], source=base)
    with pytest.raises(RequestError, match="freezes MLP outputs"):
        Treatment(replacement=Replacement(layers=(1,)), regime=Regime.DIRECT)
    logits = run_rows(merged, state, [[], swap], source=base)
    assert (logits[0] - logits[1]).abs().max() > 0.01
