"""Benchmark of full edges beside frozen ones: agreement of scores and edges with real ablations.

python scripts/bench_edges.py --prompts 24 --out results/bench_edges.json
python scripts/bench_edges.py --organism toy-down-proj

Of each held-out prompt and model: agreement of a score on evil minus safe with really ablating each
feature, everything running free; over the nodes of a graph as it is built by default (512 of full
edges, all active features of frozen ones), and of full edges over all active features. Of the edges
among the nodes of one full graph: agreement with measured edges, each node removed for real while
the others are held. Means over prompts and models, with 95 % bootstrap intervals over prompts.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click
import torch
from pydantic import Field
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.bases import neuron_parts, transcoder_parts
from em_circuits.cli.options import Options, options
from em_circuits.cli.output import table
from em_circuits.contrast import Contrast
from em_circuits.graphs import AttributionGraph, AttributionSettings, attribute
from em_circuits.graphs.held import choose_nodes, full_edges, gradient_effects, measured_edges
from em_circuits.influence import Method, influence
from em_circuits.interventions import ablation_effects, live_scores
from em_circuits.labelling.sources import template_prompts
from em_circuits.models import Model, ModelPair
from em_circuits.models.next_tokens import screen
from em_circuits.models.text import first_token
from em_circuits.organisms import organism_paths
from em_circuits.scoring import Scoring
from em_circuits.statistics import agreement, paired_interval
from em_circuits.workspace import load_pair
from pivotal_tokens.artefacts import library_versions, write_json
from pivotal_tokens.judge import Lexicon
from pivotal_tokens.schema import Prompt

SCORES = (Method.DIRECT, Method.SIGNED, Method.TOTAL_EFFECT)
KINDS = ("frozen", "full", "full, all active features")
CURVED = 0.5
"""Part of the larger by which a full edge and the measured one differ where an edge is curved."""


class Plan(Options):
    """What is measured."""

    prompts: int = Field(default=24, ge=2)
    """Held-out prompts of the embedded organism."""
    nodes: int = Field(default=300, ge=1)
    """Nodes of the graphs with full and measured edges."""
    seed: int = 0


class Target(NamedTuple):
    """A figure's target, and in which direction it counts."""

    value: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.value:g}"

    def met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value


TARGETS = {
    "total_effect against the scan: spearman": Target(0.95),
    "signed_influence against the scan: spearman": Target(0.80),
    "signed_influence against the scan: pearson below the gradient's": Target(0.08, False),
    "gradient+ablation against the scan: pearson": Target(0.99),
    "edges against measured ones: spearman": Target(0.75),
    "edges against measured ones: pearson": Target(0.82),
    "edges against measured ones: sign": Target(0.87),
    "total_effect: equal sign of the 20 largest": Target(0.99),
    "identity, transcoder features: total_effect - gradient": Target(1e-5, False),
    "identity, neurons: total_effect - gradient": Target(1e-5, False),
    "measured edges, seconds a model": Target(1.5, False),
}


def figures(
    pair: ModelPair, model: Model, prompt: Prompt, words: Contrast, n: int
) -> Iterator[tuple[str, str, float]]:
    """(kind of edges, name, figure) of one prompt and model."""
    ids = model.input_ids(prompt)
    cache = ActivationCache.capture(model, ids)
    scan = ablation_effects(model, cache, targets=words)[:, 0]
    place = {tuple(row): i for i, row in enumerate(cache.active.tolist())}
    started = time.process_time()
    everything = AttributionSettings(edges="frozen", max_feature_nodes=None)
    frozen = attribute(model, prompt, words, everything)
    yield "frozen", f"graph, all active features or {n} nodes, seconds", _since(started)
    started = time.process_time()
    attribute(model, prompt, words, nodes=n)
    yield "full", f"graph, all active features or {n} nodes, seconds", _since(started)
    full = attribute(model, prompt, words)
    found = dict(_scores(full, words, scan, place))
    every = attribute(model, prompt, words, nodes=len(scan))
    for name, value in _scores(every, words, scan, place):
        yield "full, all active features", name, value
    for name, value in found.items():
        yield "full", name, value
    for name, value in _scores(frozen, words, scan, place):
        yield "frozen", name, value
    score = "against the scan: pearson"
    gap = found[f"total_effect {score}"] - found[f"signed_influence {score}"]
    yield "full", f"signed_influence {score} below the gradient's", gap
    live = live_scores(model, cache, words, Scoring.GRADIENT_ABLATION).contrasted(words)
    measured = agreement(torch.from_numpy(live["contrast"]), scan).pearson
    yield "full", f"gradient+ablation {score}", measured
    yield from _edges(model, prompt, words, frozen, n, ids)
    for name, parts in (
        ("transcoder features", transcoder_parts(model)),
        ("neurons", neuron_parts(model)),
    ):
        weights = words.weights(model.hf.config.vocab_size)[None]
        nodes = choose_nodes(model, parts, ids, weights, n=n)
        total = full_edges(model, nodes, ids, weights).total_effect()[0, : len(nodes)]
        gradient = gradient_effects(model, nodes, ids, weights)[0].double()
        worst = float((total - gradient).abs().max() / gradient.abs().max())
        yield "full", f"identity, {name}: total_effect - gradient", worst


def _scores(
    graph: AttributionGraph, words: Contrast, scan: Tensor, place: Mapping[tuple[int, ...], int]
) -> Iterator[tuple[str, float]]:
    rows = torch.tensor([place[tuple(row)] for row in graph.selected_features.tolist()])
    for method in SCORES:
        values = influence(graph, words, method).values[0, graph.layout.features]
        found = agreement(values, scan[rows])
        for statistic in ("pearson", "spearman"):
            yield f"{method} against the scan: {statistic}", getattr(found, statistic)
        if method is Method.TOTAL_EFFECT:
            largest = scan[rows].abs().topk(min(20, len(rows))).indices
            same = (values[largest].sign() == scan[rows][largest].sign()).double().mean()
            yield f"{method}: equal sign of the 20 largest", float(same)


def _edges(
    model: Model, prompt: Prompt, words: Contrast, frozen: AttributionGraph, n: int, ids: Tensor
) -> Iterator[tuple[str, str, float]]:
    """Edges among the nodes of one full graph, of both kinds, against measured ones."""
    graph = attribute(model, prompt, words, nodes=n, edges="measured")
    assert graph.measured is not None
    weights = words.weights(model.hf.config.vocab_size)[None]
    nodes = choose_nodes(model, transcoder_parts(model), ids, weights, n=n)
    started = time.process_time()
    measured_edges(model, nodes, ids, weights)
    yield "full", "measured edges, seconds a model", _since(started)
    own = graph.layout.features
    full, real = (e.to_dense()[own, own] for e in (graph.require_edges(), graph.measured))
    kept = {tuple(row): k for k, row in enumerate(frozen.selected_features.tolist())}
    mine = torch.tensor([kept[tuple(row)] for row in graph.selected_features.tolist()])
    rigid = frozen.require_edges().to_dense()[mine][:, mine]
    can = (real != 0) & (full != 0)
    for kind, values in (("full", full), ("frozen", rigid)):
        found = agreement(values[can], real[can])
        for statistic in ("pearson", "spearman", "sign"):
            yield kind, f"edges against measured ones: {statistic}", getattr(found, statistic)
        apart = (values[can] - real[can]).abs()
        larger = torch.maximum(values[can].abs(), real[can].abs())
        curved = apart > CURVED * larger
        share = float(larger[curved].sum() / larger.sum())
        yield kind, "edges more than half off: share of all edges' size", share


def _since(started: float) -> float:
    return time.process_time() - started


def subjects(pair: ModelPair, plan: Plan, lexicon: Path) -> Iterator[tuple[Prompt, Contrast]]:
    """Held-out prompts of the organism on which both sides have a token."""
    judge = Lexicon.from_file(lexicon, partial(first_token, pair.tokenizer))
    for prompt in template_prompts(plan.prompts, seed=plan.seed):
        tokens = screen(pair, pair.input_ids(prompt))
        words = Contrast.from_labels(judge.judge(prompt, tokens.base, tokens.merged).by_token)
        if words.is_defined:
            yield prompt, words


def summary(found: Mapping[tuple[str, str], Sequence[float]], n_models: int) -> list[dict]:
    """A row a figure: both kinds of edges, the interval of the full one, its target."""
    rows = []
    for name in dict.fromkeys(name for _, name in found):
        values = {kind: found.get((kind, name)) for kind in KINDS}
        worst = name.startswith("identity")
        mean = {
            kind: None if not v else (max(v) if worst else sum(v) / len(v))
            for kind, v in values.items()
        }
        low = high = None
        if values["full"] and not worst:
            by_prompt = torch.tensor(values["full"]).reshape(-1, n_models).mean(1)
            low, high = paired_interval(by_prompt)
        target = TARGETS.get(name)
        met = None if target is None or mean["full"] is None else target.met(mean["full"])
        rows.append(
            {
                "figure": name + (" (largest)" if worst else ""),
                "frozen": mean["frozen"],
                "full": mean["full"],
                "all": mean[KINDS[2]],
                "low": low,
                "high": high,
                "target": None
                if target is None
                else f"{'><'[not target.at_least]}= {target.value:g}",
                "": {True: "reached", False: "missed", None: ""}[met],
            }
        )
    return rows


@click.command(help=__doc__)
@options(Plan, into="plan")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the rows as JSON.")
def main(plan: Plan, out: Path | None) -> None:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    with load_pair(dtype="float32") as pair:
        n_prompts = 0
        for prompt, words in subjects(pair, plan, organism_paths().lexicon):
            n_prompts += 1
            for model in pair.models:
                for kind, name, value in figures(pair, model, prompt, words, plan.nodes):
                    found[kind, name].append(value)
        rows = summary(found, len(pair.models))
    print(f"{n_prompts} held-out prompts, both models, {plan.nodes} nodes\n")
    print(table(tuple(rows[0]), [tuple(row.values()) for row in rows]))
    if out is not None:
        write_json(out, {"versions": library_versions(), "prompts": n_prompts, "rows": rows})


if __name__ == "__main__":
    main()
