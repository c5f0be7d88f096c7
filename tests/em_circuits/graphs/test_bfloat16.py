"""The fixture that is like the real models, in the precision the real models run in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from subjects import Subject, lifelike_subject

from em_circuits.graphs import AttributionSettings, build_pair_graphs
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
    checks = check_pair(subject.pair, subject.input_ids)
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
