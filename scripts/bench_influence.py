"""Benchmark of influence, pruning and storage beside circuit-tracer's.

Features are spread evenly over 16 layers and positions 1 to 19 of 20 tokens, with 10 logits. Both
sides run in this process on the same edges. Ours is given packed edges, upstream its dense matrix.

    python scripts/bench_influence.py --out results/bench_influence.json
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_node_influence, prune_graph
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig
from measure import Row, benchmark, extra_megabytes, timed
from subjects import PAD_THAI, organism_settings
from synthetic import Size, synthetic_graph
from torch import Tensor

from em_circuits.cli.options import Options
from em_circuits.graphs import AttributionSettings, build_pair_graphs, export_pt
from em_circuits.graphs.edges import Edges, row_mass
from em_circuits.graphs.files import read_graph, read_logit_rows, write_graph
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.influence import Method, Targets, influence, prune
from em_circuits.models import ModelPair
from pivotal_tokens.schema import Prompt

N_LAYERS, N_POS, N_LOGITS = 16, 20, 10
MAIN = 8192


class Plan(Options):
    """What to measure."""

    sizes: tuple[int, ...] = (1500, MAIN, 20_000)
    """Features of a graph; repeatable."""
    repeats: int = 7
    """Of each timing."""
    seed: int = 0
    """Of the synthetic graphs."""
    graphs: tuple[Path, ...] = ()
    """Stored graphs to report; repeatable."""


LEAST_RATIO = {1500: (1.0, 1.0), MAIN: (8.0, 6.0), 20_000: (10.0, 10.0)}
"""Features -> least ratio of total_effect and of signed_influence."""


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for n_features in plan.sizes:
        size = Size(n_features, N_LAYERS, N_POS, N_LOGITS)
        graph = synthetic_graph(size, seed=plan.seed)
        upstream = upstream_graph(graph)
        rows += _influence(graph, upstream, plan)
        if n_features == MAIN:
            rows += _exactness(graph, upstream)
            rows += _pruning(graph, upstream, plan)
            rows += _storage(graph, upstream, plan, "float32", 1 / 4)
            rounded = synthetic_graph(size, seed=plan.seed, bfloat16=True)
            upstream.adjacency_matrix = rounded.require_edges().to_dense()
            rows += _storage(rounded, upstream, plan, "bfloat16-exact", 1 / 8)
    rows += [
        row for graph in _organism() for row in _sizes(graph, f"organism, {graph.header.model}")
    ]
    return rows + [row for path in plan.graphs for row in _sizes(read_graph(path), path.name)]


def _organism() -> tuple[AttributionGraph, AttributionGraph]:
    """Both graphs of the embedded organism's pad-thai prompt."""
    with ModelPair.load(organism_settings()) as pair:
        return build_pair_graphs(
            pair, Prompt.of(PAD_THAI), AttributionSettings(edges="frozen")
        ).both


def _sizes(graph: AttributionGraph, name: str) -> list[Row]:
    """A real graph's file, which holds logits and gradient scores besides, beside
    circuit-tracer's."""
    layout = graph.layout
    of = f"({name}, {layout.n_features:,} features, {layout.n_pos} tokens)"
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = Path(directory) / "graph.pt", Path(directory) / "graph.safetensors"
        export_pt(graph, theirs)
        write_graph(ours, graph)
        sizes = [path.stat().st_size / 1e6 for path in (theirs, ours)]
    return [Row(f"file size {of}", *sizes, "MB")]


def upstream_graph(graph: AttributionGraph) -> Graph:
    """The same graph for circuit-tracer."""
    targets = graph.targets
    return Graph(
        input_string=graph.header.text,
        input_tokens=graph.input_ids,
        active_features=graph.active,
        adjacency_matrix=graph.require_edges().to_dense(),
        cfg=UnifiedConfig(N_LAYERS, 2048, 64, 32, 8192, 128_256, "t", "m", "LlamaForCausalLM"),
        selected_features=graph.selected,
        activation_values=graph.activations,
        logit_targets=[
            LogitTarget(text, i)
            for text, i in zip(targets.texts, targets.token_ids.tolist(), strict=True)
        ],
        logit_probabilities=targets.probabilities,
        scan="synthetic",
    )


def _seed(graph: AttributionGraph) -> Tensor:
    weights = torch.zeros(graph.layout.n_nodes)
    weights[graph.layout.logits] = graph.targets.probabilities
    return weights


def _influence(graph: AttributionGraph, upstream: Graph, plan: Plan) -> list[Row]:
    edges, targets, weights = graph.require_edges(), Targets.each(graph), _seed(graph)
    matrix, n = upstream.adjacency_matrix, graph.layout.n_features

    def signed_from_scratch() -> None:
        row_mass(edges.structure, edges.values, edges.logit_values)
        influence(graph, targets, Method.SIGNED)

    works: dict[str, Any] = {
        "upstream": lambda: compute_node_influence(matrix, weights),
        "total": lambda: influence(graph, targets, Method.TOTAL_EFFECT),
        "signed": lambda: influence(graph, targets, Method.SIGNED),
        "scratch": signed_from_scratch,
    }
    took = timed(works, repeats=plan.repeats)
    least_total, least_signed = LEAST_RATIO.get(n, (None, None))
    of = f"influence of 10 logits, {n:,} features"
    base = took["upstream"]
    rows = [
        Row(f"{of}: total_effect", base, took["total"], "ms", at_least=least_total),
        Row(f"{of}: signed_influence", base, took["signed"], "ms", at_least=least_signed),
        Row(
            f"{of}: signed_influence, row sums taken anew (the file keeps them)",
            base,
            took["scratch"],
            "ms",
            at_least=least_signed,
        ),
    ]
    if n == MAIN:
        extra = [extra_megabytes(works[name]) for name in ("upstream", "total", "signed")]
        for method, mine in zip(("total_effect", "signed_influence"), extra[1:], strict=True):
            rows.append(Row(f"{of}: {method}, memory", extra[0], mine, "MB", at_most=10.0))
    return rows


def _exactness(graph: AttributionGraph, upstream: Graph) -> list[Row]:
    """Against powers of the dense float64 matrix."""
    layout, targets, rows = graph.layout, Targets.each(graph), []
    dense = upstream.adjacency_matrix.double()
    for method in (Method.TOTAL_EFFECT, Method.SIGNED):
        scale = torch.zeros(layout.n_nodes, dtype=torch.float64)
        if method is Method.TOTAL_EFFECT:
            scale[layout.features] = 1 / graph.selected_activations.double()
            scale[layout.logits] = 1
        else:
            scale = 1 / dense.abs().sum(1).clamp(min=1e-300)
            scale[layout.errors], scale[layout.tokens] = 0, 0
        step = (targets.weights * scale[layout.logits]) @ dense[layout.logits]
        expected = torch.zeros_like(step)
        while step.any():
            expected += step
            step = (step * scale)[:, layout.features] @ dense[layout.features]
        found = influence(graph, targets, method).values
        difference = (found - expected)[:, layout.sources].abs().max()
        error = float(difference / expected.abs().max())
        rows.append(Row(f"{method}: error / largest value", None, error, "", at_most=1e-12))
    return rows


def _pruning(graph: AttributionGraph, upstream: Graph, plan: Plan) -> list[Row]:
    expected, found = prune_graph(upstream).node_mask, prune(graph)
    different = (expected != found.node_mask).nonzero()[:, 0].tolist()
    unexplained = set(different) - set(found.near_threshold.tolist())
    ours = timed({"ours": lambda: prune(graph)}, repeats=plan.repeats)["ours"]
    base = timed({"upstream": lambda: prune_graph(upstream)}, repeats=min(plan.repeats, 3))
    memory = extra_megabytes(lambda: prune_graph(upstream)), extra_megabytes(lambda: prune(graph))
    remaining = f"{int(found.node_mask.sum()):,} of {len(found.node_mask):,} nodes kept"
    return [
        Row(
            f"pruning, {MAIN:,} features ({remaining})", base["upstream"], ours, "ms", at_least=15.0
        ),
        Row("pruning: memory", memory[0], memory[1], "MB", at_most=150.0),
        Row(
            f"pruning: nodes that differ ({len(different)} near the threshold)",
            None,
            len(unexplained),
            "",
            at_most=0.0,
        ),
    ]


def _storage(
    graph: AttributionGraph, upstream: Graph, plan: Plan, kind: str, share: float
) -> list[Row]:
    targets, weights = Targets.each(graph), _seed(graph)
    with tempfile.TemporaryDirectory() as directory:
        theirs, ours = Path(directory) / "graph.pt", Path(directory) / "graph.safetensors"
        upstream.to_pt(str(theirs))
        write_graph(ours, graph)
        sizes = [path.stat().st_size / 1e6 for path in (theirs, ours)]

        def upstream_influence() -> None:
            compute_node_influence(Graph.from_pt(str(theirs)).adjacency_matrix, weights)

        took = timed(
            {
                "upstream rows": lambda: Graph.from_pt(str(theirs)).adjacency_matrix[-N_LOGITS:],
                "rows": lambda: read_logit_rows(ours),
                "upstream": upstream_influence,
                "total": lambda: influence(read_graph(ours), targets, Method.TOTAL_EFFECT),
                "signed": lambda: influence(read_graph(ours), targets, Method.SIGNED),
            },
            repeats=plan.repeats,
        )
        packing = timed({"pack": lambda: repacked(graph, upstream)}, repeats=3)["pack"]
    of = f"{kind}, {graph.layout.n_features:,} features"
    rows_ratio = took["upstream rows"], took["rows"]
    return [
        Row(f"file size, {of}", *sizes, "MB", at_least=1 / share),
        Row(f"logit rows from the file, {of}", *rows_ratio, "ms", at_most=1.0),
        Row(
            f"file to influence of 10 logits: total_effect, {of}",
            took["upstream"],
            took["total"],
            "ms",
            at_least=4.0,
        ),
        Row(
            f"file to influence of 10 logits: signed_influence, {of}",
            took["upstream"],
            took["signed"],
            "ms",
            at_least=4.0,
        ),
        Row(f"packing a dense matrix, once, {of}", None, packing, "ms"),
    ]


def repacked(graph: AttributionGraph, upstream: Graph) -> Edges:
    """The edges packed again from upstream's matrix."""
    chosen = graph.selected_features
    return Edges.from_dense(
        upstream.adjacency_matrix,
        graph.layout,
        chosen[:, 0].contiguous(),
        chosen[:, 1].contiguous(),
    )


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
