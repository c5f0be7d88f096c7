"""Graphs in the precision the real models run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from subjects import Subject, in_float64, lifelike_subject, organism_subject

from em_circuits.bases import adapter_parts, neuron_parts, transcoder_parts
from em_circuits.graphs import AttributionSettings, build_pair_graphs
from em_circuits.graphs.gradient import demeaned_targets
from em_circuits.graphs.held import choose_nodes, full_edges, gradient_effects
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import mediate
from em_circuits.models.health import check_pair
from pivotal_tokens.schema import Prompt


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    made = lifelike_subject(tmp_path_factory.mktemp("bfloat16"), dtype="bfloat16")
    with made.pair:
        yield made


def test_the_pair_is_healthy(subject: Subject) -> None:
    checks = list(check_pair(subject.pair, subject.input_ids))
    assert [check.name for check in checks if not check.ok] == []


def test_graphs_hold_their_own_logits_and_finite_scores(subject: Subject) -> None:
    prompt = Prompt.of("bfloat16", token_ids=tuple(subject.input_ids.tolist()))
    context = subject.pair.merged.replacement.setup_attribution(subject.input_ids)
    limit = int(0.4 * context.activation_matrix._nnz())
    graphs = build_pair_graphs(
        subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=limit)
    )
    own = context.logits[0, -1].float()
    assert torch.equal(graphs.merged.targets.logits, own[graphs.merged.targets.token_ids])
    for graph in graphs.both:
        assert graph.truncated and graph.header.dtype == "bfloat16"
        result = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT)
        assert result.values.isfinite().all() and graph.gradient.isfinite().all()
        assert ((result.coverage > 0) & (result.coverage < 1)).all()


def test_errors_carry_the_shift_of_a_down_proj_adapter(subject: Subject) -> None:
    shares = mediate(subject.pair, subject.input_ids, subject.groups).shares
    assert shares.errors > 0.5 > shares.features


BASES = {
    "transcoder": lambda s: transcoder_parts(s.pair.merged),
    "neuron": lambda s: neuron_parts(s.pair.merged),
    "adapter": lambda s: adapter_parts(s.pair),
    "neuron+adapter": lambda s: (*neuron_parts(s.pair.merged), *adapter_parts(s.pair)),
}


@pytest.fixture(scope="module", params=["lifelike", "organism", "organism-down-proj"])
def short(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    """Every subject, in bfloat16."""
    if request.param == "lifelike":
        made = lifelike_subject(tmp_path_factory.mktemp("short"), dtype="bfloat16")
    else:
        made = organism_subject(request.param, dtype="bfloat16")
    with made.pair:
        yield made


@pytest.mark.parametrize("basis", list(BASES))
def test_total_effect_over_full_edges_is_the_gradient_within_its_own_noise(
    short: Subject, basis: str
) -> None:
    """The noise is how far the gradient is from the same weights' in float64, at most, over many
    nodes and targets: a single one's may happen to be small."""
    model, ids = short.pair.merged, short.input_ids
    d_vocab = model.hf.config.vocab_size
    words = [*short.groups.evil, *short.groups.safe]
    weights = torch.cat(
        [short.groups.weights(d_vocab)[None], demeaned_targets(torch.tensor(words), d_vocab)]
    )
    parts = BASES[basis](short)
    nodes = choose_nodes(model, parts, ids, weights, n=200)
    found = gradient_effects(model, nodes, ids, weights).double()
    with in_float64(model):
        exact = gradient_effects(model, nodes, ids, weights.double()).double()
    largest = exact.abs().amax(1, keepdim=True)
    noise = ((found - exact).abs() / largest).max()
    assert 1e-4 < noise < 0.1  # as bfloat16 is, and not as float32
    for n in (7, 60):
        nodes = choose_nodes(model, parts, ids, weights, n=n)
        gradient = gradient_effects(model, nodes, ids, weights).double()
        total = full_edges(model, nodes, ids, weights).total_effect()[:, : len(nodes)]
        assert ((total - gradient).abs() / largest).max() <= 2 * noise
