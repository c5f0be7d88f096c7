"""Benchmark of the memory that full edges take at Llama-3.2-1B's shape.

python scripts/bench_edges_memory.py --out results/bench_edges_memory.json

Random bfloat16 weights (16 layers, width 2,048, 32 heads over 8 of keys and values, MLPs of 8,192,
128,256 tokens, tied), 64 random tokens, neurons as nodes: all 8.4 million are active. A process of
its own observes the prompt, chooses 300 nodes among all of them and computes full edges; its peak
beside the weights is what `attribute` takes. The targets' rows come first and go through the whole
model, those of the last layers next, which are the largest batches of the deepest nodes; after
`--rows-measured` of them the peak no longer grows, and the rest, minutes on a CPU, is left out.
`--rows-measured 0` computes all of them.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from measure import Peak, Row, alone, benchmark, resident
from transformers import LlamaConfig, LlamaForCausalLM

from em_circuits.cli.options import Options
from em_circuits.graphs import AttributionSettings, attribute
from em_circuits.graphs import full as full_graphs
from em_circuits.graphs.held import Nodes
from em_circuits.graphs.memory import RowMemory
from em_circuits.models import Model, PairSettings
from em_circuits.models.family import Decoder
from em_circuits.models.neurons import neuron_sites
from pivotal_tokens.schema import Prompt

MOST_MEGABYTES = 4000


class Plan(Options):
    """How large a model, how long a prompt, how many nodes."""

    n_layers: int = 16
    d_model: int = 2048
    d_mlp: int = 8192
    n_heads: int = 32
    n_kv_heads: int = 8
    d_vocab: int = 128_256
    n_pos: int = 64
    nodes: int = 300
    batch_size: int = 128
    rows_measured: int = 100
    threads: int = 2


class Enough(Exception):
    """As many rows as were to be measured."""


class Words:
    """A tokenizer's part of this: random ids have no texts."""

    def decode(self, ids: Any, **_options: Any) -> str:
        return str(ids)


def measure(plan: Plan) -> list[Row]:
    """All rows of the table."""
    found = alone(child, plan)
    of = f"{plan.nodes} nodes, {plan.n_layers} layers of {plan.d_model}, {plan.n_pos} tokens"
    return [
        Row("weights, bfloat16", None, found["weights_mb"], "MB"),
        Row(
            f"full edges ({of}): memory beside the weights",
            None,
            found["mb"],
            "MB",
            at_most=MOST_MEGABYTES,
        ),
        Row("of it, before the first row", None, found["before_mb"], "MB"),
        Row("rows computed", None, found["rows"], ""),
        Row("rows of the largest batch", None, found["largest"], ""),
        Row("the rows' part, by the formula of --max-memory", None, found["reckoned_mb"], "MB"),
        Row("seconds", None, found["s"], "s"),
    ]


def child(plan: Plan) -> dict[str, float]:
    """What the process of the measurement took."""
    torch.set_num_threads(plan.threads)
    model = random_model(plan)
    ids = torch.randint(0, plan.d_vocab, (plan.n_pos,), generator=torch.Generator().manual_seed(1))
    took: dict[str, float] = {"rows": 0, "largest": 0, "weights_mb": resident("VmRSS") / 1000}
    real_edges = full_graphs.full_edges

    def edges(model: Model, nodes: Nodes, ids: Any, targets: Any, **more: Any) -> Any:
        took["before_mb"] = resident("VmHWM") / 1000 - started
        need = RowMemory.of(model, nodes, len(targets), len(ids))
        sizes = nodes.part.bincount().tolist()
        batch = min(plan.batch_size, max(sizes))
        took["reckoned_mb"] = (need.fixed_bytes + batch * need.row_bytes) / 1e6
        return real_edges(model, nodes, ids, targets, **more)

    def tell(_step: str, done: int, total: int) -> None:
        print(f"{done} of {total} rows", file=sys.stderr, flush=True)
        took["largest"] = max(took["largest"], done - took["rows"])
        took["rows"] = done
        if 0 < plan.rows_measured <= done:
            raise Enough

    full_graphs.full_edges = edges
    start = time.perf_counter()
    with Peak() as peak:
        started = resident("VmRSS") / 1000
        try:
            prompt = Prompt.of("random", token_ids=tuple(ids.tolist()))
            settings = AttributionSettings(nodes=plan.nodes, batch_size=plan.batch_size)
            attribute(model, prompt, settings=settings, progress=tell)
        except Enough:
            pass
    return took | {"mb": peak.megabytes, "s": time.perf_counter() - start}


def random_model(plan: Plan) -> Model:
    """A Llama of random weights, neurons as nodes; nothing is read from disk."""
    config = LlamaConfig(
        vocab_size=plan.d_vocab,
        hidden_size=plan.d_model,
        intermediate_size=plan.d_mlp,
        num_hidden_layers=plan.n_layers,
        num_attention_heads=plan.n_heads,
        num_key_value_heads=plan.n_kv_heads,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        hf = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    hf.config._attn_implementation = "eager"
    tokenizer: Any = Words()
    return Model(
        "base",
        hf,
        "random",
        tokenizer,
        None,
        PairSettings(base="random", adapter="none", transcoders="none", dtype="bfloat16"),
        neuron_sites(Decoder.of(hf)),
    )


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
