"""Scores against exact interventions on a real small model, on four tasks: neurons, MLPs, heads.

em-circuits organism fetch smollm2
python scripts/score_table.py [--prompts 2] [--skip 0] [--nodes 40]

*Neurons*: of each prompt those of the largest first-order effect are really ablated one by one, and
every score of the same neurons is compared with that. *MLP sites* (an MLP's output at a position)
and *heads* (at all positions) are really set to what they hold on a prompt that asks the opposite,
every one of them; scores of paths are asked of the largest sites, heads at one position, as nodes
of a graph with full edges. Tasks: indirect object, subject-verb agreement, induction, and facts
that the model knows.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from em_circuits import load_pair
from em_circuits.activation_cache import ActivationCache
from em_circuits.cli.output import table
from em_circuits.contrast import Contrast
from em_circuits.experiments.validate import live_contrasts
from em_circuits.graphs import attribute
from em_circuits.graphs.held import NodeEdges, full_edges
from em_circuits.influence import Method, influence
from em_circuits.influence.methods import mass_scale
from em_circuits.influence.propagate import propagate
from em_circuits.interventions.attribution_patching import SitePatch
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models import Model
from em_circuits.models.text import first_token
from em_circuits.statistics import agreement, mean_agreement


class Task(NamedTuple):
    """One prompt."""

    text: str
    right: str
    wrong: str
    other: str
    """As many tokens, and the wrong word is right."""


TASKS: dict[str, tuple[Task, ...]] = {
    "indirect object": tuple(
        Task(text.format(b), f" {a}", f" {b}", text.format(a))
        for text, a, b in (
            ("When Mary and John went to the store, {} gave a drink to", "Mary", "John"),
            ("After Tom and Anna had lunch, {} handed the book to", "Tom", "Anna"),
            ("While Paul and Sarah were working, {} passed a note to", "Paul", "Sarah"),
            ("When Kate and James left the office, {} sent a letter to", "Kate", "James"),
        )
    ),
    "agreement": tuple(
        Task(f"The {noun} {rest}", right, wrong, f"The {other} {rest}")
        for noun, other, rest, right, wrong in (
            ("keys", "key", "to the cabinet", " are", " is"),
            ("author", "authors", "of the books", " is", " are"),
            ("pictures", "picture", "near the window", " are", " is"),
            ("teacher", "teachers", "behind the students", " is", " are"),
        )
    ),
    "induction": tuple(
        Task(f"{a} {b} {c} {d} {a} {b} {c}", f" {d}", f" {b}", f"{a} {d} {c} {b} {a} {d} {c}")
        for a, b, c, d in (
            ("river", "stone", "cloud", "lamp"),
            ("garden", "piano", "silver", "horse"),
            ("paper", "tiger", "window", "salt"),
            ("bread", "engine", "flower", "coin"),
        )
    ),
    "facts": tuple(
        Task(f"The capital of {one} is the city of", f" {right}", f" {wrong}", other)
        for one, right, wrong, other in (
            ("France", "Paris", "London", "The capital of England is the city of"),
            ("Japan", "Tokyo", "Paris", "The capital of France is the city of"),
            ("Italy", "Rome", "Madrid", "The capital of Spain is the city of"),
            ("Germany", "Berlin", "Moscow", "The capital of Russia is the city of"),
        )
    ),
}
MEASURED = (20, 100)
"""Sites of the largest bound that are really patched to mend the gradient."""

Scored = dict[str, tuple[Tensor, Tensor]]
"""Score -> its values, and the measured effects of the same nodes."""


def neuron_scores(model: Model, text: str, words: Contrast, n: int) -> Scored:
    """Of the n neurons of the largest gradient."""
    graph = attribute(model, text, words, edges="full", nodes=n)
    features = graph.selected_features
    state = ActivationCache.capture(model, graph.input_ids)
    assert graph.gradient is not None
    weights = words.over(graph.targets.token_ids).float()
    measured = ablation_effects(model, state, targets=words, features=features)[:, 0]
    found = {
        "gradient": weights @ graph.gradient[:, graph.selected],
        "gradient+measured": live_contrasts(model, state, words, features),
    }
    for method in (Method.TOTAL_EFFECT, Method.SIGNED, Method.DIRECT):
        found[str(method)] = influence(graph, words, method).values[0, : len(features)].float()
    return {name: (values, measured) for name, values in found.items()}


def site_scores(patch: SitePatch, n: int) -> Scored:
    """Of every MLP site, or head at all positions; over paths, of the n largest at a position."""
    first, bound, every = patch.gradient(), patch.bound(), patch.differs
    if patch.kind == "mlp":
        measured, gradient, bound = patch.each()[every], first[every], bound[every]
    else:  # at positions where nothing differs there is nothing to patch
        measured, gradient, bound = (
            patch.units().flatten(),
            first.sum(1).flatten(),
            bound.sum(1).flatten(),
        )
    chosen = torch.zeros_like(every)
    chosen.view(-1)[first.abs().flatten().topk(n).indices] = True
    alone = patch.alone(chosen)
    edges = full_edges(patch.model, patch.nodes(chosen), patch.input_ids, patch.weights[None])
    found = {
        "gradient": (gradient, measured),
        **{
            f"gradient+{count} measured": (mended(gradient, measured, bound, count), measured)
            for count in MEASURED
        },
        "gradient, of the largest": (first[chosen], alone),
        "total_effect": (edges.total_effect()[0, : int(chosen.sum())], alone),
        "signed_influence": (signed_influence(edges), alone),
        "direct": (edges.to_targets[0, : int(chosen.sum())], alone),
    }
    return {name: (values.float(), real.float()) for name, (values, real) in found.items()}


def mended(gradient: Tensor, measured: Tensor, bound: Tensor, n: int) -> Tensor:
    """The gradient, measured where it could matter most."""
    largest = bound.topk(min(n, len(bound))).indices
    found = gradient.double().clone()
    found[largest] = measured[largest]
    return found


def signed_influence(edges: NodeEdges) -> Tensor:
    """Of the nodes on the contrast, as `influence` computes it of a graph's edges."""
    packed = edges.packed()
    seed = torch.ones((1, 1), dtype=torch.float64)
    return propagate(packed, seed, mass_scale(packed)).values[0, packed.layout.features]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=2, help="of each task")
    parser.add_argument("--skip", type=int, default=0, help="prompts of each task before these")
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--organism", default="smollm2")
    given = parser.parse_args()
    began = time.process_time()
    each: dict[tuple[str, str, str], list] = defaultdict(list)
    apart: dict[str, float] = defaultdict(float)
    counts: dict[str, list[int]] = defaultdict(list)
    known = []
    with load_pair(organism=given.organism, transcoders="none") as pair:
        model = pair.base
        for task, prompts in TASKS.items():
            for text, right, wrong, other in prompts[given.skip :][: given.prompts]:
                ids = [first_token(pair.tokenizer, word)[0] for word in (right, wrong)]
                words = Contrast((ids[0],), (ids[1],))
                asked, opposite = (pair.input_ids(pair.prompt(one)) for one in (text, other))
                values = [words.value(model.next_logits(one)) for one in (asked, opposite)]
                known.append((task, text, *map(float, values)))  # type: ignore[arg-type]
                kinds: dict[str, Scored] = {
                    "neuron": neuron_scores(model, text, words, given.nodes)
                }
                for kind in ("mlp", "head"):
                    patch = SitePatch.between(model, asked, opposite, words, kind=kind)  # type: ignore[arg-type]
                    kinds[kind] = site_scores(patch, given.nodes)
                for kind, found in kinds.items():
                    first = "gradient" if kind == "neuron" else "gradient, of the largest"
                    total, slope = found["total_effect"][0], found[first][0]
                    gap = float((total - slope).abs().max() / slope.abs().max())
                    apart[kind] = max(apart[kind], gap)
                    counts[kind].append(len(found["gradient"][0]))
                    for name, (predicted, real) in found.items():
                        each[kind, name, task].append(agreement(predicted, real))
                print(f"{time.process_time() - began:6.0f} s  {task}: {text}", flush=True)
    header = ("task", "prompt", "right minus wrong, logits", "on the opposite")
    print("\n" + table(header, known))
    rows = []
    for kind, name in dict.fromkeys((kind, name) for kind, name, _ in each):
        means = [mean_agreement(each[kind, name, task]) for task in TASKS]
        rows.append((kind, name, *(f"{m.pearson:.2f}/{m.spearman:.2f}" for m in means)))
    print("\n" + table(("nodes", "score, Pearson/Spearman", *TASKS), rows) + "\n")
    for kind in counts:
        n = counts[kind]
        print(f"{kind}: {min(n)} to {max(n)} a prompt; total_effect is the gradient to ", end="")
        print(f"{apart[kind]:.0e} of the largest")


if __name__ == "__main__":
    main()
