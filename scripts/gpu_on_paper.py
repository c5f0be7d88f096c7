"""What a GPU would be asked for at real size: kernels launched, waits, bytes. Counted, not timed.

Three works of Llama-3.2-1B's shape in bfloat16 on a prompt of 64 tokens: both full graphs of 512
nodes, a scan of every active feature, 32 continuations of 64 tokens. Each is run here on a pair
with as many layers and rows at once but other widths, and every operation that torch makes is
counted: how many kernels depends on layers and batches, not on widths. Bytes are those of every
operand and result, each axis as wide as the real model's. A scan is counted in sixteen batches of
127 features, each of one place, spread over layers and positions, and multiplied. Then

    seconds >= max(kernels * launch, bytes / bandwidth, FLOPs / (peak * efficiency))

with speeds that are parameters. Active features are fewer here than at real size, so what a graph
does with all of them (choosing its nodes) is counted short in bytes.

python scripts/gpu_on_paper.py --launch-us 5
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import full_shape
import torch
from cost_model import BYTES
from measure import Row, benchmark
from pydantic import Field
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from em_circuits.cli.options import Options
from em_circuits.graphs.generate import build_pair_graphs
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.interventions import ActivationCache
from em_circuits.interventions.generation import generate
from em_circuits.interventions.scan import ablation_effects
from em_circuits.models import ModelPair, PairSettings, encode
from em_circuits.sampling import Sampling
from pivotal_tokens.schema import Prompt

WHOLE = full_shape.SHAPES["llama-3.2-1b"]
FEATURES = 131_072
SMALL = full_shape.Shape(120, 352, WHOLE.n_layers, 6, 3, 2000, 16, True, 32.0)
SMALL_FEATURES = 544


def _widths(shape: full_shape.Shape, features: int) -> list[int]:
    head = shape.d_model // shape.n_heads
    heads = [head, head // 2, shape.n_heads, shape.n_kv_heads, shape.n_kv_heads * head]
    return [shape.d_model, shape.d_mlp, shape.words + shape.special, features, *heads]


WIDTHS = dict(zip(_widths(SMALL, SMALL_FEATURES), _widths(WHOLE, FEATURES), strict=True))
"""Of the pair that is run, and what they are in the real one; no other long axis is such a size."""
FIRING = 400
"""Active features a layer and position at real size (docs/real_size.md)."""
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim"}
"""What a program cannot go on without the result of."""
NONE = {f"aten::{x}" for x in ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view")}
"""What launches no kernel."""


class Plan(Options):
    """The works, and a GPU."""

    tokens: int = Field(default=64, ge=8)
    """Of the prompt."""
    nodes: int = 512
    """Of each graph."""
    samples: int = 32
    """Continuations."""
    length: int = 64
    """Tokens of a continuation."""
    batch: int = 128
    """Rows of one pass."""
    launch_us: float = 5
    """Microseconds of a launch, the program's share included."""
    peak_tflops: float = 989
    """Dense, in bfloat16 (H100 SXM)."""
    efficiency: float = 0.3
    """Share of it that is reached; not measured here."""
    terabytes_s: float = 3.35
    """Memory bandwidth."""


@dataclass
class Counted:
    """What a work asks a GPU for."""

    kernels: float = 0
    indices: float = 0
    """Operations on integers alone: coordinates, most of which stay on the host."""
    waits: float = 0
    bytes: float = 0
    flops: float = 0

    def times(self, factor: float) -> Counted:
        """So many of them."""
        return Counted(*(factor * value for value in vars(self).values()))


class KernelCount(TorchDispatchMode):
    """Counts every operation made meanwhile, backward ones included; views are none."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counted()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name
        alias = [r.alias_info for r in func._schema.returns]
        if name in NONE or any(a is not None and not a.is_write for a in alias):
            return out
        found = self.found
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        if not any(t.is_floating_point() for t in tensors):
            found.indices += 1
            return out
        found.kernels += 1
        found.waits += name in WAITS or (name == "aten::index" and _by_mask(args))
        found.bytes += sum(BYTES * _numbers(t.shape) for t in tensors)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            shapes = (_real(args), _real(kwargs or {}), _real(out))
            found.flops += count(*shapes[0], **shapes[1], out_val=shapes[2])
        return out


def _by_mask(args: Any) -> bool:
    indices = tree_leaves(args[1:])
    return any(isinstance(t, torch.Tensor) and t.dtype is torch.bool for t in indices)


def _numbers(shape: Any) -> int:
    return math.prod(WIDTHS.get(n, n) for n in shape)


def _real(values: Any) -> Any:
    """The same with tensors that hold nothing, as large as the real model's."""

    def large(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return torch.empty([WIDTHS.get(n, n) for n in value.shape], device="meta")

    return torch.utils._pytree.tree_map(large, values)


@contextmanager
def small_pair(tokens: int) -> Iterator[ModelPair]:
    """A pair of the real one's depth."""
    full_shape.SHAPES["tiny"] = SMALL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan = full_shape.Plan(model="tiny", features=SMALL_FEATURES, tokens=tokens, density=0.01)
        full_shape.write_pair(folder, plan)
        settings = PairSettings(
            base=str(folder / "tiny"),
            adapter=str(folder / "adapter"),
            transcoders=str(folder / "transcoders"),
            dtype="float32",
            transcoders_on="gpu",
        )
        pair = ModelPair.load(settings)
        try:
            yield pair
        finally:
            pair.close()


def counted(work: Callable[[], object]) -> Counted:
    """What one run of the work asks for; a first one fills what is kept."""
    work()
    with KernelCount() as mode:
        work()
    return mode.found


def measure(plan: Plan) -> list[Row]:
    """Counts of the three works, and what they come to."""
    with small_pair(plan.tokens) as pair, torch.no_grad():
        text = full_shape.prompt_of(plan.tokens)
        ids = torch.tensor(encode(pair.tokenizer, text))
        model, state = pair.merged, ActivationCache.capture(pair.merged, ids)
        target = torch.tensor([1])
        settings = AttributionSettings(nodes=plan.nodes, batch_size=plan.batch)
        with torch.enable_grad():
            graphs = counted(lambda: build_pair_graphs(pair, Prompt.of(text), settings))

        def scan(features: torch.Tensor) -> Counted:
            size = {"features": features, "batch_size": plan.batch}
            return counted(lambda: ablation_effects(model, state, targets=target, **size))

        # A batch is of one place, as in a real scan: its rows begin where their features are.
        middles = [(2 * k + 1) / 8 for k in range(4)]
        places = [(int(a * WHOLE.n_layers), int(b * plan.tokens)) for a in middles for b in middles]
        names = torch.arange(plan.batch - 1)[:, None]
        batches = [
            scan(torch.cat([torch.tensor([at]).expand(len(names), 2), names], 1)) for at in places
        ]
        total = Counted(*(sum(v) for v in zip(*(vars(b).values() for b in batches), strict=True)))
        sampling = Sampling(samples=plan.samples, max_tokens=plan.length, stop_at_end=False)
        many = counted(lambda: generate(model, state, [()], sampling, batch_size=plan.samples))
        one = counted(
            lambda: generate(model, state, [()], sampling.model_copy(update={"samples": 1}))
        )
    n_active = FIRING * WHOLE.n_layers * (plan.tokens - 1)
    whole = total.times(n_active / (plan.batch - 1) / len(places))
    rows = []
    for what, found, most in (
        (f"both graphs, {plan.nodes} nodes, {plan.tokens} tokens", graphs, 3.0),
        (f"a scan of all {n_active} active features", whole, 10.0),
        (f"{plan.samples} continuations of {plan.length} tokens", many, None),
        ("... one by one", one.times(plan.samples), None),
    ):
        rows += _rows(what, found, plan, most)
    ratio = plan.samples * _seconds(one, plan) / _seconds(many, plan)
    rows.append(Row("continuations at once instead of one by one", None, ratio, "x"))
    return rows


def _parts(found: Counted, plan: Plan) -> tuple[float, float, float]:
    speed = 1e12 * plan.peak_tflops * plan.efficiency
    return (
        1e-6 * plan.launch_us * found.kernels,
        found.bytes / (1e12 * plan.terabytes_s),
        found.flops / speed,
    )


def _seconds(found: Counted, plan: Plan) -> float:
    return max(_parts(found, plan))


def _rows(what: str, found: Counted, plan: Plan, most: float | None) -> list[Row]:
    launch, moved, work = _parts(found, plan)
    return [
        Row(f"{what}: kernels", None, found.kernels, ""),
        Row("... operations on coordinates", None, found.indices, ""),
        Row("... that the program waits for", None, found.waits, ""),
        Row("... gigabytes read and written", None, found.bytes / 1e9, "GB"),
        Row("... TFLOP", None, found.flops / 1e12, ""),
        Row("... seconds of launching", None, launch, "s"),
        Row("... of memory", None, moved, "s"),
        Row("... of products", None, work, "s"),
        Row("... at least", None, max(launch, moved, work), "s", at_most=most),
    ]


if __name__ == "__main__":
    benchmark(Plan, measure, __doc__)
