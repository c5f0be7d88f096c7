"""Graphs hold the logits they were made from, over the same targets, with upstream's edges."""

from __future__ import annotations

import pytest
import torch
from circuit_tracer import attribute
from subjects import Subject

from em_circuits.graphs import (
    AttributionSettings,
    PairGraphs,
    attribution,
    build_pair_graphs,
    generate,
    pair_graph_key,
)
from em_circuits.graphs.builder import EdgesBuilder
from em_circuits.graphs.linear_rows import LinearRows
from em_circuits.models.next_tokens import union_of_top
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Prompt

TRUNCATED = 0.4
"""Share of the active features that the truncated graphs keep."""


FROZEN = AttributionSettings(edges="frozen")


@pytest.fixture(scope="module")
def prompt(subject: Subject) -> Prompt:
    text = subject.pair.tokenizer.decode(subject.input_ids[1:])
    return Prompt.of(text, token_ids=tuple(subject.input_ids.tolist()))


@pytest.fixture(scope="module", params=["all", "truncated"])
def graphs(request: pytest.FixtureRequest, subject: Subject, prompt: Prompt) -> PairGraphs:
    limit = None
    if request.param == "truncated":
        context = subject.pair.merged.replacement.setup_attribution(subject.input_ids)
        limit = int(TRUNCATED * context.activation_matrix._nnz())
    return build_pair_graphs(
        subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=limit)
    )


def test_both_graphs_share_their_targets(graphs: PairGraphs) -> None:
    base, merged = (set(g.targets.token_ids.tolist()) for g in graphs.both)
    assert base == merged == set(graphs.next_tokens.token_ids)


def test_targets_are_the_union_of_both_models_top_ten(subject: Subject, graphs: PairGraphs) -> None:
    real = [model.next_logits(subject.input_ids) for model in subject.pair.models]
    assert graphs.base.targets.token_ids.tolist() == union_of_top(*real, 10).tolist()


def test_stored_logits_are_the_graphs_own_bit_for_bit(subject: Subject, graphs: PairGraphs) -> None:
    for model, graph in zip(subject.pair.models, graphs.both, strict=True):
        own = model.replacement.setup_attribution(subject.input_ids).logits[0, -1].float()
        ids = graph.targets.token_ids
        assert torch.equal(graph.targets.logits, own[ids])
        assert torch.equal(graph.targets.probabilities, own.softmax(-1)[ids])
        tokens = getattr(graphs.next_tokens, model.name).by_id
        for token, logit, p, rank in zip(
            ids.tolist(),
            graph.targets.logits.tolist(),
            graph.targets.probabilities.tolist(),
            graph.targets.ranks.tolist(),
            strict=True,
        ):
            stored = tokens[token]
            assert (stored.logit, stored.probability, stored.rank) == (logit, p, rank)


def test_edges_are_upstreams(subject: Subject, graphs: PairGraphs) -> None:
    for model, graph in zip(subject.pair.models, graphs.both, strict=True):
        upstream = attribute(
            subject.input_ids,
            model.replacement,
            attribution_targets=graph.targets.token_ids,
            max_feature_nodes=graph.header.selection.max_feature_nodes,
            batch_size=256,
        )
        assert torch.equal(graph.selected, upstream.selected_features)
        assert torch.equal(graph.active, upstream.active_features)
        largest = upstream.adjacency_matrix.abs().max()
        difference = (graph.edges.to_dense() - upstream.adjacency_matrix).abs().max()
        assert difference <= 1e-6 * largest


def test_the_batch_size_does_not_change_a_truncated_graph(subject: Subject, prompt: Prompt) -> None:
    """circuit-tracer ranks anew every few batches, so its selection depends on their size."""

    def build(batch_size: int) -> PairGraphs:
        settings = AttributionSettings(
            edges="frozen", max_feature_nodes=400, batch_size=batch_size, update_rows=256
        )
        return build_pair_graphs(subject.pair, prompt, settings)

    for left, right in zip(build(100).both, build(16).both, strict=True):
        assert torch.equal(left.selected, right.selected)
        largest = left.edges.to_dense().abs().max()
        difference = (left.edges.to_dense() - right.edges.to_dense()).abs().max()
        assert difference <= 1e-6 * largest


def test_what_the_fast_way_does_not_fit_goes_upstreams_way(
    subject: Subject, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another context class, as another circuit-tracer may have, is not guessed at."""
    settings = AttributionSettings(edges="frozen", max_feature_nodes=100)
    fast = build_pair_graphs(subject.pair, prompt, settings)
    calls = []

    def upstream(*args: object) -> object:
        calls.append(args)
        return via_upstream(*args)

    via_upstream = attribution.via_upstream
    monkeypatch.setattr(attribution, "via_upstream", upstream)
    known = "circuit_tracer.attribution.context_transformerlens.AttributionContext"
    monkeypatch.setattr(known, int)
    slow = build_pair_graphs(subject.pair, prompt, settings)
    assert len(calls) == 2
    for left, right in zip(fast.both, slow.both, strict=True):
        assert torch.equal(left.selected, right.selected)
        assert left.header.extra == right.header.extra
        largest = right.edges.to_dense().abs().max()
        assert (left.edges.to_dense() - right.edges.to_dense()).abs().max() <= 1e-6 * largest
        most = right.edges.outside_mass.max()
        assert (left.edges.outside_mass - right.edges.outside_mass).abs().max() <= 1e-5 * most


def test_a_cross_layer_transcoder_goes_upstreams_way(subject: Subject) -> None:
    replacement = subject.model.replacement
    context = replacement.setup_attribution(subject.input_ids)
    assert LinearRows.of(replacement, context, subject.input_ids) is not None
    assert LinearRows.of(object(), context, subject.input_ids) is None
    context.encoder_to_decoder_map = context.encoder_to_decoder_map.flip(0)
    assert LinearRows.of(replacement, context, subject.input_ids) is None


def test_rows_are_upstreams_at_every_layer_and_position(subject: Subject) -> None:
    replacement = subject.model.replacement
    context = replacement.setup_attribution(subject.input_ids)
    rows = LinearRows.of(replacement, context, subject.input_ids)
    assert rows is not None
    replacement.run_forward_pass(subject.input_ids, 32, context)
    chosen = torch.arange(0, rows.layout.n_features, max(1, rows.layout.n_features // 100))
    largest, worst = 0.0, 0.0
    for batch in rows.groups(chosen, 32):
        expected = context.compute_batch(
            layers=rows.layers[batch],
            positions=rows.positions[batch],
            inject_values=context.encoder_vecs[batch],
        )
        largest = max(largest, float(expected.abs().max()))
        worst = max(worst, float((rows.features(batch) - expected).abs().max()))
    assert worst <= 1e-6 * largest


def test_an_interrupted_attribution_leaves_nothing_behind(subject: Subject, prompt: Prompt) -> None:
    settings = AttributionSettings(
        edges="frozen", max_feature_nodes=300, update_rows=256, batch_size=16
    )
    steps: list[tuple[str, int, int]] = []
    before = build_pair_graphs(
        subject.pair, prompt, settings, progress=lambda *step: steps.append(step)
    )
    ends = [i for i, (_, done, total) in enumerate(steps) if done == total == 300]
    assert len(ends) == 2 and ends[-1] == len(steps) - 1
    assert steps[0][0] == "attribution" and steps[0][1] <= 16

    def stop(_step: str, done: int, _total: int) -> None:
        if done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_pair_graphs(subject.pair, prompt, settings, progress=stop)
    after = build_pair_graphs(subject.pair, prompt, settings)
    for left, right in zip(before.both, after.both, strict=True):
        assert torch.equal(left.selected, right.selected)
        assert torch.equal(left.edges.values, right.edges.values)


def test_edges_that_overflow_name_the_models_precision(
    subject: Subject, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: EdgesBuilder, selected: torch.Tensor) -> None:
        for piece in (one for pieces in self._pieces for one in pieces):
            for segment in piece.segments:
                segment.values.fill_(torch.inf)
        real(self, selected)

    real = EdgesBuilder.build
    monkeypatch.setattr(EdgesBuilder, "build", broken)
    with pytest.raises(WorkFailed, match=r"first .* computed in float32; em-circuits doctor"):
        build_pair_graphs(
            subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=10)
        )


def test_a_memory_budget_changes_no_graph(subject: Subject, prompt: Prompt) -> None:
    settings = AttributionSettings(edges="frozen", max_feature_nodes=300)
    whole = build_pair_graphs(subject.pair, prompt, settings)
    tight = settings.model_copy(update={"max_memory": 30_000_000})
    for left, right in zip(
        whole.both, build_pair_graphs(subject.pair, prompt, tight).both, strict=True
    ):
        assert left.header.key == right.header.key
        assert torch.equal(left.selected, right.selected)
    with pytest.raises(RequestError, match=r"--max-memory 0\.00 GB is too little"):
        build_pair_graphs(subject.pair, prompt, settings.model_copy(update={"max_memory": 1000}))


def test_logit_rows_are_demeaned(subject: Subject, graphs: PairGraphs) -> None:
    """Every source's edges to z_t - mean(z): adding a constant to all logits changes nothing."""
    model, graph = subject.pair.merged, graphs.merged
    context = model.replacement.setup_attribution(subject.input_ids)
    last = context.error_vectors[-1, -1]
    scale = _final_scale(model, subject.input_ids)
    unembed = model.replacement.unembed_proj
    unembed = unembed if unembed.shape[0] == len(last) else unembed.T
    direct = (last * model.replacement.ln_final.w / scale) @ unembed
    expected = (direct - direct.mean())[graph.targets.token_ids]
    error = graph.layout.error_index(model.sites.n_layers - 1, len(subject.input_ids) - 1)
    found = graph.edges.logit_rows()[:, error]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)


def _final_scale(model, input_ids: torch.Tensor) -> torch.Tensor:
    kept = []
    hook = model.hf.model.norm.register_forward_pre_hook(lambda _m, args: kept.append(args[0]))
    model.next_logits(input_ids)
    hook.remove()
    return (kept[0][0, -1].pow(2).mean() + model.hf.config.rms_norm_eps).sqrt()


def test_outside_mass_is_what_the_whole_graph_has_and_the_truncated_lacks(
    subject: Subject, prompt: Prompt, graphs: PairGraphs
) -> None:
    whole = build_pair_graphs(
        subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=None)
    )
    for full, graph in zip(whole.both, graphs.both, strict=True):
        rows = torch.cat([graph.selected, torch.arange(len(graph.targets)) + len(full.selected)])
        outside = full.edges.row_mass[rows] - graph.edges.row_mass
        assert torch.allclose(
            graph.edges.outside_mass, outside, atol=1e-5 * float(outside.max()) + 1e-9
        )
        if not graph.truncated:
            assert not graph.edges.outside_mass.any()
        else:
            assert graph.edges.outside_mass.max() > 0


def test_every_labelled_token_can_be_selected_for(subject: Subject, prompt: Prompt) -> None:
    """By contrast, evil paths of the base weigh as much as safe ones, however improbable."""
    first = build_pair_graphs(
        subject.pair, prompt, AttributionSettings(edges="frozen", max_feature_nodes=60)
    )
    ids = first.base.targets.token_ids.tolist()
    labels = {ids[0]: "safe", ids[-1]: "evil"}
    settings = AttributionSettings(edges="frozen", max_feature_nodes=60, select_by="contrast")
    built = build_pair_graphs(subject.pair, prompt, settings, labels=labels)
    assert built.base.targets.token_ids.tolist() == ids
    assert not torch.equal(built.base.selected, first.base.selected)
    weights = built.base.header.selection.weights
    assert [w for w in weights if w] == [1.0, 1.0]
    # the rows of the targets are the same rows, whatever weighed the selection
    both = torch.isin(built.base.selected, first.base.selected)
    mine = torch.isin(first.base.selected, built.base.selected)
    columns = built.base.edges.logit_rows()[:, : len(both)][:, both]
    expected = first.base.edges.logit_rows()[:, : len(mine)][:, mine]
    assert (columns - expected).abs().max() <= 1e-6 * expected.abs().max()
    with pytest.raises(RequestError, match="at least one evil and one safe"):
        build_pair_graphs(subject.pair, prompt, settings, labels={ids[0]: "safe"})


def test_a_key_says_which_attribution_made_the_graph(
    subject: Subject, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key() -> str:
        return pair_graph_key(subject.pair, subject.pair.base, prompt, AttributionSettings())

    before = key()
    monkeypatch.setattr(generate, "ATTRIBUTION_VERSION", generate.ATTRIBUTION_VERSION + 1)
    assert key() != before


def test_keys_change_with_what_changes_the_graph(subject: Subject, prompt: Prompt) -> None:
    def key(labels=None, edges: str = "frozen", **changes: object) -> str:
        settings = AttributionSettings.model_validate({"edges": edges, **changes})
        return pair_graph_key(subject.pair, subject.pair.base, prompt, settings, labels)

    keys = {
        key(),
        key(max_feature_nodes=100),
        key(top_k=5),
        key(select_by="contrast", labels={1: "evil"}),
        key(select_by="contrast", labels={1: "safe"}),
        pair_graph_key(subject.pair, subject.pair.merged, prompt, FROZEN),
        pair_graph_key(subject.pair, subject.pair.base, Prompt.of("other"), FROZEN),
        key(edges="full"),
        key(edges="measured"),
        key(edges="full", nodes=100),
        key(edges="full", mass=0.9),
        key(edges="full", choose_by="bound"),
        key(edges="full", basis=("transcoder", "adapter")),
    }
    assert len(keys) == 13
    assert key(update_rows=512) not in keys
    assert key(nodes=7, mass=0.5) == key()  # of full edges alone
    assert key(edges="full", update_rows=512) == key(edges="full")
    assert key(edges="full", nodes=100) == key(edges="full", max_feature_nodes=100)
    assert key(batch_size=7) == key(max_memory=10**9) == key() == key(labels={1: "evil"})


def test_a_prompt_longer_than_the_models_are_prepared_for_is_refused(subject: Subject) -> None:
    ids = tuple(subject.input_ids.tolist()) * 400
    with pytest.raises(RequestError, match="--max-context"):
        build_pair_graphs(subject.pair, Prompt.of("x", token_ids=ids), AttributionSettings())


def test_frozen_edges_take_no_named_nodes() -> None:
    with pytest.raises(RequestError, match="full edges"):
        AttributionSettings(edges="frozen", named=("0/1/2",))


def test_names_of_nodes_are_in_the_key_in_no_order() -> None:
    one = AttributionSettings(named=("0/1/2", "1/1/3")).parameters
    assert one == AttributionSettings(named=("1/1/3", "0/1/2"), nodes=7).parameters
    assert one != AttributionSettings(named=("0/1/2",)).parameters
