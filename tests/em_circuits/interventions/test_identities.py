"""The two exact identities between graphs and interventions, and the gates between them."""

import pytest
import torch
from circuit_tracer import attribute
from subjects import Subject

from em_circuits.contrast import demeaned
from em_circuits.graphs import AttributionSettings, build_pair_graphs
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import Intervention, Mode, Regime, ablation_effects, run_rows
from pivotal_tokens.schema import Prompt

SOME = 3
"""Every third feature of the whole graph is ablated."""


@pytest.fixture(scope="module")
def whole_graph(subject: Subject):
    """A circuit-tracer graph with every active feature selected, in float64."""
    targets = torch.tensor([*subject.groups.evil, *subject.groups.safe])
    graph = attribute(
        subject.input_ids,
        subject.model.replacement,
        attribution_targets=targets,
        max_feature_nodes=None,
    )
    n = len(graph.selected_features)
    features = graph.active_features[graph.selected_features]
    activations = graph.activation_values[graph.selected_features].double()
    matrix = graph.adjacency_matrix.double()
    return features, activations, matrix[:n, :n], matrix[-len(targets) :, :n], targets


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_direct_ablations_are_the_logit_rows_of_the_graph(subject: Subject, whole_graph) -> None:
    features, _, _, logit_rows, targets = whole_graph
    measured = ablation_effects(
        subject.model,
        subject.state(),
        features=features[::SOME],
        targets=targets,
        regime=Regime.DIRECT,
    )
    difference = (measured.T - logit_rows[:, ::SOME]).abs().max()
    assert difference <= 1e-5 * logit_rows.abs().max()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_frozen_linear_ablations_are_the_total_effect(subject: Subject, whole_graph) -> None:
    features, activations, edges, logit_rows, targets = whole_graph
    transfer = torch.eye(len(features)).double() - edges / activations[:, None]
    total = torch.linalg.solve(transfer.T, logit_rows.T).T
    measured = ablation_effects(
        subject.model,
        subject.state(),
        features=features[::SOME],
        targets=targets,
        regime=Regime.FROZEN_LINEAR,
    )
    assert (total - logit_rows).abs().max() > 0.01 * total.abs().max()
    assert (measured.T - total[:, ::SOME]).abs().max() <= 1e-5 * total.abs().max()


def test_recomputed_gates_agree_with_frozen_ones_for_small_changes(subject: Subject) -> None:
    state = subject.state()
    early = state.active[state.active[:, 0] == 0][:8].tolist()
    # So small that no JumpReLU gate of the organism jumps; ReLU never does, but rounding shows.
    step = 1e-4 if subject.name == "organism" else 1e-3
    rows: list = [[]] + [
        [Intervention(layer=a, position=b, feature=c, mode=Mode.SCALE, value=1 + step)]
        for a, b, c in early
    ]
    linear, gated = (
        demeaned(run_rows(subject.model, state, rows, regime))
        for regime in (Regime.FROZEN_LINEAR, Regime.GATES_RECOMPUTED)
    )
    scale = (linear[1:] - linear[0]).abs().max()
    assert torch.allclose(linear[1:] - linear[0], gated[1:] - gated[0], atol=0.1 * float(scale))


def test_recomputed_gates_switch_features_on_and_off(subject: Subject) -> None:
    state = subject.state()
    row = [
        Intervention(layer=0, position=pos, feature=f, mode=Mode.SCALE, value=-4.0)
        for _, pos, f in state.active[state.active[:, 0] == 0].tolist()
    ]
    linear, gated = (
        run_rows(subject.model, state, [row], regime)[0]
        for regime in (Regime.FROZEN_LINEAR, Regime.GATES_RECOMPUTED)
    )
    assert (linear - gated).abs().max() > 0.01


@pytest.mark.parametrize(
    ("method", "regime"),
    [(Method.DIRECT, Regime.DIRECT), (Method.TOTAL_EFFECT, Regime.FROZEN_LINEAR)],
)
def test_influence_of_a_stored_graph_is_what_ablations_measure(
    subject: Subject, method: Method, regime: Regime
) -> None:
    """The whole way: our graph, our kernel, on every target, against real interventions."""
    prompt = Prompt.of("identity", token_ids=tuple(subject.input_ids.tolist()))
    graph = build_pair_graphs(
        subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=None)
    ).merged
    values = influence(graph, Targets.each(graph), method).values[:, graph.layout.features]
    effects = ablation_effects(
        subject.model,
        subject.state(),
        targets=graph.targets.token_ids,
        features=graph.selected_features,
        regime=regime,
    )
    largest = values.abs().max()
    assert (values - effects.T.double()).abs().max() <= 1e-5 * largest
