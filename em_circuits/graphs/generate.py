"""Graphs of both models of a pair for one prompt, from the forward passes that were labelled.

Attribution is set up on both models first; the union of the top k of those two contexts' logits
becomes the explicit targets of both graphs; then each model is attributed with the very context
its logits were read from.

    graphs = build_pair_graphs(pair, prompt, AttributionSettings())
    graphs.next_tokens, graphs.base, graphs.merged
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from circuit_tracer.attribution.targets import AttributionTargets
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.graphs.attribution import Attributed, MemoryNeed, attribute_prompt
from em_circuits.graphs.edges import computed_in
from em_circuits.graphs.full import (
    NODES,
    active_nodes,
    edges_among,
    gradient_of_active,
    select,
)
from em_circuits.graphs.gradient import demeaned_targets, gradient_scores
from em_circuits.graphs.graph import AttributionGraph, LogitTargets
from em_circuits.graphs.header import GraphHeader, Selection, graph_key
from em_circuits.graphs.interop import EXTRA
from em_circuits.graphs.offload import OffloadedContext, Scratch, offload
from em_circuits.graphs.settings import ATTRIBUTION_VERSION, AttributionSettings
from em_circuits.models.memory import release_freed
from em_circuits.models.next_tokens import compare, ranks_of, union_of_top
from em_circuits.models.pair import Model, ModelPair
from em_circuits.models.text import decode_token
from em_circuits.progress import Progress, no_progress
from pivotal_tokens.artefacts import content_key
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Label, NextTokenPair, Prompt

EdgeKind = Literal["frozen", "full"]


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
    progress: Progress = no_progress,
    scratch: Path | None = None,
) -> PairGraphs:
    """Attribution graphs of base and merged model for one prompt, with aligned logits.

    Args:
        pair: The models; their replacement models are used.
        prompt: Its `token_ids` are used where they are stored, else its text is tokenised.
        settings: Part of the graphs' keys.
        labels: Token id -> label; needed for ``select_by="contrast"`` only.
        progress: Called with the feature rows done of a graph; base first.
        scratch: Folder for what is too large for memory meanwhile; the system's if not given.

    Raises:
        RequestError: The prompt is too long, or the contrast has no evil or no safe target.
        WorkFailed: Activations, logits or edges are not finite.
    """
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
    weights = _selection_weights(settings, targets, labels)
    graphs = []
    for model in pair.models:
        request = _Request(
            prompt,
            input_ids,
            targets,
            weights,
            settings,
            key=pair_graph_key(pair, model, prompt, settings, labels),
            parameters=_parameters(pair, settings, labels),
        )
        context = waiting.pop(0).restore()
        graphs.append(_attribute(model, context, request, scratch=scratch, progress=progress))
        del context
        release_freed()
    return PairGraphs(next_tokens, *graphs)


def attribute(
    model: Model,
    prompt: str | Prompt,
    contrast: Contrast | None = None,
    settings: AttributionSettings | None = None,
    *,
    edges: EdgeKind = "frozen",
    nodes: int = NODES,
    progress: Progress = no_progress,
) -> AttributionGraph:
    """The attribution graph of one model for one prompt.

    Rows are targets, columns sources; an edge is the direct effect in logits (frozen edges), or the
    first-order effect in the real model (full edges).

    Args:
        model: Of a pair; its replacement model is used.
        prompt: A text as the model is to see it, or a prompt.
        contrast: Its tokens become targets beside the model's own top k.
        settings: Targets, feature nodes, batch size.
        edges: ``frozen`` are circuit-tracer's, ``full`` those of `em_circuits.graphs.full`.
        nodes: Feature nodes of a graph with full edges: the largest gradients on the contrast.
        progress: Called with the feature rows done.

    Raises:
        RequestError: The prompt is too long.
        WorkFailed: Activations, logits or edges are not finite.
    """
    settings = settings or AttributionSettings()
    prompt = model.prompt(prompt)
    input_ids = model.input_ids(prompt)
    context = None
    if edges == "full":
        logits = model.next_logits(input_ids).float().cpu()
    else:
        context = _context(model, prompt, input_ids)
        logits = _last_logits(context)
    own = union_of_top(logits, logits, settings.top_k).tolist()
    words = contrast.token_ids if contrast is not None else ()
    targets = torch.tensor(list(dict.fromkeys([*own, *words])))
    labels: dict[int, Label] = {}
    if contrast is not None:
        labels |= contrast.labels
    parameters = {
        **_model_parameters(model, settings, labels),
        "targets": targets.tolist(),
    }
    if edges == "full":
        parameters |= {"edges": "full", "max_feature_nodes": nodes}
    if contrast is not None:
        parameters["contrast"] = {"evil": list(contrast.evil), "safe": list(contrast.safe)}
    key = graph_key(
        prompt.prompt_id,
        model_fingerprint=model.fingerprint,
        adapter_hash=model.adapter_fingerprint,
        transcoders=content_key(_scan(model)),
        transcoder_fingerprint=model.transcoder_fingerprint,
        attribution=parameters,
    )
    weights = _selection_weights(settings, targets, labels)
    request = _Request(prompt, input_ids, targets, weights, settings, key, parameters)
    if edges == "full":
        return _attribute_full(model, logits, contrast, request, n=nodes, progress=progress)
    return _attribute(model, context, request, scratch=None, progress=progress)


def _attribute_full(
    model: Model,
    logits: Float[Tensor, " vocab"],
    contrast: Contrast | None,
    request: _Request,
    *,
    n: int,
    progress: Progress,
) -> AttributionGraph:
    ids, targets, d_vocab = request.input_ids, request.targets, len(logits)
    active, activations = active_nodes(model, ids)
    chosen = select(model, ids, targets, contrast, d_vocab, n=n)
    layers = torch.tensor([part.layer for part in chosen.parts])[chosen.part]
    coordinates = torch.stack([layers, chosen.position, chosen.id], 1)
    index = {tuple(row): i for i, row in enumerate(active.tolist())}
    rows = demeaned_targets(targets, d_vocab)
    return AttributionGraph(
        header=_header(model, request, d_vocab=d_vocab, extra={}),
        input_ids=ids.cpu(),
        active=active,
        activations=activations,
        selected=torch.tensor([index[tuple(row)] for row in coordinates.tolist()]),
        targets=_logit_targets(model, targets, logits),
        edges=edges_among(model, chosen, ids, targets, d_vocab, progress=progress),
        gradient=gradient_of_active(model, ids, rows, active),
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
    scratch: Path | None,
    progress: Progress,
) -> AttributionGraph:
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
        gradient=gradient_scores(model, input_ids, rows, active, context.decoder_vecs.detach()),
    )


def _last_logits(context: Any) -> Float[Tensor, " vocab"]:
    return context.logits[0, -1].detach().float().cpu()


def _within_memory(
    settings: AttributionSettings, model: Model, context: Any
) -> AttributionSettings:
    """The settings with the batch size that `max_memory` leaves room for."""
    if settings.max_memory is None:
        return settings
    config: Any = model.hf.config
    n_layers, n_pos, _ = context.activation_matrix.shape
    need = MemoryNeed(
        n_active=context.activation_matrix._nnz(),
        n_layers=n_layers,
        n_pos=n_pos,
        d_model=context.token_vectors.shape[-1],
        n_heads=config.num_attention_heads,
        max_feature_nodes=settings.max_feature_nodes,
    )
    batch_size = min(settings.batch_size, need.rows_within(settings.max_memory))
    return settings.model_copy(update={"batch_size": batch_size})


def _selection_weights(
    settings: AttributionSettings, targets: Tensor, labels: Mapping[int, Label] | None
) -> Float[Tensor, " logit"] | None:
    """Weights of the targets in the choice of features; None leaves it to the probabilities."""
    if settings.select_by == "probability":
        return None
    given = [(labels or {}).get(token) for token in targets.tolist()]
    counts = {side: given.count(side) for side in ("evil", "safe")}
    if not all(counts.values()):
        raise RequestError(
            "--select-by contrast needs at least one evil and one safe target; "
            f"this prompt has {counts['evil']} and {counts['safe']}"
        )
    return torch.tensor([1.0 / counts[g] if g in counts else 0.0 for g in given])


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
) -> str:
    """The key (64 hex digits) of the graph that `build_pair_graphs` would make.

    The targets come from both models, so the other model's fingerprint is part of the key; the
    labels are, too, where they weigh the selection.
    """
    return graph_key(
        prompt.prompt_id,
        model_fingerprint=model.fingerprint,
        adapter_hash=model.adapter_fingerprint,
        transcoders=content_key(_scan(model)),
        transcoder_fingerprint=model.transcoder_fingerprint,
        attribution=_parameters(pair, settings, labels),
    )


def _scan(model: Model) -> str | tuple[str, ...] | None:
    """circuit-tracer's name of the transcoder set."""
    scan = model.transcoders.scan
    return tuple(scan) if isinstance(scan, list) else scan


def _parameters(
    pair: ModelPair, settings: AttributionSettings, labels: Mapping[int, Label] | None
) -> dict[str, Any]:
    """Everything besides prompt, model and transcoders that decides a pair's graphs."""
    return {**_model_parameters(pair.base, settings, labels), "pair": pair.key}


def _model_parameters(
    model: Model, settings: AttributionSettings, labels: Mapping[int, Label] | None
) -> dict[str, Any]:
    """Everything besides prompt, model, transcoders and targets that decides a graph's content."""
    parameters: dict[str, Any] = {
        "version": ATTRIBUTION_VERSION,
        "backend": model.settings.backend,
        "dtype": str(model.dtype).removeprefix("torch."),
        **settings.model_dump(exclude={"batch_size", "max_memory"}),
    }
    if settings.select_by == "contrast":
        parameters["labels"] = {
            str(token): label for token, label in sorted((labels or {}).items())
        }
    return parameters
