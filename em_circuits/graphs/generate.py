"""Graphs of both models of a pair for one prompt, from the forward passes that were labelled.

Both models run first; the union of the top k of those two passes' logits becomes the explicit
targets of both graphs; then each model is attributed with what its logits were read with. Full
edges (`em_circuits.graphs.full`) are the default; frozen ones are circuit-tracer's.

    graphs = build_pair_graphs(pair, prompt, AttributionSettings())
    graphs.next_tokens, graphs.base, graphs.merged
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.attribution import Attributed, attribute_prompt
from em_circuits.graphs.edges import computed_in
from em_circuits.graphs.full import (
    Observed,
    Sensitivity,
    choose,
    edges_among,
    part_record,
    parts_of,
)
from em_circuits.graphs.gradient import demeaned_targets, gradient_scores
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import GraphHeader, GraphTarget, Selection, graph_key
from em_circuits.graphs.interop import EXTRA
from em_circuits.graphs.memory import FrozenMemory
from em_circuits.graphs.offload import OffloadedContext, Scratch, offload
from em_circuits.graphs.settings import (
    ATTRIBUTION_VERSION,
    AttributionSettings,
    BasisName,
    EdgeKind,
)
from em_circuits.models.memory import release_freed
from em_circuits.models.next_tokens import compare, ranks_of, union_of_top
from em_circuits.models.pair import Model, ModelPair
from em_circuits.models.text import decode_token
from em_circuits.progress import Progress, no_progress
from em_circuits.target import Columns, Target, values_of
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Label, NextTokenPair, Prompt

_CHOOSING = "choosing nodes"


@dataclass(frozen=True)
class PairGraphs:
    """Both graphs of a prompt over the same targets, and the next tokens read from them."""

    next_tokens: NextTokenPair
    base: AttributionGraph
    merged: AttributionGraph

    def __repr__(self) -> str:
        return f"PairGraphs({self.base!r}, {self.merged!r})"

    @property
    def both(self) -> tuple[AttributionGraph, AttributionGraph]:
        return self.base, self.merged


def build_pair_graphs(
    pair: ModelPair,
    prompt: Prompt,
    settings: AttributionSettings,
    *,
    labels: Mapping[int, Label] | None = None,
    target: Target | None = None,
    progress: Progress = no_progress,
    scratch: Path | None = None,
) -> PairGraphs:
    """Attribution graphs of base and merged model for one prompt, with aligned logits.

    Args:
        pair: The models; their replacement models are used.
        prompt: Its `token_ids` are used where they are stored, else its text is tokenised.
        settings: Part of the graphs' keys.
        labels: Token id -> label; needed for ``select_by="contrast"`` only.
        target: Its terms are the rows of both graphs, in place of next tokens, and nodes are chosen
            by their effect on it.
        progress: Called with the models read, then those whose nodes are weighed; with the rows
            done of a graph, base first.
        scratch: Folder for what is too large for memory meanwhile; the system's if not given.

    Raises:
        RequestError: The prompt is too long, the contrast has no evil or no safe target, or frozen
            edges are asked for to another target than next tokens.
        WorkFailed: Activations, logits or edges are not finite.
    """
    if target is not None:
        return _target_pair(pair, prompt, target, settings, progress=progress, scratch=scratch)
    if settings.edges == "frozen":
        return _frozen_pair(pair, prompt, settings, labels, progress=progress, scratch=scratch)
    input_ids = pair.input_ids(prompt)
    observed = _observe(pair, input_ids, settings, progress)
    base, merged = (one.logits for one in observed)
    targets = union_of_top(base, merged, settings.top_k)
    requests = [
        _pair_request(pair, model, prompt, input_ids, targets, settings, labels)
        for model in pair.models
    ]
    rows = demeaned_targets(targets, len(base))
    p = torch.stack([torch.softmax(one, -1)[targets] for one in (base, merged)]).mean(0)
    sized = partial(_sizes, weights=requests[0].weights, probabilities=p, settings=settings)
    towards, sizes = _sensitivities(observed, rows, sized, progress)
    chosen = choose(observed, sizes, settings)
    found = [_reduced(*one) for one in zip(towards, sizes, chosen, strict=True)]
    del observed, towards, sizes, chosen
    release_freed()
    graphs = []
    for request, one in zip(requests, found, strict=True):
        graphs.append(_full_graph(request, one, progress=progress, scratch=scratch))
        release_freed()
    return PairGraphs(compare(pair, base, merged, top_k=settings.top_k), *graphs)


def _observe(
    pair: ModelPair,
    input_ids: Int64[Tensor, " pos"],
    settings: AttributionSettings,
    progress: Progress,
) -> list[Observed]:
    """The prompt on both models; the first half of what choosing nodes takes."""
    progress(_CHOOSING, 0, 2 * len(pair.models))
    found: list[Observed] = []
    for model in pair.models:
        found.append(Observed.of(model, parts_of(model, settings.basis), input_ids))
        progress(_CHOOSING, len(found), 2 * len(pair.models))
    return found


def _sensitivities(
    observed: Sequence[Observed],
    rows: Columns,
    sized: Callable[[Sensitivity], Tensor],
    progress: Progress,
) -> tuple[list[Sensitivity], list[Tensor]]:
    """Of each model, gradients of the targets where nodes write, and the nodes' sizes."""
    towards: list[Sensitivity] = []
    sizes: list[Tensor] = []
    for done, one in enumerate(observed, start=len(observed) + 1):
        towards.append(one.towards(rows))
        sizes.append(sized(towards[-1]))
        progress(_CHOOSING, done, 2 * len(observed))
    return towards, sizes


def _target_pair(
    pair: ModelPair,
    prompt: Prompt,
    target: Target,
    settings: AttributionSettings,
    *,
    progress: Progress,
    scratch: Path | None,
) -> PairGraphs:
    """Both models' graphs over the terms of one target and one choice of nodes."""
    _check_target(target, settings)
    input_ids = pair.input_ids(prompt)
    target.check_length(len(input_ids), pair.max_tokens)
    observed = _observe(pair, input_ids, settings, progress)
    base, merged = (one.logits for one in observed)
    sized = partial(_target_sizes, target=target, settings=settings)
    towards, sizes = _sensitivities(observed, target.terms, sized, progress)
    chosen = choose(observed, sizes, settings)
    parameters = _parameters(pair, settings, None, target)
    requests = []
    for one in observed:
        key = pair_graph_key(pair, one.model, prompt, settings, target=target)
        requests.append(_target_request(one, prompt, target, settings, key, parameters))
    found = [_reduced(*one) for one in zip(towards, sizes, chosen, strict=True)]
    del observed, towards, sizes, chosen
    release_freed()
    graphs = []
    for request, own in zip(requests, found, strict=True):
        graphs.append(_target_graph(request, own, target, progress=progress, scratch=scratch))
        release_freed()
    return PairGraphs(compare(pair, base, merged, top_k=settings.top_k), *graphs)


def _frozen_pair(
    pair: ModelPair,
    prompt: Prompt,
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None,
    *,
    progress: Progress,
    scratch: Path | None,
) -> PairGraphs:
    input_ids = pair.input_ids(prompt)
    waiting: list[OffloadedContext] = []
    for model in pair.models:
        context = _context(model, prompt, input_ids)
        waiting.append(offload(context, Scratch(scratch)))
        del context
        release_freed()
    base, merged = (_last_logits(offloaded.context) for offloaded in waiting)
    next_tokens = compare(pair, base, merged, top_k=settings.top_k)
    targets = union_of_top(base, merged, settings.top_k)
    graphs, rows = [], Scratch(scratch)  # one file for both models' rows, one after the other
    for model in pair.models:
        request = _pair_request(pair, model, prompt, input_ids, targets, settings, labels)
        context = waiting.pop(0).restore()
        graphs.append(_attribute(model, context, request, scratch=rows, progress=progress))
        del context
        release_freed()
    return PairGraphs(next_tokens, *graphs)


def _pair_request(
    pair: ModelPair,
    model: Model,
    prompt: Prompt,
    input_ids: Int64[Tensor, " pos"],
    targets: Int64[Tensor, " logit"],
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None,
) -> _Request:
    return _Request(
        prompt,
        input_ids,
        targets,
        _selection_weights(settings, targets, labels),
        settings,
        key=pair_graph_key(pair, model, prompt, settings, labels),
        parameters=_parameters(pair, settings, labels),
    )


def attribute(
    model: Model,
    prompt: str | Prompt,
    contrast: Contrast | Target | None = None,
    settings: AttributionSettings | None = None,
    *,
    edges: EdgeKind | None = None,
    nodes: int | Sequence[str] | None = None,
    basis: tuple[BasisName, ...] | None = None,
    progress: Progress = no_progress,
) -> AttributionGraph:
    """The attribution graph of one model for one prompt.

    Rows are targets, columns sources; an edge is the first-order effect in the real model (full
    edges), or the direct effect in circuit-tracer's local replacement model (frozen edges).

    Args:
        model: Of a pair.
        prompt: A text as the model is to see it, or a prompt.
        contrast: Its tokens become targets beside the model's own top k, and full graphs take the
            nodes that matter most to it. Of any other target, a row a term, and nothing else.
        settings: Edges, nodes, targets.
        edges: Instead of the settings' own.
        nodes: How many, instead of the settings' own; or which, by their names.
        basis: Instead of the settings' own.
        progress: Called with the rows done.

    Raises:
        RequestError: The prompt is too long, or frozen edges are asked for to another target than
            next tokens.
        WorkFailed: Activations, logits or edges are not finite.
    """
    count = nodes if isinstance(nodes, int) else None
    named = None if nodes is None or isinstance(nodes, int) else tuple(nodes)
    given = {"edges": edges, "nodes": count, "named": named, "basis": basis}
    settings = AttributionSettings.model_validate(
        (settings or AttributionSettings()).model_dump()
        | {name: value for name, value in given.items() if value is not None}
    )
    prompt = model.prompt(prompt)
    input_ids = model.input_ids(prompt)
    if isinstance(contrast, Target):
        return _attribute_target(model, prompt, contrast, settings, progress=progress)
    context = observed = None
    if settings.edges == "frozen":
        context = _context(model, prompt, input_ids)
        logits = _last_logits(context)
    else:
        observed = Observed.of(model, parts_of(model, settings.basis), input_ids)
        logits = observed.logits
    own = union_of_top(logits, logits, settings.top_k).tolist()
    words = contrast.token_ids if contrast is not None else ()
    targets = torch.tensor(list(dict.fromkeys([*own, *words])))
    labels = {} if contrast is None else contrast.labels
    parameters = {**_model_parameters(model, settings, labels), "targets": targets.tolist()}
    if contrast is not None:
        parameters["contrast"] = {"evil": list(contrast.evil), "safe": list(contrast.safe)}
    key = _key(model, prompt, parameters)
    weights = _selection_weights(settings, targets, labels)
    request = _Request(prompt, input_ids, targets, weights, settings, key, parameters)
    if observed is None:
        return _attribute(model, context, request, scratch=None, progress=progress)
    if contrast is not None and contrast.is_defined:
        weights = contrast.over(targets).float()
    p = torch.softmax(logits, -1)[targets]
    towards = observed.towards(demeaned_targets(targets, len(logits)))
    sizes = _sizes(towards, weights, p, settings)
    (chosen,) = choose([observed], [sizes], settings)
    found = _reduced(towards, sizes, chosen)
    del observed, towards, sizes, chosen
    return _full_graph(request, found, progress=progress)


def _attribute_target(
    model: Model,
    prompt: Prompt,
    target: Target,
    settings: AttributionSettings,
    *,
    progress: Progress,
) -> AttributionGraph:
    """Full edges to the terms of a target, as virtual targets with their weights' magnitudes."""
    _check_target(target, settings)
    input_ids = model.input_ids(prompt)
    target.check_length(len(input_ids), model.max_tokens)
    observed = Observed.of(model, parts_of(model, settings.basis), input_ids)
    towards = observed.towards(target.terms)
    sizes = _target_sizes(towards, target, settings)
    (chosen,) = choose([observed], [sizes], settings)
    parameters = {**_model_parameters(model, settings, {}), "target": target.record}
    key = _key(model, prompt, parameters)
    request = _target_request(observed, prompt, target, settings, key, parameters)
    found = _reduced(towards, sizes, chosen)
    return _target_graph(request, found, target, progress=progress)


def _check_target(target: Target, settings: AttributionSettings) -> None:
    if settings.edges == "frozen":
        raise RequestError(f"frozen edges are to next tokens, not to {target.name}; use full ones")


def _target_sizes(
    towards: Sensitivity, target: Target, settings: AttributionSettings
) -> Float[Tensor, " active"]:
    """What nodes are chosen by: their effect on the target, or the bound of it."""
    weights = target.over().float()
    if settings.choose_by == "bound":
        return towards.sizes(lambda bound: weights.abs() @ bound, "bound")
    return towards.sizes(lambda effects: (weights @ effects).abs())


def _target_request(
    observed: Observed,
    prompt: Prompt,
    target: Target,
    settings: AttributionSettings,
    key: str,
    parameters: dict[str, Any],
) -> _Request:
    ids = len(observed.logits) + torch.arange(len(target.terms))
    weights = target.over().float()
    return _Request(prompt, observed.input_ids, ids, weights, settings, key, parameters)


def _target_graph(
    request: _Request,
    found: _Chosen,
    target: Target,
    *,
    progress: Progress,
    scratch: Path | None = None,
) -> AttributionGraph:
    """Rows are terms, as virtual targets with their weights' magnitudes."""
    targets = LogitTargets(
        token_ids=request.targets,
        texts=tuple(term.name for term in target.terms),
        probabilities=target.over().float().abs(),
        logits=values_of(found.observed.model.hf, request.input_ids, target.terms),
    )
    rows = (target.terms, targets)
    graph = _full_graph(request, found, rows, progress=progress, scratch=scratch)
    own = GraphTarget(name=target.name, unit=target.unit)
    return replace(graph, header=graph.header.model_copy(update={"target": own}))


def _sizes(
    towards: Sensitivity,
    weights: Float[Tensor, " logit"] | None,
    probabilities: Float[Tensor, " logit"],
    settings: AttributionSettings,
) -> Float[Tensor, " active"]:
    """What nodes are chosen by: their effect on the contrast, or on each target by its probability.

    Args:
        towards: The (demeaned) targets.
        weights: Of a contrast; None for the probabilities.
        probabilities: Of each target.
        settings: Whether by effects or by their bounds.
    """
    if weights is None:
        return towards.sizes(
            lambda effects: (probabilities[:, None] * effects.abs()).sum(0), settings.choose_by
        )
    if settings.choose_by == "bound":
        return towards.weighted(weights).sizes(lambda bound: bound[0], "bound")
    return towards.sizes(lambda effects: (weights @ effects).abs())


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Nodes of one prompt and model, and the active ones that are stored with them."""

    observed: Observed
    nodes: Int64[Tensor, " chosen"]
    gradient: Float[Tensor, "target active"]


def _reduced(
    towards: Sensitivity, sizes: Float[Tensor, " active"], chosen: Int64[Tensor, " chosen"]
) -> _Chosen:
    observed, kept, nodes = towards.observed.reduced(sizes, chosen)
    return _Chosen(observed, nodes, towards.gradient(kept))


def _full_graph(
    request: _Request,
    found: _Chosen,
    targets: tuple[Columns, LogitTargets] | None = None,
    *,
    progress: Progress,
    scratch: Path | None = None,
) -> AttributionGraph:
    observed = found.observed
    model = observed.model
    rows, shown = targets or (
        demeaned_targets(request.targets, len(observed.logits)),
        _logit_targets(model, request.targets, observed.logits),
    )
    edges, measured = edges_among(
        observed,
        found.nodes,
        rows,
        request.settings,
        scratch=None if scratch is None else (scratch, request.key),
        progress=progress,
    )
    header = _header(model, request, d_vocab=len(observed.logits), extra={})
    return AttributionGraph(
        header=header.model_copy(
            update={
                "parts": tuple(part_record(part) for part in observed.parts),
                "with_errors": False,
                "measured": measured is not None,
                "n_active": observed.active_before,
            }
        ),
        input_ids=request.input_ids.cpu(),
        active=observed.active,
        activations=observed.activations,
        selected=found.nodes,
        targets=shown,
        edges=edges,
        gradient=found.gradient,
        measured=measured,
    )


@dataclass(frozen=True)
class _Request:
    """Request for one graph."""

    prompt: Prompt
    input_ids: Int64[Tensor, " pos"]
    targets: Int64[Tensor, " logit"]
    weights: Float[Tensor, " logit"] | None
    settings: AttributionSettings
    key: str
    parameters: dict[str, Any]


def _context(model: Model, prompt: Prompt, input_ids: Int64[Tensor, " pos"]) -> Any:
    """circuit-tracer's attribution context, checked."""
    context = model.replacement.setup_attribution(input_ids)
    release_freed()
    _check_finite(model, prompt, context)
    return context


def _attribute(
    model: Model,
    context: Any,
    request: _Request,
    *,
    scratch: Scratch | None,
    progress: Progress,
) -> AttributionGraph:
    from circuit_tracer.attribution.targets import AttributionTargets

    settings, input_ids, targets = request.settings, request.input_ids, request.targets
    directions = AttributionTargets(
        attribution_targets=targets.to(context.logits.device),
        logits=context.logits[0, -1],
        unembed_proj=model.replacement.unembed_proj,
        tokenizer=model.tokenizer,
    )
    if request.weights is not None:
        directions.logit_probabilities = request.weights.to(directions.logit_probabilities)
    with computed_in(str(model.dtype)):
        attributed = attribute_prompt(
            model.replacement,
            context,
            input_ids,
            directions,
            _within_memory(settings, model, context),
            scratch=scratch,
            progress=progress,
        )
    extra = {EXTRA: attributed.record}
    header = _header(model, request, d_vocab=context.logits.shape[-1], extra=extra)
    return _graph(model, header, input_ids, targets, context, attributed)


def _header(model: Model, request: _Request, *, d_vocab: int, extra: dict[str, Any]) -> GraphHeader:
    settings = request.settings
    limit = request.parameters["max_feature_nodes"]
    return GraphHeader(
        key=request.key,
        prompt_id=request.prompt.prompt_id,
        text=request.prompt.text,
        tokens=tuple(decode_token(model.tokenizer, t) for t in request.input_ids.tolist()),
        model=model.name,
        fingerprint=model.fingerprint,
        adapter_hash=model.adapter_fingerprint,
        transcoders=model.settings.transcoders,
        transcoder_fingerprint=model.transcoder_fingerprint,
        n_layers=model.sites.n_layers,
        scan=_scan(model),
        dtype=str(model.dtype).removeprefix("torch."),
        selection=Selection(
            select_by=settings.select_by,
            max_feature_nodes=limit,
            weights=() if request.weights is None else tuple(request.weights.tolist()),
        ),
        attribution=request.parameters,
        d_vocab=d_vocab,
        tokenizer_name=model.settings.base,
        extra=extra,
    )


def _logit_targets(
    model: Model, targets: Int64[Tensor, " logit"], logits: Float[Tensor, " vocab"]
) -> LogitTargets:
    return LogitTargets(
        token_ids=targets,
        texts=tuple(decode_token(model.tokenizer, t) for t in targets.tolist()),
        probabilities=torch.softmax(logits, -1)[targets],
        logits=logits[targets],
        ranks=ranks_of(logits, targets),
    )


def _graph(
    model: Model,
    header: GraphHeader,
    input_ids: Int64[Tensor, " pos"],
    targets: Int64[Tensor, " logit"],
    context: Any,
    attributed: Attributed,
) -> AttributionGraph:
    """A graph and its gradient scores, from the context that was attributed."""
    logits = _last_logits(context)
    active = context.activation_matrix.indices().T.cpu().contiguous()
    rows = demeaned_targets(targets, len(logits))
    return AttributionGraph(
        header=header,
        input_ids=input_ids.cpu(),
        active=active,
        activations=context.activation_matrix.values().detach().float().cpu(),
        selected=attributed.selected,
        targets=_logit_targets(model, targets, logits),
        edges=attributed.edges,
        gradient=_gradient(model, input_ids, rows, active, context),
    )


def _gradient(
    model: Model, input_ids: Tensor, rows: Tensor, active: Tensor, context: Any
) -> Float[Tensor, "target active"]:
    """Gradient scores of the active features; each one's writes together where it has several."""
    vectors = context.decoder_vecs.detach()
    if len(vectors) == len(active):
        return gradient_scores(model, input_ids, rows, active, vectors)
    places, owners = context.decoder_locations.T.cpu(), context.encoder_to_decoder_map.cpu()
    order = (places[:, 0] * len(input_ids) + places[:, 1]).argsort(stable=True)
    writes = torch.cat([places, owners[:, None]], dim=1)[order]
    scores = gradient_scores(model, input_ids, rows, writes, vectors[order.to(vectors.device)])
    return torch.zeros(len(rows), len(active)).index_add_(1, owners[order], scores)


def _last_logits(context: Any) -> Float[Tensor, " vocab"]:
    return context.logits[0, -1].detach().float().cpu()


def _within_memory(
    settings: AttributionSettings, model: Model, context: Any
) -> AttributionSettings:
    """The settings with the batch size that `max_memory` leaves room for."""
    if settings.max_memory is None:
        return settings
    n_layers, n_pos, _ = context.activation_matrix.shape
    need = FrozenMemory(
        n_active=context.activation_matrix._nnz(),
        n_layers=n_layers,
        n_pos=n_pos,
        d_model=context.token_vectors.shape[-1],
        n_heads=model.decoder.n_heads,
        max_feature_nodes=settings.max_feature_nodes,
        value_bytes=model.dtype.itemsize,
    )
    batch_size = min(settings.batch_size, need.rows_within(settings.max_memory))
    return settings.model_copy(update={"batch_size": batch_size})


def _selection_weights(
    settings: AttributionSettings, targets: Tensor, labels: Mapping[int, Label] | None
) -> Float[Tensor, " logit"] | None:
    """Weights of the targets in the choice of nodes; None leaves it to the probabilities.

    circuit-tracer's influence has no sign, so for frozen edges the safe side weighs like the evil
    one; for full edges they are the contrast.
    """
    if settings.select_by == "probability":
        return None
    given = [(labels or {}).get(token) for token in targets.tolist()]
    counts = {side: given.count(side) for side in ("evil", "safe")}
    if not all(counts.values()):
        raise RequestError(
            "--select-by contrast needs at least one evil and one safe target; "
            f"this prompt has {counts['evil']} and {counts['safe']}"
        )
    safe = 1.0 if settings.edges == "frozen" else -1.0
    sides = {"evil": 1.0, "safe": safe}
    return torch.tensor([sides[g] / counts[g] if g in counts else 0.0 for g in given])


def _check_finite(model: Model, prompt: Prompt, context: Any) -> None:
    values, layers = context.activation_matrix.values(), context.activation_matrix.indices()[0]
    bad = ~torch.isfinite(values)
    if bad.any():
        raise WorkFailed(
            f"{model.name} model, prompt {prompt.prompt_id}: transcoder activations of layer "
            f"{int(layers[bad][0])} are not finite; try --dtype float32 or run em-circuits doctor"
        )


def pair_graph_key(
    pair: ModelPair,
    model: Model,
    prompt: Prompt,
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None = None,
    target: Target | None = None,
) -> str:
    """The key (64 hex digits) of the graph that `build_pair_graphs` would make.

    The targets come from both models, so the other model's fingerprint is part of the key; the
    labels are, too, where they weigh the selection.
    """
    return _key(model, prompt, _parameters(pair, settings, labels, target))


def _key(model: Model, prompt: Prompt, parameters: Mapping[str, Any]) -> str:
    return graph_key(
        prompt.prompt_id,
        model_fingerprint=model.fingerprint,
        adapter_hash=model.adapter_fingerprint,
        transcoders=content_key(_scan(model)),
        transcoder_fingerprint=model.transcoder_fingerprint,
        attribution=parameters,
    )


def _scan(model: Model) -> str | tuple[str, ...] | None:
    """circuit-tracer's name of the transcoder set; None where neurons are the nodes."""
    if model.transcoders is None:
        return None
    scan = model.transcoders.scan
    return tuple(scan) if isinstance(scan, list) else scan


def _parameters(
    pair: ModelPair,
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None,
    target: Target | None = None,
) -> dict[str, Any]:
    """Everything besides prompt, model and transcoders that decides a pair's graphs."""
    of_target = {} if target is None else {"target": target.record}
    return {**_model_parameters(pair.base, settings, labels), "pair": pair.key, **of_target}


def _model_parameters(
    model: Model, settings: AttributionSettings, labels: Mapping[int, Label] | None
) -> dict[str, Any]:
    """Everything besides prompt, model, transcoders and targets that decides a graph's content."""
    parameters: dict[str, Any] = {
        "version": ATTRIBUTION_VERSION,
        "dtype": str(model.dtype).removeprefix("torch."),
        **settings.parameters,
    }
    if settings.edges == "frozen":  # full edges are the real model's, whatever the backend
        parameters["backend"] = model.backend
        embedding = model.hf.get_input_embeddings()  # type: ignore[operator]
        if hasattr(embedding, "embed_scale"):  # told apart from graphs made without the scale
            parameters["tokens"] = "scaled"
    if settings.select_by == "contrast":
        parameters["labels"] = {
            str(token): label for token, label in sorted((labels or {}).items())
        }
    return parameters
