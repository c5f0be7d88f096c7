"""Benchmark of attribution beside circuit-tracer's, on a model of random weights, on one thread.

8 layers of width 512 and ReLU transcoders whose thresholds leave about 13,000 features active.
Both sides run in this process on the same model, from the token ids to the finished graph, set-up
and forward pass included; upstream with batches of 256, which selects what ours selects.

A pair is measured in processes of their own: base alone, merged alone, both. What counts is the
peak of resident memory above that after the imports, models and transcoders included.

    python scripts/bench_attribution.py --out results/bench_attribution.json
"""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from circuit_tracer.attribution.attribute import attribute
from circuit_tracer.attribution.targets import AttributionTargets
from lifelike import PROMPT, Lifelike, Shape, make_lifelike
from measure import Peak, Row, alone, benchmark, timed
from safetensors.torch import load_file, save_file

from em_circuits.cli.options import Options
from em_circuits.graphs import AttributionSettings, Edges, build_pair_graphs
from em_circuits.graphs.attribution import Attributed, attribute_prompt
from em_circuits.graphs.gradient import demeaned_targets, feature_scores, mlp_output_gradients
from em_circuits.models import Model, ModelPair, PairSettings, encode
from em_circuits.models.family import Decoder
from em_circuits.models.pair import load_causal_lm, load_tokenizer
from em_circuits.models.sharing import merge_adapter
from em_circuits.models.sites import FeatureSites
from em_circuits.models.source import locate_all
from em_circuits.models.transcoders import load_transcoders
from pivotal_tokens.schema import Prompt

SHAPE = Shape(n_layers=8, d_model=512, d_mlp=1376, d_transcoder=4096, lora_std=0.01)
ACTIVE = 13_000
TEXT = PROMPT + " wait, check,"
UPDATE_ROWS, UPSTREAM_BATCH, N_TARGETS = 1024, 256, 10


class Plan(Options):
    """What to measure."""

    repeats: int = 3
    """Of each timing."""
    features: int = 2048
    """Feature nodes that are selected."""


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        settings = lifelike_pair(make_lifelike(root, shape=SHAPE))
        with ModelPair.load(settings) as pair:
            ids = torch.tensor(encode(pair.tokenizer, TEXT))
            set_thresholds(pair.base, Path(settings.transcoders), ids, ACTIVE // SHAPE.n_layers)
        with ModelPair.load(settings) as pair:
            rows = _one_prompt(pair, plan)
        return rows + _pair(root, plan)


def lifelike_pair(paths: Lifelike, **options: Any) -> PairSettings:
    """Random weights in float32, transcoders on disk."""
    parts = {name: str(getattr(paths, name)) for name in ("base", "adapter", "transcoders")}
    return PairSettings(**parts, dtype="float32", transcoders_on="disk", **options)


def set_thresholds(model: Model, folder: Path, ids: torch.Tensor, active: int) -> None:
    """Rewrite every encoder's bias so that so many features of its layer are active."""
    inputs: dict[int, torch.Tensor] = {}
    with model.sites.hooked(read=lambda layer, x: inputs.update({layer: x[0].float()})):
        model.next_logits(ids)
    for layer, x in inputs.items():
        path = folder / f"layer_{layer}.safetensors"
        tensors = load_file(path)
        above = (x[1:] @ tensors["W_enc"].float().T).flatten().sort(descending=True).values
        tensors["b_enc"] = torch.full_like(tensors["b_enc"], -float(above[active]))
        save_file(tensors, path)


def _one_prompt(pair: ModelPair, plan: Plan) -> list[Row]:
    model, ids = pair.base, torch.tensor(encode(pair.tokenizer, TEXT))
    tokens = torch.arange(N_TARGETS)

    def upstream(features: int = plan.features) -> Any:
        return attribute(
            ids,
            model.replacement,
            attribution_targets=tokens,
            batch_size=UPSTREAM_BATCH,
            update_interval=UPDATE_ROWS // UPSTREAM_BATCH,
            max_feature_nodes=features,
        )

    def ours() -> Attributed:
        return _attribute(model, ids, tokens, plan)

    context = model.replacement.setup_attribution(ids)
    active = context.activation_matrix.indices().T
    weights = demeaned_targets(torch.arange(20), context.logits.shape[-1])

    def gradient() -> torch.Tensor:
        gradients = mlp_output_gradients(model, ids, weights)
        return feature_scores(gradients, active, context.decoder_vecs)

    upstream(16)  # warm; a whole run of upstream's would only cost time
    fast = {"ours": ours, "gradient": gradient}
    theirs, took = [], {name: [0.0] for name in fast}
    expected = None
    peaks: dict[str, float] = {}
    for _ in range(plan.repeats):
        for name, milliseconds in timed(fast, repeats=1).items():
            took[name].append(milliseconds)
        start = time.perf_counter()
        with Peak() as peak:
            expected = upstream()
        theirs.append(1000 * (time.perf_counter() - start))
        peaks["upstream"] = peak.megabytes
    with Peak() as peak:
        found = ours()
    base = statistics.median(theirs)
    mine, scores = (statistics.median(values[1:]) for values in took.values())
    dense, packed = expected.adjacency_matrix, found.edges.to_dense()
    differ = len(set(expected.selected_features.tolist()) ^ set(found.selected.tolist()))
    error = float((packed - dense).abs().max() / dense.abs().max()) if not differ else 1.0
    of = f"{len(active):,} active, {len(found.selected):,} features, {len(ids)} tokens"
    return [
        Row(f"attribution ({of})", base, mine, "ms", at_least=8.0),
        Row("attribution: memory", peaks["upstream"], peak.megabytes, "MB"),
        Row("attribution: selected features that differ", None, differ, "", at_most=0.0),
        Row("attribution: edges, difference / largest", None, error, "", at_most=1e-6),
        Row("gradient of all active features, 20 targets", base, scores, "ms", at_least=4.0),
    ]


def _attribute(
    model: Model, ids: torch.Tensor, tokens: torch.Tensor, plan: Plan, *, scores: bool = False
) -> Attributed:
    context = model.replacement.setup_attribution(ids)
    targets = AttributionTargets(
        attribution_targets=tokens,
        logits=context.logits[0, -1],
        unembed_proj=model.replacement.unembed_proj,
        tokenizer=model.tokenizer,
    )
    settings = AttributionSettings(
        edges="frozen", max_feature_nodes=plan.features, update_rows=UPDATE_ROWS
    )
    found = attribute_prompt(model.replacement, context, ids, targets, settings)
    if scores:
        weights = demeaned_targets(tokens, context.logits.shape[-1])
        active = context.activation_matrix.indices().T
        gradients = mlp_output_gradients(model, ids, weights)
        feature_scores(gradients, active, context.decoder_vecs)
    return found


def _pair(root: Path, plan: Plan) -> list[Row]:
    sums: dict[str, list[float]] = {"mb": [], "s": []}
    pairs: dict[str, list[float]] = {"mb": [], "s": []}
    differ = 0
    for _ in range(plan.repeats):
        both = alone(child, root, plan, "both", [])
        singles = [alone(child, root, plan, name, both["tokens"]) for name in ("base", "merged")]
        digests = [digest for one in singles for digest in one["edges"]]
        differ += sum(one != mine for one, mine in zip(digests, both["edges"], strict=True))
        for unit in ("mb", "s"):
            pairs[unit].append(both[unit])
            sums[unit].append(sum(one[unit] for one in singles))
    of = "base + merged in one process beside the sum of two single runs"
    memory, seconds = (
        [statistics.median(measured[unit]) for measured in (sums, pairs)] for unit in ("mb", "s")
    )
    return [
        Row(f"{of}: memory", *memory, "MB", at_least=1 / 0.6),
        Row(f"{of}: CPU seconds after imports", *seconds, "s"),
        Row("graphs that differ from those of single runs", None, differ, "", at_most=0.0),
    ]


def child(root: Path, plan: Plan, which: str, tokens: list[int]) -> dict[str, Any]:
    """What one process of the pair's measurement took."""
    torch.set_num_threads(1)
    names = [f"lifelike-{part}" for part in ("1b", "adapter", "transcoders")]
    settings = lifelike_pair(Lifelike(*(root / name for name in names)))
    start = time.process_time()
    with Peak() as peak:
        if which == "both":
            edges, tokens = _both(settings, plan)
        else:
            model = single(settings, which)
            ids = torch.tensor(encode(model.tokenizer, TEXT))
            # with gradient scores, as a graph of the pair has them
            found = _attribute(model, ids, torch.tensor(tokens), plan, scores=True)
            edges = [found.edges]
    seconds = time.process_time() - start
    record = {"mb": peak.megabytes, "s": seconds, "tokens": tokens}
    return record | {"edges": [_digest(e) for e in edges]}


def _both(settings: PairSettings, plan: Plan) -> tuple[list[Edges], list[int]]:
    asked = AttributionSettings(
        edges="frozen",
        max_feature_nodes=plan.features,
        update_rows=UPDATE_ROWS,
        top_k=N_TARGETS,
    )
    with ModelPair.load(settings) as pair:
        graphs = build_pair_graphs(pair, Prompt.of(TEXT), asked)
    edges = [graph.require_edges() for graph in graphs.both]
    return edges, graphs.base.targets.token_ids.tolist()


def single(settings: PairSettings, which: str) -> Model:
    """One model alone, nothing loaded that it does not need."""
    sources = locate_all(settings)
    device, dtype = settings.resolved_device(), settings.resolved_dtype()
    hf = load_causal_lm("--base", sources["base"], device=device, dtype=dtype)
    if which == "merged":
        hf = merge_adapter(hf, sources["adapter"].path)
    files = sources["transcoders"].transcoders
    assert files is not None
    transcoders = load_transcoders(files, device=device, dtype=dtype, place=settings.transcoders_on)
    hooks = transcoders.feature_input_hook, transcoders.feature_output_hook
    tokenizer = load_tokenizer("--base", sources["base"])
    sites = FeatureSites.of(Decoder.of(hf), *hooks)
    return Model(which, hf, "", tokenizer, transcoders, settings, sites)


def _digest(edges: Edges) -> str:
    parts = (edges.values, edges.logit_values, edges.row_mass)
    return hashlib.sha256(b"".join(p.float().numpy().tobytes() for p in parts)).hexdigest()


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
