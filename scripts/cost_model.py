"""What a run costs at real size, reckoned: FLOPs counted on small models, scaled by formulae.

Counted, on the embedded organism and on another small model, by every product that torch makes:
a prompt's next tokens of both models; both its graphs with full edges, of two numbers of nodes; a
scan. Each is then said in forward passes of that model, F, and of all its encoders, E:

    F = 2 P T + 4 L d T^2        P weights without the embedding, T tokens, L layers of width d
    E = 2 L d D T                D features a layer
    prompt = a F      graphs = b F + e E + c N F      scan = s F a feature

    seconds = max(FLOPs / (peak * efficiency), bytes of weights read / bandwidth)

Peak, efficiency and prices are parameters: what comes out is reckoned, not measured.

python scripts/cost_model.py --gpu-dollars-hour 3
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import Row, benchmark
from subjects import Subject, lifelike_subject, organism_subject
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from em_circuits.cli.options import Options
from em_circuits.graphs.generate import build_pair_graphs
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.graphs.store import GraphStore
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models.text import prompt_text
from pivotal_tokens.schema import Prompt

FEW, MANY = 24, 96
"""Nodes of the two pairs of graphs, whose difference is what a node costs."""
SCANNED = 32
ACTIVE = 400
"""Active features a layer and position (docs/real_size.md)."""
LOGITS = 15
"""Targets of a graph: top 10 of both models, most of them the same."""
PUTS = 4
"""A graph and its provenance, of both models."""
BYTES = 2  # bfloat16


class Plan(Options):
    """Prices and speeds, as of 2026-11-30; give your own."""

    tokens: int = 100
    """Of a prompt."""
    nodes: int = 512
    """Of a graph."""
    scanned: int = 1000
    """Features of a scan."""
    batch: int = 128
    """Rows of one pass."""
    peak_tflops: float = 989
    """A GPU's, dense, in bfloat16 (H100 SXM)."""
    efficiency: float = 0.3
    """Share of it that is reached; not measured here."""
    terabytes_s: float = 3.35
    """A GPU's memory bandwidth."""
    gpu_gb: float = 80
    """A GPU's memory."""
    gpu_dollars_hour: float = 3.0
    """Price of a GPU."""
    gb_dollars_month: float = 0.023
    """Price of storage."""
    put_dollars_1000: float = 0.005
    """Price of a thousand writes."""


@dataclass(frozen=True)
class Shape:
    """What the formulae take of a model."""

    weights: float
    """Without the embedding of tokens."""
    layers: int
    width: int
    features: int
    """A layer's."""

    def forward(self, tokens: int) -> float:
        """F, in FLOPs."""
        return 2 * self.weights * tokens + 4 * self.layers * self.width * tokens**2

    def encode(self, tokens: int) -> float:
        """E, in FLOPs."""
        return 2.0 * self.layers * self.width * self.features * tokens


REAL = {
    "1B": Shape(1.236e9, 16, 2048, 131_072),
    "8B": Shape(7.50e9, 32, 4096, 131_072),
    "70B": Shape(69.5e9, 80, 8192, 131_072),
}
"""Llama-3.2-1B, Llama-3.1-8B and -70B, each with as many features a layer as the first's set."""


@dataclass(frozen=True)
class Coefficients:
    """What each kind of work takes, in forward passes."""

    prompt: float
    graphs: float
    """Both, without their nodes: choosing them, and the rows of their targets."""
    encoded: float
    """Passes of all encoders for both graphs."""
    node: float
    """A node of both graphs."""
    scanned: float


class FlopCount(TorchDispatchMode):
    """FLOPs of every product made meanwhile, backward ones included; those over all features of a
    layer, which are its encoder's, apart."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self._features = features
        self.model = self.encoders = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            n = count(*args, **(kwargs or {}), out_val=out)
            shapes = [one.shape for one in args if isinstance(one, torch.Tensor)]
            if any(self._features in shape for shape in shapes):
                self.encoders += n
            else:
                self.model += n
        return out


def count(subject: Subject) -> tuple[Coefficients, list[Row]]:
    """The coefficients of a small model."""
    pair, ids = subject.pair, subject.input_ids
    prompt = Prompt.of(prompt_text(pair.tokenizer, ids))
    config = pair.base.hf.config
    embedding = pair.base.hf.get_input_embeddings().weight.numel()
    weights = sum(p.numel() for p in pair.base.hf.parameters()) - embedding
    if config.tie_word_embeddings:
        weights += embedding
    shape = Shape(
        weights, config.num_hidden_layers, config.hidden_size, pair.base.dictionaries[0].width
    )
    forward, encode = shape.forward(len(ids)), shape.encode(len(ids))

    def flops(work: Callable[[], object]) -> FlopCount:
        with FlopCount(shape.features) as counted:
            work()
        return counted

    few, many = (
        flops(lambda n=n: build_pair_graphs(pair, prompt, AttributionSettings(nodes=n)))
        for n in (FEW, MANY)
    )
    node = (many.model - few.model) / (MANY - FEW)
    cache = subject.state()
    some = cache.active[:SCANNED]
    scan = flops(
        lambda: ablation_effects(pair.merged, cache, targets=torch.tensor([1]), features=some)
    )
    asked = flops(lambda: [model.next_logits(ids) for model in pair.models])
    found = Coefficients(
        prompt=asked.model / forward,
        graphs=(few.model - FEW * node) / forward,
        encoded=few.encoders / encode,
        node=node / forward,
        scanned=scan.model / len(some) / forward,
    )
    return found, [
        Row(f"{subject.name}: next tokens of both models", None, found.prompt, "F"),
        Row("... both graphs, without their nodes", None, found.graphs, "F"),
        Row("... both graphs, encoders", None, found.encoded, "E"),
        Row("... both graphs, a node", None, found.node, "F"),
        Row("... a scanned feature", None, found.scanned, "F"),
    ]


def reckoned(name: str, shape: Shape, per: Coefficients, plan: Plan) -> list[Row]:
    """Seconds, bytes and dollars of a model of real size."""
    forward, encode = shape.forward(plan.tokens), shape.encode(plan.tokens)
    model, encoders = BYTES * shape.weights, BYTES * shape.layers * shape.width * shape.features
    gpus = math.ceil((model + encoders) / (0.8e9 * plan.gpu_gb))
    rows_read = per.graphs + per.node * plan.nodes / plan.batch  # rows go in batches, the rest not
    passes = {"prompt": 2.0, "graphs": rows_read, "scan": per.scanned * plan.scanned / plan.batch}
    work = {
        "prompt": per.prompt * forward,
        "graphs": (per.graphs + per.node * plan.nodes) * forward + per.encoded * encode,
        "scan": per.scanned * plan.scanned * forward,
    }
    rows = [Row(f"{name}: GPUs for weights and encoders", None, gpus, "")]
    for kind, n_flops in work.items():
        read = passes[kind] * model + (encoders * per.encoded if kind == "graphs" else 0)
        busy = n_flops / (1e12 * plan.peak_tflops * plan.efficiency * gpus)
        seconds = max(busy, read / (1e12 * plan.terabytes_s * gpus))
        rows.append(Row(f"... {kind}: seconds", None, seconds, "s"))
        dollars = seconds * gpus * plan.gpu_dollars_hour / 3600
        rows.append(Row(f"... {kind}: dollars a thousand", None, 1000 * dollars, "$"))
    size = 2 * GraphStore.estimate_bytes(
        n_features=plan.nodes,
        n_layers=shape.layers,
        n_pos=plan.tokens,
        n_logits=LOGITS,
        n_active=ACTIVE * shape.layers * plan.tokens,
    )
    month = 1000 * size / 1e9 * plan.gb_dollars_month
    rows.append(Row("... both graphs: megabytes", None, size / 1e6, "MB"))
    rows.append(Row("... a thousand pairs of graphs: dollars a month", None, month, "$"))
    rows.append(Row("... and once, to write", None, PUTS * plan.put_dollars_1000, "$"))
    return rows


@contextmanager
def subjects() -> Iterator[list[Subject]]:
    """The small models."""
    with tempfile.TemporaryDirectory() as folder:
        found = [organism_subject("organism"), lifelike_subject(Path(folder))]
        try:
            yield found
        finally:
            for one in found:
                one.pair.close()


def measure(plan: Plan) -> list[Row]:
    """Counts, then what they come to."""
    with subjects() as small:
        counts = [count(one) for one in small]
    per, _ = counts[0]
    rows = [row for _, some in counts for row in some]
    return rows + [row for name, shape in REAL.items() for row in reckoned(name, shape, per, plan)]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
