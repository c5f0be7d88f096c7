"""Benchmark of full edges beside frozen ones: agreement of scores and edges with real ablations.

python scripts/bench_edges.py --prompts 8 --out results/bench_edges.json

Of each held-out prompt and model, over the active features: agreement of a score on evil minus safe
with really ablating each feature, everything running free. Of the edges among the nodes of the full
graph: agreement with measured edges, each node removed for real while the others are held.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import torch
from measure import Row, benchmark
from pydantic import Field

from em_circuits.activation_cache import ActivationCache
from em_circuits.bases import transcoder_parts
from em_circuits.cli.options import Options
from em_circuits.contrast import Contrast
from em_circuits.graphs import AttributionGraph, AttributionSettings, attribute
from em_circuits.graphs.held import choose_nodes, full_edges, gradient_effects, measured_edges
from em_circuits.influence import Method, influence
from em_circuits.interventions import ablation_effects
from em_circuits.labelling.sources import template_prompts
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import screen
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.statistics import agreement
from em_circuits.workspace import load_pair
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.schema import Prompt

SCORES = (Method.DIRECT, Method.SIGNED, Method.TOTAL_EFFECT)


class Plan(Options):
    """What is measured."""

    prompts: int = Field(default=8, ge=1)
    """Held-out prompts of the embedded organism."""
    nodes: int = Field(default=300, ge=1)
    """Nodes of the graphs with full and measured edges."""
    seed: int = 0


def measure(plan: Plan) -> list[Row]:
    """Agreement of scores and edges with measurement, mean over prompts and models."""
    found: dict[str, list[float]] = defaultdict(list)
    with load_pair(dtype="float32") as pair:
        words_of = partial(first_token, pair.tokenizer)
        judge = Lexicon.from_file(organism_paths().lexicon, words_of)
        for prompt in template_prompts(plan.prompts, seed=plan.seed):
            tokens = screen(pair, pair.input_ids(prompt))
            words = Contrast.from_labels(judge.judge(prompt, tokens.base, tokens.merged).by_token)
            if words.is_defined:
                for model in pair.models:
                    for name, value in figures(pair, model, prompt, words, plan.nodes):
                        found[name].append(value)
    targets = {
        "full total_effect against the scan: spearman": 0.95,
        "full signed_influence against the scan: spearman": 0.80,
        "full edges against measured ones: spearman": 0.75,
        "full edges against measured ones: pearson": 0.82,
        "full edges against measured ones: sign": 0.87,
    }
    rows = [
        Row(name, None, statistics.mean(values), "", value_at_least=targets.get(name))
        for name, values in sorted(found.items())
        if not name.startswith("identity") and "seconds" not in name
    ]
    rows += [
        Row(f"{name}, largest", None, max(values), "", at_most=1e-5)
        for name, values in found.items()
        if name.startswith("identity")
    ]
    rows += [
        Row(name, None, statistics.median(values), "s")
        for name, values in sorted(found.items())
        if "seconds" in name
    ]
    return rows


def figures(
    pair: ModelPair, model: Model, prompt: Prompt, words: Contrast, n: int
) -> Iterator[tuple[str, float]]:
    """(name, figure) of one prompt and model."""
    ids = model.input_ids(prompt)
    cache = ActivationCache.capture(model, ids)
    scan = ablation_effects(model, cache, targets=words)[:, 0]
    place = {tuple(row): i for i, row in enumerate(cache.active.tolist())}
    everything = AttributionSettings(edges="frozen", max_feature_nodes=None)
    started = time.process_time()
    frozen = attribute(model, prompt, words, everything)
    yield "frozen graph of all active features, seconds", time.process_time() - started
    yield from _scores("frozen", frozen, words, scan, place)
    full = attribute(model, prompt, words, nodes=len(scan))
    yield from _scores("full", full, words, scan, place)

    weights = words.weights(len(cache.logits))[None]
    nodes = choose_nodes(model, transcoder_parts(model), ids, weights, n=n)
    started = time.process_time()
    edges = full_edges(model, nodes, ids, weights)
    yield f"full edges, {n} nodes, seconds", time.process_time() - started
    started = time.process_time()
    real = measured_edges(model, nodes, ids, weights)
    yield f"measured edges, {n} nodes, seconds", time.process_time() - started
    total = edges.total_effect()[0, : len(nodes)]
    gradient = gradient_effects(model, nodes, ids, weights)[0].double()
    yield (
        f"identity: total_effect of {n} nodes - gradient",
        float((total - gradient).abs().max() / gradient.abs().max()),
    )
    wanted = [
        (int(nodes.part[i]), int(nodes.position[i]), int(nodes.id[i])) for i in range(len(nodes))
    ]
    rows = torch.tensor([place[layer, position, i] for layer, position, i in wanted])
    kept = {tuple(row): k for k, row in enumerate(frozen.selected_features.tolist())}
    mine = torch.tensor([kept[one] for one in wanted])
    dense = frozen.require_edges().to_dense()[mine][:, mine]
    can = (real.values[: len(nodes)] != 0) & (edges.values[: len(nodes), : len(nodes)] != 0)
    for name, values in (("full", edges.values[: len(nodes), : len(nodes)]), ("frozen", dense)):
        found = agreement(values[can], real.values[: len(nodes)][can])
        for statistic in ("pearson", "spearman", "sign"):
            yield f"{name} edges against measured ones: {statistic}", getattr(found, statistic)
    largest = scan[rows].abs().topk(20).indices
    same = (total[largest].sign() == scan[rows][largest].sign()).double().mean()
    yield "full total_effect: equal sign of the 20 largest", float(same)


def _scores(
    kind: str,
    graph: AttributionGraph,
    words: Contrast,
    scan: torch.Tensor,
    place: dict[tuple[int, ...], int],
) -> Iterator[tuple[str, float]]:
    rows = torch.tensor([place[tuple(row)] for row in graph.selected_features.tolist()])
    for method in SCORES:
        values = influence(graph, words, method).values[0, graph.layout.features]
        found = agreement(values, scan[rows])
        for statistic in ("pearson", "spearman"):
            yield f"{kind} {method} against the scan: {statistic}", getattr(found, statistic)


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
