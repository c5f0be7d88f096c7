"""Memory that graphs take, by the model's sizes: one formula for plans, batches and refusals.

    plan = memory_plan(settings, locate_all(settings), attribution, n_pos=55)
    plan.total, plan.fits, plan.advice
    RowMemory.of(model, nodes, n_targets, n_pos).rows_within(max_memory)

A graph is built in steps, and the largest of them counts: encoding (a layer's encoder in the
models' precision, every activation of that layer), gradients of the targets, and edges. With full
or measured edges one pass over a prompt of p tokens keeps for differentiation, per layer, what its
MLP, its attention and its norms save, and each row of a batched pass takes

    b p (writes)                            a row's derivative at every write site
    max(4 b p d_mlp, (b + 8) heads p^2)   the largest of one layer's MLP and attention
    16 p d_model                            the stream, norms in float32
    b (nodes of the largest part) (its widths)

with b bytes a value, so that a budget gives the number of rows. With frozen edges circuit-tracer
gathers the encoder and decoder rows of every active feature, and holds them twice while it joins
the layers.

Interventions gather the encoder and decoder rows of every active feature, differentiate the model
while all of them move, and keep what both models did on the prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.settings import AttributionSettings
from em_circuits.models.memory import ModelSizes, available_bytes, elements_in
from em_circuits.models.settings import PairSettings
from em_circuits.models.source import Source
from em_circuits.models.stored_rows import kept_bytes
from pivotal_tokens.errors import RequestError

if TYPE_CHECKING:
    from em_circuits.graphs.held import Nodes
    from em_circuits.models import Model
    from em_circuits.models.sites import Site

MOST_ROWS = 1024
ROW_BYTES = 1 << 30
"""Feature rows of a frozen graph that stay in host memory; on a GPU half of what is free does."""
PATTERN_BYTES = 1 << 30
"""Attention patterns of one prompt that stay in memory; further ones are computed when needed."""
PROMPT_TOKENS = 64
"""Length of a prompt that nothing is known about."""
DENSITY = 0.004
"""Share of a layer's features that fire at a position, where no graph has shown it."""
STEERING_TARGETS = 20
"""Labelled tokens whose effects steering takes apart at once, as far as the plan allows for."""
RUN_BYTES = 1 << 28
"""Activations of one batch of interventions on a CPU, roughly."""
RUN_ROWS = 256
"""Rows of such a batch at most; more do not make a pass faster."""
_FLOAT = 4
_STORED = 2
"""Bytes of a number in most transcoder files."""
_LIBRARIES = 600_000_000
"""Code and tables of what is imported with the models, in host memory."""
_HEADROOM = 1.05


@dataclass(frozen=True)
class RowMemory:
    """What edges among held nodes take, beside the models.

    Attributes:
        n_layers: Layers of the model.
        n_pos: Tokens of the prompt.
        d_model: Width of the residual stream.
        d_mlp: Width of an MLP.
        n_heads: Attention heads.
        d_vocab: Width of the logits.
        value_bytes: Of one of the model's numbers.
        write_width: Sum of the widths of all sites that nodes write into.
        part_width: Most values of a part: nodes times what each reads, is chosen from and writes.
        n_nodes: Nodes.
        n_targets: Targets.
    """

    n_layers: int
    n_pos: int
    d_model: int
    d_mlp: int
    n_heads: int
    d_vocab: int
    value_bytes: int
    write_width: int
    part_width: int
    n_nodes: int
    n_targets: int

    @classmethod
    def of(cls, model: Model, nodes: Nodes, n_targets: int, n_pos: int) -> RowMemory:
        """The sizes of a prompt's edges."""
        decoder = model.decoder
        d_model = decoder.d_model
        writes, widest = 0, 0
        for i, part in enumerate(nodes.parts):
            n = len(range(*nodes.of_part(i).indices(len(nodes))))
            if n:
                writes += sum(_width(site, d_model) for site in part.writes)
                reads = _width(part.read, d_model)
                widest = max(widest, n * (reads + part.n_nodes * part.encodes_whole + d_model))
        return cls(
            n_layers=len(decoder.layers),
            n_pos=n_pos,
            d_model=d_model,
            d_mlp=decoder.d_mlp,
            n_heads=decoder.n_heads,
            d_vocab=decoder.d_vocab,
            value_bytes=model.dtype.itemsize,
            write_width=writes,
            part_width=widest,
            n_nodes=len(nodes),
            n_targets=n_targets,
        )

    @property
    def row_bytes(self) -> int:
        """What each row at once takes."""
        b, p = self.value_bytes, self.n_pos
        mlp = 4 * b * p * self.d_mlp
        attention = (b + 8) * self.n_heads * p**2
        stream = 16 * p * self.d_model
        return b * p * self.write_width + max(mlp, attention) + stream + b * self.part_width

    @property
    def fixed_bytes(self) -> int:
        """What does not depend on the number of rows: saved for differentiation, and the edges."""
        b, p = self.value_bytes, self.n_pos
        layer = p * (5 * b * self.d_mlp + (8 * b + 8) * self.d_model)
        layer += (3 * b + 4) * self.n_heads * p**2
        edges = 3 * (self.n_nodes + self.n_targets) * (self.n_nodes + p)
        logits = (4 + 2 * self.n_targets) * self.d_vocab
        return self.n_layers * layer + _FLOAT * (edges + logits)

    def rows_within(self, max_memory: int) -> int:
        """The most rows at once that stay within a budget.

        Raises:
            RequestError: If a single row does not fit.
        """
        rows = (max_memory - self.fixed_bytes) // self.row_bytes
        if rows < 1:
            needed = self.fixed_bytes + self.row_bytes
            raise RequestError(
                f"--max-memory {_gb(max_memory)} GB is too little: edges of {self.n_nodes} nodes "
                f"and {self.n_pos} tokens take {_gb(self.fixed_bytes)} GB and {_gb(self.row_bytes)}"
                f" GB a row, {_gb(needed)} GB in all; allow that much or ask for fewer --nodes"
            )
        return rows


def _width(site: Site, d_model: int) -> int:
    """Width of what stands at a site."""
    if isinstance(site.module, nn.Linear):
        linear = site.module
        return linear.in_features if site.side == "input" else linear.out_features
    return d_model


@dataclass(frozen=True)
class FrozenMemory:
    """What an attribution takes, beside models and transcoders, by its sizes.

    Attributes:
        n_active: Active features.
        n_layers: Layers of the model.
        n_pos: Tokens of the prompt.
        d_model: Width of the residual stream.
        n_heads: Attention heads.
        max_feature_nodes: Feature rows of the graph; None for every active feature.
        value_bytes: Of one of the model's numbers.
    """

    n_active: int
    n_layers: int
    n_pos: int
    d_model: int
    n_heads: int
    max_feature_nodes: int | None = None
    value_bytes: int = _FLOAT

    def rows_within(self, max_memory: int) -> int:
        """The largest power of two of rows at once, 1 to 1,024, that stays within a budget.

        Raises:
            RequestError: If what does not depend on the batch does not fit with a single row.
        """
        rows = (max_memory - self.fixed_bytes) // self.row_bytes
        if rows < 1:
            needed = (self.fixed_bytes + self.row_bytes) / 1e9
            raise RequestError(
                f"--max-memory {max_memory / 1e9:.2f} GB is too little: this prompt's attribution "
                f"takes {needed:.2f} GB; allow that much or ask for fewer --max-features"
            )
        return min(MOST_ROWS, 1 << rows.bit_length() - 1)

    @property
    def row_bytes(self) -> int:
        """What each row at once takes: its gradient of the stream, what passes through attention,
        the values of a head group; then the row itself, transposed, and as it is stored."""
        stream = 4 * self.n_pos * self.d_model
        return self.value_bytes * (stream + 3 * self._sources(self.n_active))

    @property
    def fixed_bytes(self) -> int:
        """Memory of an attribution that does not depend on its batch size, in bytes.

        Encoder and decoder rows of the active features; attention patterns, those of one layer
        several times over while they are made; stored rows, as far as they stay in memory, and
        packed; what every layer reads, writes and misses.
        """
        n_rows = min(self.max_feature_nodes or self.n_active, self.n_active)
        vectors = 2 * self.n_active * self.d_model
        pattern = self.n_heads * self.n_pos**2
        in_memory = PATTERN_BYTES // self.value_bytes
        patterns = min(self.n_layers * pattern, in_memory) + 4 * pattern
        share = 0.5  # of the sources, that lie in layers below and at positions before
        rows = min(
            int(share * n_rows * self._sources(self.n_active)), ROW_BYTES // self.value_bytes
        )
        packed = int(share * n_rows * self._sources(n_rows))
        streams = 6 * self.n_layers * self.n_pos * self.d_model
        model = vectors + patterns + rows + streams
        return self.value_bytes * model + _FLOAT * packed

    @property
    def setup_bytes(self) -> int:
        """Encoder and decoder rows while circuit-tracer joins those of all layers: twice."""
        return 4 * self.n_active * self.d_model * self.value_bytes

    def _sources(self, n_features: int) -> int:
        return NodeLayout(n_features, self.n_layers, self.n_pos, n_logits=0).n_sources


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that loading a pair and the work on one prompt will take.

    Attributes:
        n_pos: Tokens of the prompt.
        n_active: Active nodes that are allowed for, in each model.
        weights: Both models; the merged one counts for the tensors an adapter touches.
        transcoders: Encoder and decoder matrices on the device; of those that wait elsewhere, the
            rows that are kept. Neurons are the models' own weights: 0.
        attribution: The largest step of a graph, or of steering.
        work: Which of the two, as `describe` says it.
        device: Where that is.
        available: Free bytes there now.
        host: What waits in host memory beside a GPU: transcoders, and what is imported.
        host_available: Free bytes there now.
        offloaded: Encoder and decoder rows of one model, in a file while the other is attributed
            with frozen edges.
        advice: What would make it fit.
    """

    n_pos: int
    n_active: int
    weights: int
    transcoders: int
    attribution: int
    work: str
    device: str
    available: int
    host: int
    host_available: int
    offloaded: int
    advice: str = ""

    @property
    def total(self) -> int:
        return int(_HEADROOM * (self.weights + self.transcoders + self.attribution))

    @property
    def fits(self) -> bool:
        return self.total <= self.available and self.host <= self.host_available

    def describe(self) -> str:
        """One line for people."""
        parts = f"weights {_gb(self.weights)}, transcoders {_gb(self.transcoders)}, "
        parts += f"{self.work} of {self.n_pos} tokens {_gb(self.attribution)}"
        said = f"{parts}: {_gb(self.total)} of {_gb(self.available)} GB free on {self.device}"
        if self.host:
            said += f", {_gb(self.host)} of {_gb(self.host_available)} GB in host memory"
        return said


@dataclass(frozen=True)
class _PromptSizes:
    """A prompt of a model, as far as it decides what the work on it takes.

    Attributes:
        model: Of the model.
        n_pos: Tokens.
        n_active: Active nodes.
        n_distinct: Node ids of a layer that are active at some position.
        width: Features, or neurons, of a layer.
        encoder: Bytes of one layer's encoder where it is read for the purpose.
        value_bytes: Of one of the model's numbers.
    """

    model: ModelSizes
    n_pos: int
    n_active: int
    n_distinct: int
    width: int
    encoder: int
    value_bytes: int

    @classmethod
    def of(
        cls, model: ModelSizes, n_pos: int, *, share: float, width: int, encoder: int, value: int
    ) -> _PromptSizes:
        """A prompt at whose positions a share of each layer's features fires, each by itself."""
        active = int(model.n_layers * n_pos * min(width, max(share * width, 1)))
        distinct = min(width, active // model.n_layers, int(width * (1 - (1 - share) ** n_pos)) + 1)
        return cls(model, n_pos, active, distinct, width, encoder, value)

    @property
    def encoding(self) -> int:
        """Of a layer: its encoder, every pre-activation and activation."""
        return self.encoder + 4 * self.n_pos * self.width * self.value_bytes

    @property
    def stream(self) -> int:
        """What each layer reads, or writes."""
        return self.model.n_layers * self.n_pos * self.model.d_model * self.value_bytes

    def rows(self, nodes: int, n_targets: int) -> RowMemory:
        """Edges among so many nodes."""
        model = self.model
        return RowMemory(
            n_layers=model.n_layers,
            n_pos=self.n_pos,
            d_model=model.d_model,
            d_mlp=model.d_mlp,
            n_heads=model.n_heads,
            d_vocab=model.d_vocab,
            value_bytes=self.value_bytes,
            write_width=model.n_layers * model.d_model,
            part_width=2 * model.d_model * -(-nodes // model.n_layers),
            n_nodes=nodes,
            n_targets=n_targets,
        )

    def graph(self, wanted: AttributionSettings) -> int:
        """The largest step of both graphs."""
        return self._frozen(wanted) if wanted.edges == "frozen" else self._full(wanted)

    def _full(self, wanted: AttributionSettings) -> int:
        n_targets, nodes = 2 * wanted.top_k, min(wanted.limit or self.n_active, self.n_active)
        rows = self.rows(nodes, n_targets)
        # Of both models, until nodes are chosen: what parts read, active nodes, gradients.
        observed = 2 * (self.stream + 28 * self.n_active)
        gradients = rows.fixed_bytes + n_targets * rows.row_bytes
        towards = 2 * n_targets * self.stream
        # Coordinates as one integer, sorted and counted, in float64 with the sizes.
        choice = towards + 60 * self.n_active + 4 * n_targets * self.n_active // self.model.n_layers
        edges = rows.fixed_bytes + min(wanted.batch_size, max(nodes, 1)) * rows.row_bytes
        if wanted.max_memory is not None:
            edges = min(edges, max(wanted.max_memory, rows.fixed_bytes + rows.row_bytes))
        return observed + max(self.encoding, gradients + towards // 2, choice, edges)

    def _frozen(self, wanted: AttributionSettings) -> int:
        need = FrozenMemory(
            n_active=self.n_active,
            n_layers=self.model.n_layers,
            n_pos=self.n_pos,
            d_model=self.model.d_model,
            n_heads=self.model.n_heads,
            max_feature_nodes=wanted.max_feature_nodes,
            value_bytes=self.value_bytes,
        )
        rows = need.fixed_bytes + wanted.batch_size * need.row_bytes
        if wanted.max_memory is not None:
            rows = min(rows, max(wanted.max_memory, need.fixed_bytes + need.row_bytes))
        # The rows of the layers before wait beside an encoder; no encoder is there any more when
        # those of all layers are joined.
        return max(need.setup_bytes // 2 + self.encoding, need.setup_bytes, rows)

    def steering(self) -> int:
        """The largest step of steering, ranking and mediation."""
        model, value, p = self.model, self.value_bytes, self.n_pos
        patterns = model.n_layers * model.n_heads * p**2 * value
        caches = 2 * (3 * self.stream + patterns + 28 * self.n_active)
        vectors = 2 * model.n_layers * self.n_distinct * model.d_model * value
        # While features move: their activations, clamped and not, in every layer, and those of a
        # layer for every target.
        moving = p * self.n_distinct * value
        rows = self.rows(0, STEERING_TARGETS)
        each = max(rows.row_bytes, 2 * self.stream) + 3 * moving
        moved = rows.fixed_bytes + 3 * model.n_layers * moving + STEERING_TARGETS * each
        row = p * (10 * model.d_model + 3 * model.d_mlp + 3 * model.n_heads * p) * value
        run = min(RUN_BYTES, RUN_ROWS * (row + 12 * model.d_vocab))
        return caches + max(self.encoding, vectors + max(moved, run))


def memory_plan(
    settings: PairSettings,
    sources: Mapping[str, Source],
    attribution: AttributionSettings | None,
    *,
    n_pos: int = PROMPT_TOKENS,
    density: float | None = None,
) -> MemoryPlan:
    """What a pair and the work on one prompt will take, before anything large is loaded.

    Args:
        settings: The models.
        sources: Their directories.
        attribution: Both graphs; None for steering, and what else runs interventions.
        n_pos: Tokens of the prompt.
        density: Share of a layer's features that fire at a position, as graphs have shown it.
    """
    plan = _plan(settings, sources, attribution, n_pos, density)
    if plan.fits:
        return plan
    return replace(plan, advice=_advice(settings, sources, attribution, n_pos, density))


def require_fit(plan: MemoryPlan) -> None:
    """Refuse a plan that does not fit, with what would make it smaller.

    Raises:
        RequestError: With the arithmetic.
    """
    if not plan.fits:
        raise RequestError(f"not enough memory: {plan.describe()}; {plan.advice}")


def _plan(
    settings: PairSettings,
    sources: Mapping[str, Source],
    attribution: AttributionSettings | None,
    n_pos: int,
    density: float | None,
) -> MemoryPlan:
    device, dtype = settings.resolved_device(), settings.resolved_dtype()
    sizes, value = ModelSizes.of(sources["base"]), dtype.itemsize
    base = sizes.elements * value
    # An adapter's matrices of rank r hold r (in + out) numbers; those they touch at most width
    # times as many.
    merged = base
    if "adapter" in sources:
        merged = min(base, elements_in(sources["adapter"].path) * sizes.d_model * value)
    files = None if settings.neurons else sources["transcoders"].transcoders
    layers = () if files is None else files.layers
    matrices = sum(one.elements for one in layers) * value
    free = available_bytes(device)
    on_device = settings.transcoders_on == "gpu"
    lazy = bool(layers) and not on_device
    width = layers[0].width if layers else sizes.d_mlp
    prompt = _PromptSizes.of(
        sizes,
        n_pos,
        share=1.0 if settings.neurons else DENSITY if density is None else density,
        width=width,
        encoder=width * sizes.d_model * value if lazy else 0,
        value=value,
    )
    kept = 0
    if lazy:  # as they are stored, mostly in bfloat16
        kinds = 1 if attribution is not None else 2
        each = kinds * sizes.d_model * min(value, _STORED)
        kept = min(kept_bytes(free), sizes.n_layers * prompt.n_distinct * each)
    step = prompt.steering() if attribution is None else prompt.graph(attribution)
    waiting = matrices if settings.transcoders_on == "cpu" else 0
    host = 0
    if device.type != "cpu":
        host = _LIBRARIES + waiting
    resident = matrices if on_device else waiting if device.type == "cpu" else 0
    if dtype != torch.float32:  # health checks run each layer, and the head, in float32 once
        layer = 4 * sizes.d_model**2 + 3 * sizes.d_model * sizes.d_mlp
        step = max(step, _FLOAT * max(layer, sizes.d_vocab * sizes.d_model))
    return MemoryPlan(
        n_pos=n_pos,
        n_active=prompt.n_active,
        weights=base + merged,
        transcoders=resident + kept,
        attribution=step + (_LIBRARIES if device.type == "cpu" else 0),
        work="steering on a prompt" if attribution is None else "a graph",
        device=str(device),
        available=free,
        host=host,
        host_available=available_bytes(torch.device("cpu")),
        offloaded=2 * prompt.n_active * sizes.d_model * value,
    )


def _advice(
    settings: PairSettings,
    sources: Mapping[str, Source],
    attribution: AttributionSettings | None,
    n_pos: int,
    density: float | None,
) -> str:
    """The first change, or the first few together, that make a graph fit."""
    if settings.transcoders_on != "disk" and not settings.neurons:
        settings_steps = [("--transcoders-on disk", {"transcoders_on": "disk"})]
    else:
        settings_steps = []
    if settings.resolved_dtype() == torch.float32:
        settings_steps.append(("--dtype bfloat16", {"dtype": "bfloat16"}))
    steps: list[tuple[str, dict, dict]] = [(name, change, {}) for name, change in settings_steps]
    if attribution is not None:
        if attribution.edges == "frozen":
            steps.append(("--edges full", {}, {"edges": "full"}))
        for batch in (attribution.batch_size // 4, 8):
            if 0 < batch < attribution.batch_size:
                steps.append((f"--batch-size {batch}", {}, {"batch_size": batch}))

    def plan(model: dict, graph: dict, tokens: int) -> MemoryPlan:
        return _plan(
            settings.model_copy(update=model),
            sources,
            None if attribution is None else attribution.model_copy(update=graph),
            tokens,
            density,
        )

    for name, model, graph in steps:
        if plan(model, graph, n_pos).fits:
            return f"use {name}"
    names: list[str] = []
    model, graph = {}, {}
    for name, more_model, more_graph in steps:
        if name.startswith("--batch-size") and "batch_size" in graph:
            names.pop()
        model, graph, names = model | more_model, graph | more_graph, [*names, name]
        if plan(model, graph, n_pos).fits:
            return f"use {' '.join(names)}"
    if plan(model, graph, 2).fits:
        fits, fails = 2, n_pos
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if plan(model, graph, middle).fits else (fits, middle)
        with_these = f" with {' '.join(names)}" if names else ""
        return f"prompts of up to {fits} tokens fit{with_these}"
    return "even the smallest settings do not fit; a smaller model or a larger machine is needed"


def _gb(size: int) -> str:
    return f"{size / 1e9:.3f}" if size >= 1e7 else f"{size / 1e9:.6f}"
