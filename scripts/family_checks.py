"""Numbers of a tiny pair beside plain Hugging Face: the same model by transformers and PEFT alone.

The oracle knows nothing of em_circuits: paths of modules are written out here, transcoders are read
from their files, derivatives are finite differences in float64, and what a frozen graph holds
constant is held by hooks of its own.

    found = differences(made, "plt")
    found["full edges"]               # of the largest
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import transformers
from peft import PeftModel
from subjects import in_float64
from tiny_families import PROMPT, MadeFamily, plain_tensors
from torch import Tensor
from torch.overrides import TorchFunctionMode

from em_circuits.bases.own import own_parts
from em_circuits.graphs import AttributionSettings, build_pair_graphs
from em_circuits.graphs.held import choose_nodes, full_edges, gradient_effects, measured_edges
from em_circuits.influence import Method, Targets, influence
from em_circuits.interventions import (
    ActivationCache,
    Intervention,
    Mode,
    Regime,
    ablation_effects,
    run_rows,
)
from em_circuits.models import ModelPair
from em_circuits.models.foreign import has_circuit_tracer
from em_circuits.models.health import check_pair
from em_circuits.models.transcoders import load_transcoders
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt

LIMITS = {
    "logits": 1e-5,
    "ablation, last": 1e-6,
    "ablation, early": 1e-6,
    "full edges": 1e-5,
    "token edges": 1e-5,
    "measured edges": 5e-5,
    "gradient": 1e-5,
    "total effect = gradient": 1e-5,
    "frozen edges": 1e-5,
    "frozen token edges": 1e-5,
    "frozen_linear = total effect": 5e-5,
}
"""Largest difference that passes: nats, probability, then shares of the largest value. Those of
5e-5 are differences of two passes in float32, whose rounding is a larger share of so small a
difference: in float64 the same edges differ by 2e-8 (`in_double`)."""
N_NODES, N_COLUMNS = 24, 8
_STEP = 1e-4


@dataclass(frozen=True)
class Paths:
    """Where things are in a plain model."""

    layers: str = "model.layers"
    attention: str = "self_attn"
    before_mlp: str = "post_attention_layernorm"
    mlp: str = "mlp"
    writer: str = "mlp"
    """What is added to the stream."""
    down: str = "mlp.down_proj"
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    final: str = "model.norm"
    embedding: str = "model.embed_tokens"


_GEMMA = Paths(
    before_mlp="pre_feedforward_layernorm",
    writer="post_feedforward_layernorm",
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
)
PATHS = {
    "Gemma2ForCausalLM": _GEMMA,
    "Gemma3ForCausalLM": _GEMMA,
    "Gemma3ForConditionalGeneration": Paths(
        "model.language_model.layers",
        before_mlp=_GEMMA.before_mlp,
        writer=_GEMMA.writer,
        norms=_GEMMA.norms,
        final="model.language_model.norm",
        embedding="model.language_model.embed_tokens",
    ),
    "GPT2LMHeadModel": Paths(
        "transformer.h",
        attention="attn",
        before_mlp="ln_2",
        down="mlp.c_proj",
        norms=("ln_1", "ln_2"),
        final="transformer.ln_f",
        embedding="transformer.wte",
    ),
}


class InFloat64(TorchFunctionMode):
    """Casts to float32 that models write out, in norms and softmax, give float64 instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.float:
            return args[0].double()
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if func is Tensor.to:
            args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        return func(*args, **kwargs)


Write = tuple[int, int, Tensor]
"""Layer, position, and the vector that is added to what the layer writes there."""


@dataclass
class Seen:
    """What one pass showed."""

    reads: dict[int, Tensor] = field(default_factory=dict)
    live: list[Tensor] = field(default_factory=list)
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


class Plain:
    """The merged model, and hooks that hold, add and freeze."""

    def __init__(self, made: MadeFamily, kind: str) -> None:
        cls = getattr(transformers, made.recipe.model)
        model = cls.from_pretrained(made.base, dtype=torch.float32, attn_implementation="eager")
        # transformers 5 has a kernel for experts that takes no float64
        model.config._experts_implementation = "eager"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            merged = PeftModel.from_pretrained(model, str(made.adapter)).merge_and_unload()
        self.hf: Any = merged.eval().requires_grad_(False).double()
        self.paths = PATHS.get(made.recipe.model, Paths())
        self.n_layers = made.recipe.n_layers
        self.kind, self.hook = kind, made.recipe.hooks
        if kind == "plt":
            layers = range(self.n_layers)
            self.dictionaries = [plain_tensors(made.transcoders, layer) for layer in layers]

    def at(self, layer: int, name: str) -> Any:
        return self.hf.get_submodule(f"{self.paths.layers}.{layer}.{name}")

    def writer(self, layer: int) -> Any:
        """Whose output nodes write into."""
        if self.kind == "none":
            return self.at(layer, self.paths.down)
        name = self.paths.writer if self.hook[1] == "hook_mlp_out" else self.paths.mlp
        return self.at(layer, name)

    def written(self, layer: int, node: int) -> Tensor:
        """What a node writes per unit of activation, into its layer and those behind it."""
        if self.kind == "plt":
            rows = self.dictionaries[layer]["W_dec"][node]
            return rows if rows.ndim == 2 else rows[None]
        down = self.at(layer, self.paths.down)
        conv = type(down).__name__ == "Conv1D"
        return (down.weight[node] if conv else down.weight[:, node])[None]

    def change(self, place: tuple[int, int, int], amount: float | Tensor) -> list[Write]:
        """What changes with a node's activation, wherever it writes."""
        layer, position, node = place
        rows = self.written(layer, node)
        return [(layer + k, position, amount * row) for k, row in enumerate(rows)]

    def reconstructed(self, layer: int, position: int, reads: dict[int, Tensor]) -> Tensor:
        """What transcoders make of an MLP's output."""
        made = self.dictionaries[layer]["b_dec"] + self.skipped(layer, reads[layer][position])
        for source in range(layer + 1):
            one = self.dictionaries[source]
            pre = one["W_enc"] @ reads[source][position] + one["b_enc"]
            active = pre * (pre > one.get("activation_function.threshold", 0))
            if one["W_dec"].ndim == 3:
                made = made + active @ one["W_dec"][:, layer - source]
            elif source == layer:
                made = made + active @ one["W_dec"]
        return made

    def skipped(self, layer: int, x: Tensor) -> Tensor:
        """What passes through its skip connection."""
        skip = self.dictionaries[layer].get("W_skip")
        return torch.zeros_like(x) if skip is None else x @ skip.T

    def gated(self, layer: int, value: Tensor) -> Tensor:
        """An activation with its gate, from the one with the gate open."""
        if self.kind == "none":
            return value
        threshold = self.dictionaries[layer].get("activation_function.threshold")
        return value * (value > (0 if threshold is None else threshold[0]))

    def live(self, layer: int, x: Tensor, node: int) -> Tensor:
        """A node's activation, its gate open."""
        if self.kind == "none":
            return x[node]
        one = self.dictionaries[layer]
        return one["W_enc"][node] @ x + one["b_enc"][node]

    def run(self, ids: Tensor, **changes: Any) -> Seen:
        """One pass; see `_run`."""
        with torch.no_grad(), InFloat64():
            return self._run(ids, **changes)

    def _run(
        self,
        ids: Tensor,
        *,
        nodes: list[tuple[int, int, int]] = (),  # type: ignore[assignment]
        held: list[float] | None = None,
        add: Sequence[Write] = (),
        token: tuple[int, float] | None = None,
        frozen: Frozen | None = None,
        gates: bool = False,
    ) -> Seen:
        """One pass.

        Args:
            ids: The prompt.
            nodes: (layer, position, id); their live values are read.
            held: The values they are held at; None lets them run free.
            add: Vectors that are added to what layers write.
            token: (position, step): its embedding times 1 + step.
            frozen: Norms, patterns and MLP outputs that are held.
            gates: Nodes' gates close as they really do, instead of being held open.
        """
        seen = Seen(live=[torch.empty(0)] * len(nodes))
        with contextlib.ExitStack() as stack:
            if frozen is not None:
                stack.enter_context(frozen.installed())
            if token is not None:
                stack.enter_context(
                    _output(self.hf.get_submodule(self.paths.embedding), partial(_scaled, token))
                )
            for layer in range(self.n_layers):
                stack.enter_context(self._reading(layer, seen, frozen))
                write = partial(self._write, layer, seen, nodes, held, add, frozen, gates)
                stack.enter_context(_output(self.writer(layer), write))

            def last(_m: Any, _a: Any, output: Tensor) -> None:
                seen.final = output[0, -1]

            handle = self.hf.get_submodule(self.paths.final).register_forward_hook(last)
            stack.callback(handle.remove)
            seen.logits = self.hf(input_ids=ids[None], use_cache=False).logits[0, -1]
        return seen

    def _reading(self, layer: int, seen: Seen, frozen: Frozen | None) -> Any:
        if self.kind == "none":

            def keep(x: Tensor) -> None:
                seen.reads[layer] = x[0]

            return _input(self.at(layer, self.paths.down), keep)
        norm, hook = self.at(layer, self.paths.before_mlp), self.hook[0]

        def of_norm(_m: Any, args: tuple, output: Tensor) -> None:
            x = args[0][0]
            if hook == "hook_resid_mid":
                seen.reads[layer] = x
            elif hook == "mlp.hook_in":
                seen.reads[layer] = output[0]
            else:
                size = _centred(norm, x if frozen is None else frozen.stream[layer])
                scale = torch.rsqrt(size.square().mean(-1, keepdim=True) + _epsilon(norm))
                seen.reads[layer] = _centred(norm, x) * scale

        @contextlib.contextmanager
        def on() -> Iterator[None]:
            handle = norm.register_forward_hook(of_norm)
            try:
                yield
            finally:
                handle.remove()

        return on()

    def _write(
        self,
        layer: int,
        seen: Seen,
        nodes: Any,
        held: Any,
        add: Any,
        frozen: Frozen | None,
        gates: bool,
        output: Tensor,
    ) -> Tensor:
        output = output.clone()
        x = seen.reads[layer]
        if frozen is not None:
            output[0] += self.skipped(layer, x) - self.skipped(layer, frozen.reads[layer])
        for i, (node_layer, position, node) in enumerate(nodes):
            if node_layer == layer:
                live = self.live(layer, x[position], node)
                seen.live[i] = self.gated(layer, live) if gates else live
            rows = self.written(node_layer, node)
            if held is not None and 0 <= layer - node_layer < len(rows):
                output[0, position] += (held[i] - seen.live[i]) * rows[layer - node_layer]
        for at, position, vector in add:
            if at == layer:
                output[0, position] += vector
        return output


class Frozen:
    """Norms as linear maps of their inputs, attention by recorded patterns, MLPs as recorded."""

    def __init__(self, plain: Plain, ids: Tensor) -> None:
        self.plain = plain
        self.norms: list[tuple[Any, Tensor, Tensor]] = []
        self.outputs: dict[int, Tensor] = {}
        self.stream: dict[int, Tensor] = {}
        self.reads = plain.run(ids).reads
        self.patterns: dict[int, Tensor] = {}
        handles = []

        def of_norm(module: Any, args: tuple, output: Tensor) -> None:
            self.norms.append((module, args[0], output))

        def of_attention(layer: int, _m: Any, _a: Any, output: tuple) -> None:
            self.patterns[layer] = output[1]

        def of_writer(layer: int, _m: Any, _a: Any, output: Any) -> None:
            self.outputs[layer] = output[0] if isinstance(output, tuple) else output

        def of_stream(layer: int, _m: Any, args: tuple, _o: Any) -> None:
            self.stream[layer] = args[0][0]

        p = plain.paths
        for layer in range(plain.n_layers):
            for name in p.norms:
                handles.append(plain.at(layer, name).register_forward_hook(of_norm))
            at = plain.at(layer, p.attention)
            handles.append(at.register_forward_hook(partial(of_attention, layer)))
            handles.append(plain.writer(layer).register_forward_hook(partial(of_writer, layer)))
            before = plain.at(layer, p.before_mlp)
            handles.append(before.register_forward_hook(partial(of_stream, layer)))
        handles.append(plain.hf.get_submodule(p.final).register_forward_hook(of_norm))
        with torch.no_grad(), InFloat64():
            plain.hf(input_ids=ids[None], use_cache=False)
        for handle in handles:
            handle.remove()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        handles = []
        for module, x0, y0 in self.norms:
            handles.append(module.register_forward_hook(partial(_linear, x0, y0)))
        p = self.plain.paths
        for layer in range(self.plain.n_layers):
            at = self.plain.at(layer, p.attention)
            hook = partial(_by_pattern, self.patterns[layer])
            handles.append(at.register_forward_hook(hook, with_kwargs=True))
            constant = self.outputs[layer]
            handles.append(
                self.plain.writer(layer).register_forward_hook(
                    lambda _m, _a, o, c=constant: (c, *o[1:]) if isinstance(o, tuple) else c
                )
            )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _linear(x0: Tensor, y0: Tensor, module: Any, args: tuple, _output: Tensor) -> Tensor:
    x = args[0]
    if getattr(module, "bias", None) is None:
        return y0 / x0 * x
    scale = (y0 - module.bias) / (x0 - x0.mean(-1, keepdim=True))
    return module.bias + scale * (x - x.mean(-1, keepdim=True))


def _by_pattern(pattern: Tensor, module: Any, args: tuple, kwargs: dict, output: tuple) -> tuple:
    x = args[0] if args else kwargs["hidden_states"]
    if hasattr(module, "c_attn"):
        values, last = module.c_attn(x).split(x.shape[-1], 2)[2], module.c_proj
    else:
        values, last = module.v_proj(x), module.o_proj
    values = values.unflatten(-1, (-1, module.head_dim)).transpose(1, 2)
    values = values.repeat_interleave(pattern.shape[1] // values.shape[1], 1)
    return last((pattern @ values).transpose(1, 2).flatten(2)), *output[1:]


def _centred(norm: Any, x: Tensor) -> Tensor:
    """What a norm divides by its size: a LayerNorm's input less its mean."""
    return x if getattr(norm, "bias", None) is None else x - x.mean(-1, keepdim=True)


def _epsilon(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _scaled(token: tuple[int, float], output: Tensor) -> Tensor:
    output = output.clone()
    output[0, token[0]] *= 1 + token[1]
    return output


@contextlib.contextmanager
def _output(module: Any, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(_module: Any, _args: tuple, output: Any) -> Any:
        if isinstance(output, tuple):  # of experts: and which were taken
            return change(output[0]), *output[1:]
        return change(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _input(module: Any, keep: Callable[[Tensor], None]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _m, args: keep(args[0]))
    try:
        yield
    finally:
        handle.remove()


def differences(made: MadeFamily, kind: str, **changes: Any) -> dict[str, float | str]:
    """Every figure of one pair; the sentence of a refusal where there is one."""
    plain = Plain(made, kind)
    with ModelPair.load(made.settings(kind, **changes)) as pair:
        ids = pair.input_ids(PROMPT)
        found: dict[str, float | str] = {}
        bad = [check for check in check_pair(pair, ids) if check.fatal and not check.ok]
        found["doctor"] = "ok" if not bad else f"{bad[0].name}: {bad[0].found}"
        found |= _logits_and_ablations(pair, plain, ids)
        found |= _full(pair, plain, ids)
        if kind == "plt" and has_circuit_tracer():
            found |= _frozen(pair, plain, ids)
        found |= _regimes(pair, ids)
    return found


def in_double(made: MadeFamily) -> dict[str, float | str]:
    """The figures of full and measured edges with our side in float64, too: what is left there is
    no rounding of a pass."""
    plain = Plain(made, "plt")
    with ModelPair.load(made.settings("plt")) as pair:
        ids = pair.input_ids(PROMPT)
        files = pair.sources["transcoders"].transcoders
        assert files is not None
        cpu = torch.device("cpu")
        exact = load_transcoders(files, device=cpu, dtype=torch.float64, place="gpu")
        pair.merged = replace(pair.merged, transcoders=exact, _replacement=None)
        with in_float64(pair.merged), InFloat64():
            return _full(pair, plain, ids)


def _weights(pair: ModelPair, ids: Tensor) -> Tensor:
    logits = pair.merged.next_logits(ids)
    top = logits.topk(4).indices
    weights = torch.zeros(2, len(logits))
    weights[0, top[0]], weights[0, top[1]], weights[1, top[2]] = 1.0, -1.0, 1.0
    return weights


def _logits_and_ablations(pair: ModelPair, plain: Plain, ids: Tensor) -> dict[str, float | str]:
    model = pair.merged
    real = plain.run(ids).logits
    ours = model.next_logits(ids).double()
    found: dict[str, float | str] = {"logits": _gap(ours.log_softmax(-1), real.log_softmax(-1))}
    state = ActivationCache.capture(model, ids)
    for name, position in (("last", len(ids) - 1), ("early", 12)):
        here = state.active[(state.active[:, 0] == 0) & (state.active[:, 1] == position)]
        # Not all of them: of a layer that writes nothing a norm behind the MLP makes noise.
        here = here[: (len(here) + 1) // 2]
        x = plain.run(ids).reads[0][position]
        removed = [
            write
            for node in here[:, 2].tolist()
            for write in plain.change((0, position, node), -plain.live(0, x, node))
        ]
        ablated = plain.run(ids, add=removed).logits
        row = [
            Intervention(layer=0, position=position, feature=node, mode=Mode.ABLATE)
            for node in here[:, 2].tolist()
        ]
        steered = run_rows(model, state, [row])[0].double()
        found[f"ablation, {name}"] = _gap(steered.softmax(-1), ablated.softmax(-1))
        # The effect itself must stand above what is compared.
        found[f"ablation, {name}, effect"] = _gap(real.softmax(-1), ablated.softmax(-1))
    return found


def _full(pair: ModelPair, plain: Plain, ids: Tensor) -> dict[str, float | str]:
    model, weights = pair.merged, _weights(pair, ids)
    nodes = choose_nodes(model, own_parts(model), ids, weights, n=N_NODES)
    edges = full_edges(model, nodes, ids, weights)
    layers = [nodes.parts[int(i)].layer for i in nodes.part]
    places = list(zip(layers, nodes.position.tolist(), nodes.id.tolist(), strict=True))
    undisturbed = plain.run(ids, nodes=places)
    amounts = [float(x) for x in undisturbed.live]

    def rows(seen: Seen) -> Tensor:
        return torch.stack([*seen.live, *(weights.double() @ seen.logits)])

    def slope(run: Callable[[float], Seen]) -> Tensor:
        return (rows(run(_STEP)) - rows(run(-_STEP))) / (2 * _STEP)

    def source(i: int, step: float, held: list[float] | None, gates: bool = False) -> Seen:
        add = plain.change(places[i], step * amounts[i])
        return plain.run(ids, nodes=places, held=held, add=add, gates=gates)

    chosen = list(range(0, len(places), max(1, len(places) // N_COLUMNS)))
    columns = torch.stack([slope(lambda h, i=i: source(i, h, amounts)) for i in chosen], 1)
    positions = [0, 1, len(ids) // 2, len(ids) - 1]
    tokens = torch.stack(
        [
            slope(lambda h, p=p: plain.run(ids, nodes=places, held=amounts, token=(p, h)))
            for p in positions
        ],
        1,
    )
    gradient = torch.stack([slope(lambda h, i=i: source(i, h, None)) for i in chosen], 1)[-2:]
    ours = gradient_effects(model, nodes, ids, weights)
    measured = measured_edges(model, nodes, ids, weights)
    still = rows(plain.run(ids, nodes=places, held=amounts, gates=True))
    removed = torch.stack([still - rows(source(i, -1.0, amounts, gates=True)) for i in chosen], 1)
    total = edges.total_effect()[:, : len(places)]
    return {
        "full edges": _share(edges.among[:, chosen], columns),
        "token edges": _share(edges.from_tokens[:, positions], tokens),
        "measured edges": _share(measured.values[:, chosen], removed, measured.values),
        "gradient": _share(ours[:, chosen], gradient),
        "total effect = gradient": _share(total, ours.double()),
    }


def _frozen(pair: ModelPair, plain: Plain, ids: Tensor) -> dict[str, float | str]:
    settings = AttributionSettings(edges="frozen", max_feature_nodes=None)
    prompt = Prompt.of(PROMPT, token_ids=tuple(ids.tolist()))
    try:
        graph = build_pair_graphs(pair, prompt, settings).merged
    except RequestError as error:
        return {"frozen edges": str(error)}
    layout, dense = graph.layout, graph.require_edges().to_dense().double()
    places = [tuple(place) for place in graph.selected_features.tolist()]
    frozen = Frozen(plain, ids)
    head = plain.hf.get_output_embeddings().weight
    directions = head[graph.targets.token_ids] - head.mean(0)
    run = partial(plain.run, ids, nodes=places, frozen=frozen)

    def rows(seen: Seen) -> Tensor:
        return torch.cat([torch.stack(seen.live), directions @ seen.final])

    undisturbed = run()
    amounts, still = [float(x) for x in undisturbed.live], rows(undisturbed)
    chosen = list(range(0, len(places), max(1, len(places) // N_COLUMNS)))
    columns = []
    for i in chosen:
        columns.append(rows(run(add=plain.change(places[i], amounts[i]))) - still)
    errors = []
    for layer in range(plain.n_layers):
        position = len(ids) // 2 + layer
        error = frozen.outputs[layer][0, position]
        error = error - plain.reconstructed(layer, position, frozen.reads)
        columns.append(rows(run(add=[(layer, position, error)])) - still)
        errors.append(layout.errors_of(layer).start + position)
    positions = [1, len(ids) // 2, len(ids) - 1]
    tokens = [rows(run(token=(p, 1.0))) - still for p in positions]
    targets = [*range(len(places)), *range(layout.logits.start, layout.logits.stop)]
    sources = [*chosen, *errors]
    of_tokens = [layout.tokens.start + p for p in positions]
    found: dict[str, float | str] = {
        "frozen edges": _share(dense[targets][:, sources], torch.stack(columns, 1)),
        "frozen token edges": _share(dense[targets][:, of_tokens], torch.stack(tokens, 1)),
    }
    if getattr(pair.merged.decoder.config, "final_logit_softcapping", None):
        return found  # frozen edges lead to logits before the cap, ablations are seen behind it
    features = graph.selected_features
    try:
        effects = ablation_effects(
            pair.merged,
            ActivationCache.capture(pair.merged, ids),
            features=features,
            targets=graph.targets.token_ids,
            regime=Regime.FROZEN_LINEAR,
        )
    except RequestError as refused:  # of cross-layer transcoders
        return found | {"frozen_linear = total effect": str(refused)}
    total = influence(graph, Targets.each(graph), Method.TOTAL_EFFECT).values[:, layout.features]
    found["frozen_linear = total effect"] = _share(effects.T.double(), total)
    return found


def _regimes(pair: ModelPair, ids: Tensor) -> dict[str, float | str]:
    """Every regime runs, and leaves an empty row alone."""
    state = ActivationCache.capture(pair.merged, ids)
    one = state.active[state.active[:, 1] > 0][:1]
    refused = []
    for regime in Regime:
        try:
            effect = ablation_effects(
                pair.merged, state, features=one, targets=torch.tensor([5]), regime=regime
            )
            still = run_rows(pair.merged, state, [[]], regime)[0]
        except RequestError as error:
            refused.append(f"{regime.value}: {error}")
            continue
        gap = (still - state.logits).abs().max() / state.logits.abs().max()
        if not torch.isfinite(effect).all() or gap > 1e-5:
            refused.append(f"{regime.value}: {float(gap):.1g} off an undisturbed row")
    return {"regimes": "; ".join(refused) or "all"}


def _gap(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())


def _share(ours: Tensor, true: Tensor, every: Tensor | None = None) -> float:
    """Largest difference as a share of the largest value, of all where only some are compared."""
    largest = (true if every is None else every).abs().max()
    return float((ours.double() - true.double()).abs().max() / largest)
