"""The parts of an edge sum to it, and each is what its carrier alone does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from subjects import Subject, in_float64
from tiny_families import RECIPES, tiny_model

from em_circuits.bases import Part, adapter_parts, neuron_parts, transcoder_parts
from em_circuits.graphs.edge_split import (
    EdgeSplit,
    measured_from,
    split_edge,
    split_row,
)
from em_circuits.graphs.held import Nodes, _Held, choose_nodes, full_edges, measured_edges
from em_circuits.models import Model
from em_circuits.models.sites import FeatureSites, Site
from em_circuits.target import Branch
from pivotal_tokens.errors import RequestError

BASES = {
    "transcoder": lambda s: transcoder_parts(s.pair.merged),
    "neuron": lambda s: neuron_parts(s.pair.merged),
    "transcoder+adapter": lambda s: (*transcoder_parts(s.pair.merged), *adapter_parts(s.pair)),
}
FAMILIES = ("qwen2", "qwen3", "gemma-2-window", "gemma-3", "gpt-2")
By = pytest.mark.parametrize("by", ["last", "first"])


def weights_of(subject: Subject) -> torch.Tensor:
    return subject.groups.weights(subject.pair.merged.hf.config.vocab_size)[None]


def nodes_of(subject: Subject, parts: tuple[Part, ...] | None = None, n: int = 40) -> Nodes:
    model = subject.pair.merged
    parts = parts or transcoder_parts(model)
    return choose_nodes(model, parts, subject.input_ids, weights_of(subject), n=n)


def bare(hf: Any, n_layers: int) -> Model:
    """A model without transcoders, whose neurons can be nodes."""
    model = object.__new__(Model)
    model.hf, model.sites = hf, FeatureSites((Site(hf, "input"),) * n_layers, ())
    model.fingerprint = "bare"
    return model


def _held(model: Model, nodes: Nodes, ids: torch.Tensor, amounts: torch.Tensor) -> _Held:
    """Rows of one prompt with nodes at some amounts; nothing is read at the end."""
    (branch,) = Branch.of(torch.zeros(1, model.hf.config.vocab_size))
    return _Held(model, nodes, ids, branch, amounts=amounts)


def late_targets(nodes: Nodes) -> tuple[int, int]:
    """The last node, and the contrast."""
    return len(nodes) - 1, len(nodes)


@By
@pytest.mark.parametrize("basis", list(BASES))
def test_the_parts_of_every_edge_into_a_target_sum_to_it(
    subject: Subject, basis: str, by: str
) -> None:
    """From nodes and tokens, to a node and to the contrast."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject, BASES[basis](subject))
    full = full_edges(model, nodes, ids, weights).values
    for target in late_targets(nodes):
        split = split_row(model, nodes, ids, weights, target=target, by=by)
        largest = full[target].abs().max()
        assert (split.values.sum(0) - full[target]).abs().max() <= 1e-5 * largest
        assert (split.edge - full[target]).abs().max() <= 1e-5 * largest
        carried = {c.kind for c, row in zip(split.carriers, split.values, strict=True) if row.any()}
        assert {"residual", "head", "mlp"} <= carried


@By
def test_the_split_of_one_edge_is_a_column_of_the_row(subject: Subject, by: str) -> None:
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject)
    for target in late_targets(nodes):
        row = split_row(model, nodes, ids, weights, target=target, by=by)
        for source in (3, len(nodes) + 2):
            one = split_edge(model, nodes, ids, weights, target=target, source=source, by=by)
            assert one.carriers == row.carriers
            difference = one.values[:, 0] - row.values[:, source]
            assert difference.abs().max() <= 1e-5 * row.values.abs().max()
            assert abs(float(one.edge[0] - row.edge[source])) <= 1e-5 * row.values.abs().max()


@By
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_split_exactly(family: str, by: str) -> None:
    """Norms behind attention and MLP, norms of queries and keys, sliding windows, soft caps; one
    matrix for queries, keys and values."""
    hf = tiny_model(RECIPES[family], seed=1)
    model = bare(hf, n_layers=RECIPES[family].n_layers)
    ids, weights = torch.arange(3, 14), torch.zeros(1, 1280)
    weights[0, 3], weights[0, 4] = 1, -1
    nodes = choose_nodes(model, neuron_parts(model), ids, weights, n=30)
    full = full_edges(model, nodes, ids, weights).values
    for target in (len(nodes) - 1, len(nodes)):
        split = split_row(model, nodes, ids, weights, target=target, by=by)
        size = torch.maximum(full[target].abs().max(), 1e-1 * split.values.abs().max())
        assert (split.values.sum(0) - full[target]).abs().max() <= 1e-5 * size
        assert split.of("head").any()


def test_other_attention_is_refused_in_one_line() -> None:
    hf = tiny_model(RECIPES["llama-tied"])
    del hf.model.layers[1].self_attn.q_proj
    model = bare(hf, n_layers=3)
    nodes = Nodes.of([], torch.zeros(0, 3, dtype=torch.int64), torch.zeros(0))
    with pytest.raises(RequestError, match="LlamaForCausalLM: edges split only where") as refused:
        split_row(model, nodes, torch.arange(3), torch.zeros(1, 1280), target=0)
    assert "\n" not in str(refused.value)


class Disturbed:
    """The held network run with one node's held value a little higher and a little lower."""

    def __init__(self, subject: Subject, nodes: Nodes, source: int, step: float = 0.02) -> None:
        self.subject, self.nodes = subject, nodes
        self.hf: Any = subject.pair.merged.hf
        amounts = nodes.activation.repeat(3, 1)
        amounts[1:, source] *= torch.tensor([1 + step, 1 - step])
        self.scale = 1 / (2 * step)
        self.seen: dict[tuple[int, str], torch.Tensor] = {}
        self.arguments: dict[int, Any] = {}
        with (
            torch.no_grad(),
            _held(subject.pair.merged, nodes, subject.input_ids, amounts) as held,
        ):
            handles = [handle for i in range(len(self.layers)) for handle in self._listen(i)]
            handles.append(
                self.hf.model.norm.register_forward_pre_hook(
                    lambda _m, args: self.seen.update({(-1, "stream"): args[0]})
                )
            )
            held.run()
            for handle in handles:
                handle.remove()

    @property
    def layers(self) -> Any:
        return self.hf.model.layers

    def _listen(self, i: int) -> Any:
        def keep(name: str) -> Any:
            return lambda _m, _args, output: self.seen.update({(i, name): output})

        layer = self.layers[i]
        for name in ("q_proj", "k_proj", "v_proj"):
            yield getattr(layer.self_attn, name).register_forward_hook(keep(name))
        yield layer.mlp.register_forward_hook(keep("mlp"))
        yield layer.self_attn.register_forward_pre_hook(
            lambda _m, args, kwargs: self.arguments.update({i: (args, kwargs)}), with_kwargs=True
        )

    def change(self, i: int, name: str) -> torch.Tensor:
        """Slope of an activation, per unit share of the source's activation."""
        seen = self.seen[i, name]
        return (seen[1] - seen[2]) * self.scale

    @torch.no_grad()
    def heads(self, i: int, moved: str) -> torch.Tensor:
        """Slope of the heads' outputs with queries, keys or values moved and the others not."""
        attention = self.layers[i].self_attn
        found: list[torch.Tensor] = []
        args, kwargs = self.arguments[i]

        def put(name: str) -> Any:
            rows = self.seen[i, name]
            return lambda _m, _args, _output: (
                rows if moved in (name, "all") else rows[:1].expand(rows.shape)
            )

        handles = [
            getattr(attention, name).register_forward_hook(put(name))
            for name in ("q_proj", "k_proj", "v_proj")
        ]
        handles.append(
            attention.o_proj.register_forward_pre_hook(lambda _m, args: found.append(args[0]))
        )
        attention(*args, **kwargs)
        for handle in handles:
            handle.remove()
        return (found[0][1] - found[0][2]) * self.scale


def read_vector(subject: Subject, nodes: Nodes, target: int, run: Disturbed) -> torch.Tensor:
    """How a node reads the residual stream at its position, its norm's scale constant."""
    model, part = subject.pair.merged, nodes.parts[int(nodes.part[target])]
    encoder = part.dictionary.W_enc[nodes.id[target]]  # type: ignore[attr-defined]
    if model.transcoders.feature_input_hook == "hook_resid_mid":
        return encoder
    norm = run.layers[part.layer].post_attention_layernorm
    seen: list[torch.Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with (
        torch.no_grad(),
        _held(model, nodes, subject.input_ids, nodes.activation[None]) as h,
    ):
        h.run()
    handle.remove()
    x = seen[0][0, nodes.position[target]]
    return encoder * norm.weight * (x.square().mean() + norm.variance_epsilon).rsqrt()


def strong_pair(subject: Subject, nodes: Nodes) -> tuple[int, int]:
    """(target, source) of a large edge between layers that are not neighbours."""
    edges = full_edges(subject.pair.merged, nodes, subject.input_ids, weights_of(subject)).values
    far = nodes.part[:, None] - nodes.part[None] >= 2
    n = len(nodes)
    best = int((edges[:n, :n].abs() * far).argmax())
    return best // n, best % n


def test_each_part_is_what_its_carrier_moves(subject: Subject) -> None:
    """By finite differences of real runs: one head's values, queries or keys moved alone."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject, n=60)
    target, source = strong_pair(subject, nodes)
    split = split_edge(model, nodes, ids, weights, target=target, source=source)
    run = Disturbed(subject, nodes, source)
    reads, position = read_vector(subject, nodes, target, run), nodes.position[target]
    largest = split.values.abs().max()
    checked = 0
    for carrier, value in split.largest():
        if carrier.kind == "mlp":
            assert carrier.layer is not None
            expected = reads @ run.change(carrier.layer, "mlp")[position]
            if carrier.layer == int(nodes.part[source]):
                continue
        elif carrier.kind == "head":
            assert carrier.layer is not None and carrier.head is not None
            moved = {"value": "v_proj", "query": "q_proj", "key": "k_proj"}[str(carrier.path)]
            heads = run.heads(carrier.layer, moved)[position]
            own = torch.zeros_like(heads)
            d = run.layers[0].self_attn.head_dim
            own[carrier.head * d : (carrier.head + 1) * d] = 1
            o_proj = run.layers[carrier.layer].self_attn.o_proj
            expected = reads @ (o_proj.weight @ (heads * own))
        else:
            continue
        checked += 1
        assert abs(float(expected) - value) <= 5e-3 * largest, str(carrier)
    assert checked >= 12


def test_norms_are_the_change_of_the_final_scale(subject: Subject) -> None:
    """Contrast: ``-(w g x) (x . dx) scale^3 / d`` with dx from finite differences."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject)
    edges = full_edges(model, nodes, ids, weights).to_targets[0, : len(nodes)]
    source = int(edges.abs().argmax())
    split = split_edge(model, nodes, ids, weights, target=len(nodes), source=source)
    run = Disturbed(subject, nodes, source)
    norm, stream = run.hf.model.norm, run.seen[-1, "stream"][:, -1]
    x, dx = stream[0], (stream[1] - stream[2]) * run.scale
    scale = (x.square().mean() + norm.variance_epsilon).rsqrt()
    reads = weights[0] @ run.hf.lm_head.weight * norm.weight
    expected = -(reads @ x) * (x @ dx) * scale**3 / len(x)
    found = split.of("norms")[0]
    assert abs(float(found - expected)) <= 5e-3 * split.values.abs().max()
    assert expected.abs() > 1e-3 * split.values.abs().max()


def test_features_that_read_before_the_norm_have_no_part_of_norms(subject: Subject) -> None:
    if subject.name != "lifelike":
        pytest.skip("the organism's features read behind a norm")
    nodes = nodes_of(subject)
    split = split_row(
        subject.pair.merged, nodes, subject.input_ids, weights_of(subject), target=len(nodes) - 1
    )
    assert split.of("norms").abs().max() <= 1e-5 * split.values.abs().max()


def test_first_carriers_are_what_reads_the_source(subject: Subject) -> None:
    """By finite differences: what the source itself adds to one layer's queries, keys or values is
    added there, and the rest of the held network runs."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject, n=60)
    target, source = strong_pair(subject, nodes)
    split = split_edge(model, nodes, ids, weights, target=target, source=source, by="first")
    part, position = nodes.parts[int(nodes.part[source])], int(nodes.position[source])
    written = nodes.activation[source] * part.written(nodes.id[source][None])[0]
    layer = part.layer + 1
    block: Any = model.hf.model.layers[layer]  # type: ignore[union-attr]
    norm, seen = block.input_layernorm, []
    handle = norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0, position]))
    model.hf(input_ids=ids[None], use_cache=False)
    handle.remove()
    scale = (seen[0].square().mean() + norm.variance_epsilon).rsqrt()
    step = 0.02
    for name, path in (("v_proj", "value"), ("q_proj", "query"), ("k_proj", "key")):
        module = getattr(block.self_attn, name)
        added = module.weight @ (norm.weight * scale * written)
        with (
            torch.no_grad(),
            _held(model, nodes, ids, nodes.activation.repeat(2, 1)) as held,
        ):

            def push(
                _m: Any, _a: Any, out: torch.Tensor, added: torch.Tensor = added
            ) -> torch.Tensor:
                out = out.clone()
                out[0, position] += step * added
                out[1, position] -= step * added
                return out

            handle = module.register_forward_hook(push)
            held.run()
            handle.remove()
            live = held.live[int(nodes.part[target])]
        mine = target - nodes.of_part(int(nodes.part[target])).start
        expected = (live[0, mine] - live[1, mine]) / (2 * step)
        found = sum(
            value
            for carrier, value in split.largest()
            if (carrier.layer, carrier.path) == (layer, path)
        )
        assert abs(float(expected) - found) <= 5e-3 * split.values.abs().max(), path


def next_layer_edge(subject: Subject, nodes: Nodes) -> tuple[int, int]:
    """(target, source): layers are neighbours and positions differ, so only heads of the target's
    layer lie between."""
    edges = full_edges(subject.pair.merged, nodes, subject.input_ids, weights_of(subject)).values
    next_layer = nodes.part[:, None] - nodes.part[None] == 1
    apart = nodes.position[:, None] != nodes.position[None]
    n = len(nodes)
    best = int((edges[:n, :n].abs() * (next_layer & apart)).argmax())
    return best // n, best % n


def test_where_one_head_alone_can_carry_it_has_the_whole_edge(subject: Subject) -> None:
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject, n=150)
    target, source = next_layer_edge(subject, nodes)
    layer = nodes.parts[int(nodes.part[target])].layer
    attention: Any = model.hf.model.layers[layer].self_attn  # type: ignore[union-attr]
    whole = attention.o_proj.weight.data
    alone, d = 1, attention.head_dim
    try:
        attention.o_proj.weight.data = torch.zeros_like(whole)
        attention.o_proj.weight.data[:, alone * d : (alone + 1) * d] = whole[
            :, alone * d : (alone + 1) * d
        ]
        split = split_edge(model, nodes, ids, weights, target=target, source=source)
    finally:
        attention.o_proj.weight.data = whole
    heads = split.of("head", layer, alone) + split.of("norms")
    assert split.edge.abs() > 0
    assert (heads - split.edge).abs() <= 1e-5 * split.values.abs().max()
    assert {(c.layer, c.head) for c, _ in split.largest() if c.kind == "head"} == {(layer, alone)}


def test_without_queries_patterns_carry_nothing(subject: Subject) -> None:
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    blocks: Any = model.hf.model.layers  # type: ignore[union-attr]
    before = [block.self_attn.q_proj.weight.data for block in blocks]
    try:
        for block, weight in zip(blocks, before, strict=True):
            block.self_attn.q_proj.weight.data = torch.zeros_like(weight)
        nodes = nodes_of(subject)
        split = split_row(model, nodes, ids, weights, target=len(nodes))
    finally:
        for block, weight in zip(blocks, before, strict=True):
            block.self_attn.q_proj.weight.data = weight
    paths: dict[str, torch.Tensor] = {
        "value": torch.zeros(1),
        "query": torch.zeros(1),
        "key": torch.zeros(1),
    }
    for carrier, row in zip(split.carriers, split.values, strict=True):
        if carrier.path is not None:
            paths[carrier.path] = paths[carrier.path] + row.abs()
    assert not paths["query"].any() and not paths["key"].any() and paths["value"].any()


def test_holding_one_pattern_takes_its_part_from_the_edge(subject: Subject) -> None:
    """Between neighbouring layers: the edge of a run in which a head keeps its undisturbed pattern
    is less by that head's queries and keys."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject, n=150)
    target, source = next_layer_edge(subject, nodes)
    layer = nodes.parts[int(nodes.part[target])].layer
    split = split_edge(model, nodes, ids, weights, target=target, source=source)
    pattern = [(value, c.head) for c, value in split.largest() if c.path in ("query", "key")]
    head = pattern[0][1]
    taken = sum(value for value, h in pattern if h == head)
    run = Disturbed(subject, nodes, source)
    reads, position = read_vector(subject, nodes, target, run), nodes.position[target]
    o_proj, d = run.layers[layer].self_attn.o_proj, run.layers[layer].self_attn.head_dim
    moved = run.heads(layer, "all")[position]
    kept = run.heads(layer, "v_proj")[position]  # every head's pattern kept
    mine = slice(head * d, (head + 1) * d)
    with_pattern, without = (reads @ (o_proj.weight[:, mine] @ z[mine]) for z in (moved, kept))
    assert abs(float(with_pattern - without) - taken) <= 5e-3 * split.values.abs().max()


def test_measured_edges_are_one_by_one_patching_of_neurons(subject: Subject) -> None:
    """A plain loop: neurons' activations are overwritten, one forward pass per removed neuron."""
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    with in_float64(model):
        nodes = nodes_of(subject, neuron_parts(model), n=30)
        found = measured_edges(model, nodes, ids, weights, rows=7).values

        def patched(removed: int | None) -> torch.Tensor:
            seen, handles = torch.zeros(len(nodes), dtype=torch.float64), []
            for i, part in enumerate(nodes.parts):

                def overwrite(_m: Any, args: Any, mine: Any = nodes.part == i) -> Any:
                    x, at = args[0].clone(), (nodes.position[mine], nodes.id[mine])
                    seen[mine] = x[0][at]
                    held = nodes.activation.double().clone()
                    if removed is not None:
                        held[removed] = 0
                    x[0][at] = held[mine]
                    return (x,)

                handles.append(part.read.module.register_forward_pre_hook(overwrite))
            with torch.no_grad():
                logits = model.hf(input_ids=ids[None], use_cache=False).logits[0, -1]
            for handle in handles:
                handle.remove()
            return torch.cat([seen, weights.double() @ logits])

        whole = patched(None)
        for source in range(len(nodes)):
            difference = (found[:, source] - (whole - patched(source))).abs()
            later = nodes.part > nodes.part[source]
            largest = found.abs().max()
            assert not later.any() or difference[:-1][later].max() <= 1e-6 * largest
            assert difference[-1] <= 1e-6 * whole[-1].abs() + 1e-6 * largest  # logits are float32


def test_one_measured_column_is_that_of_all(subject: Subject) -> None:
    model, ids, weights = subject.pair.merged, subject.input_ids, weights_of(subject)
    nodes = nodes_of(subject)
    every = measured_edges(model, nodes, ids, weights).values
    for source in (0, 17):
        one = measured_from(model, nodes, ids, weights, source=source)
        later = torch.cat([nodes.part > nodes.part[source], torch.tensor([True])])
        assert (one - every[:, source])[later].abs().max() <= 1e-5 * every.abs().max()


def test_a_split_names_its_parts_largest_first(subject: Subject) -> None:
    nodes = nodes_of(subject)
    split = split_edge(
        subject.pair.merged,
        nodes,
        subject.input_ids,
        weights_of(subject),
        target=len(nodes),
        source=3,
    )
    assert isinstance(split, EdgeSplit)
    sizes = [abs(value) for _, value in split.largest()]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0
    names = [str(carrier) for carrier, _ in split.largest()]
    assert len(set(names)) == len(names) and "norms" in names
