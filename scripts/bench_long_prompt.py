"""Benchmark of a prompt of thousands of tokens, from token ids to every node's influence.

A small Llama of random weights (16 layers, 4 heads) and 3,223 random tokens: with 8,192 feature
nodes that is a graph of some 63,000 nodes, whose dense matrix would take 16 GB. Memory is what a
process of its own takes beside the model, as `--max-memory` counts it, and the process as a whole.

    python scripts/bench_long_prompt.py --out results/bench_long_prompt.json
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench_attribution import lifelike_pair, set_thresholds, single
from circuit_tracer.attribution.targets import AttributionTargets
from lifelike import Shape, make_lifelike
from measure import Peak, Row, alone, benchmark, resident
from synthetic import graph_around

from em_circuits.cli.options import Options
from em_circuits.graphs import AttributionSettings
from em_circuits.graphs.attribution import attribute_prompt
from em_circuits.graphs.files import read_graph, write_graph
from em_circuits.graphs.gradient import demeaned_targets, gradient_scores
from em_circuits.graphs.memory import FrozenMemory
from em_circuits.influence import Method, Targets, influence
from em_circuits.models import Model, PairSettings

N_TARGETS, UPDATE_ROWS = 10, 1024
MOST_MEGABYTES = 24_000


class Plan(Options):
    """How long a prompt, of how large a model, with how many active and selected features."""

    n_pos: int = 3223
    n_layers: int = 16
    d_model: int = 32
    n_heads: int = 4
    active: int = 200_000
    features: int = 8192
    batch_size: int = 128
    threads: int = 1


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    with tempfile.TemporaryDirectory() as directory:
        found = alone(child, Path(directory), plan)
    of = f"{plan.n_pos:,} tokens, {plan.n_layers} layers, N = {found['nodes']:,}"
    dense = 4 * found["nodes"] ** 2 / 1e6
    return [
        Row(
            f"attribution ({of}): the process",
            None,
            found["whole_mb"],
            "MB",
            at_most=MOST_MEGABYTES,
        ),
        Row("attribution: memory beside the model", None, found["mb"], "MB"),
        Row("the same, by the formula of --max-memory", None, found["reckoned_mb"], "MB"),
        Row(f"attribution ({found['active']:,} active)", None, found["s"], "s"),
        Row(
            "gradient of all active features, 10 targets: memory", None, found["gradient_mb"], "MB"
        ),
        Row("gradient of all active features, 10 targets", None, found["gradient_s"], "s"),
        Row("file, beside the dense matrix", dense, found["file_mb"], "MB"),
        Row("influence of 10 logits from the file: memory", None, found["influence_mb"], "MB"),
        Row("influence of 10 logits from the file", None, found["influence_s"], "s"),
    ]


def child(root: Path, plan: Plan) -> dict[str, float]:
    """What the process of the measurement took."""
    torch.set_num_threads(plan.threads)
    settings, ids = _prepare(root, plan)
    took: dict[str, float] = {}
    model = single(settings, "base")
    model.replacement.eval()  # builds it
    before = resident("VmRSS") / 1000
    with Peak() as peak:
        start = time.perf_counter()
        context, found = _attribute(model, ids, plan)
        took["s"] = time.perf_counter() - start
    took |= {"mb": peak.megabytes, "whole_mb": before + peak.megabytes}
    active = context.activation_matrix.indices().T.contiguous()
    sizes = {
        "n_active": len(active),
        "n_layers": plan.n_layers,
        "n_pos": plan.n_pos,
        "d_model": plan.d_model,
    }
    need = FrozenMemory(**sizes, n_heads=plan.n_heads, max_feature_nodes=plan.features)
    took["reckoned_mb"] = (need.fixed_bytes + plan.batch_size * need.row_bytes) / 1e6
    start = time.perf_counter()
    with Peak() as peak:
        rows = demeaned_targets(torch.arange(N_TARGETS), context.logits.shape[-1])
        scores = gradient_scores(model, ids, rows, active, context.decoder_vecs)
    took |= {"gradient_s": time.perf_counter() - start, "gradient_mb": peak.megabytes}
    values = context.activation_matrix.values().float()
    graph = graph_around(found, active, values, ids, gradient=scores)
    file = root / "graph.safetensors"
    write_graph(file, graph)
    took |= {"nodes": graph.layout.n_nodes, "active": len(active)}
    took["file_mb"] = file.stat().st_size / 1e6
    del graph, found, context, model
    start = time.perf_counter()
    with Peak() as peak:
        graph = read_graph(file)
        influence(graph, Targets.each(graph), Method.TOTAL_EFFECT)
    took |= {"influence_s": time.perf_counter() - start, "influence_mb": peak.megabytes}
    return took


def _prepare(root: Path, plan: Plan) -> tuple[PairSettings, torch.Tensor]:
    shape = Shape(
        n_layers=plan.n_layers,
        d_model=plan.d_model,
        d_mlp=2 * plan.d_model,
        d_transcoder=8 * plan.d_model,
        n_heads=plan.n_heads,
        n_positions=plan.n_pos,
    )
    paths = make_lifelike(root, shape=shape)
    settings = lifelike_pair(paths, max_context=plan.n_pos)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 400, (plan.n_pos,), generator=generator)
    set_thresholds(single(settings, "base"), paths.transcoders, ids, plan.active // plan.n_layers)
    return settings, ids


def _attribute(model: Model, ids: torch.Tensor, plan: Plan) -> tuple[Any, Any]:
    context = model.replacement.setup_attribution(ids)
    context.logits = context.logits[:, -1:].clone()
    targets = AttributionTargets(
        attribution_targets=torch.arange(N_TARGETS),
        logits=context.logits[0, -1],
        unembed_proj=model.replacement.unembed_proj,
        tokenizer=model.tokenizer,
    )
    settings = AttributionSettings(
        edges="frozen",
        max_feature_nodes=plan.features,
        update_rows=UPDATE_ROWS,
        batch_size=plan.batch_size,
    )

    def tell(_step: str, done: int, total: int) -> None:
        if done == total or done % (8 * plan.batch_size) == 0:
            print(f"{done} of {total} rows", file=sys.stderr, flush=True)

    return context, attribute_prompt(
        model.replacement, context, ids, targets, settings, progress=tell
    )


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
