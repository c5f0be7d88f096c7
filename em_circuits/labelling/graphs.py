"""Both graphs of a prompt: built, stored, registered and looked up.

    keys = build_graphs(work, prompt, AttributionSettings())       # {"base": key, "merged": key}

The order is: graph file, provenance, the graph's own next tokens, database row. Whoever finds the
row finds the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, get_args

from pydantic import TypeAdapter

from em_circuits.graphs import (
    AttributionGraph,
    AttributionSettings,
    PairGraphs,
    build_pair_graphs,
    pair_graph_key,
)
from em_circuits.models.check import Check
from em_circuits.models.memory import release_freed
from em_circuits.models.memory_error import ran_out
from em_circuits.target import Target
from em_circuits.target_request import TargetRequest
from em_circuits.workspace import Workspace
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.errors import WorkFailed
from pivotal_tokens.schema import Frozen, GraphRecord, Label, ModelName, Prompt

logger = logging.getLogger(__name__)

_LEAST_ROWS = 8
"""Rows at once below which a graph is not tried again."""


def graph_keys(
    work: Workspace,
    prompt: Prompt,
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None = None,
    target: Target | None = None,
) -> dict[str, str]:
    """Keys of the graphs that `build_graphs` would build, by model."""
    return {
        model.name: pair_graph_key(work.pair, model, prompt, settings, labels, target)
        for model in work.pair.models
    }


def build_graphs(
    work: Workspace,
    prompt: Prompt,
    settings: AttributionSettings,
    *,
    labels: Mapping[int, Label] | None = None,
    target: Target | None = None,
    scores_only: bool = False,
) -> dict[str, str]:
    """Build and store both graphs of a prompt, with the logits that they start from.

    Args:
        labels: Needed for ``select_by="contrast"``.
        target: What the graphs are of, in place of next tokens.

    Returns:
        ``base`` and ``merged`` -> key.

    Raises:
        RequestError: See `build_pair_graphs`.
        WorkFailed: The models are not what they are said to be, or a value is not finite.
    """
    started = datetime.now(UTC)
    work.require_healthy(prompt)
    built = _built(work, prompt, settings, labels, target)
    if work.pair.transcoders is not None and not settings.basis:
        places = work.pair.base.sites.n_layers * max(1, len(built.base.input_ids) - 1)
        width = work.pair.base.dictionaries[0].width
        active = max(graph.header.n_active or len(graph.active) for graph in built.both)
        work.keep_density(max(active, 1) / (places * width))
    records = []
    for name, graph in zip(get_args(ModelName), built.both, strict=True):
        stored = graph.without_edges() if scores_only else graph
        records.append(_store(work, stored, name, started))
    tokens = built.next_tokens
    work.register_pair()
    work.store.results.put_next_tokens(prompt.prompt_id, work.pair.key, tokens.base, tokens.merged)
    for record in records:
        work.store.graphs.put(record)
    return {record.model: record.key for record in records}


class BuiltGraphs(Frozen):
    """Both graphs of a prompt: model -> key."""

    prompt_id: str
    graphs: dict[str, str]
    reused: bool
    target: str | None = None
    """What they are of; null for next tokens."""


def graphs_of_prompt(
    work: Workspace,
    prompt: Prompt,
    settings: AttributionSettings,
    *,
    target: TargetRequest,
    scores_only: bool = False,
) -> BuiltGraphs:
    """Both graphs of a prompt, built where they are not there yet.

    Raises:
        RequestError: See `build_pair_graphs` and `TargetRequest.build`.
        WorkFailed: See `build_graphs`.
    """
    labels = work.store.labels.of(prompt.prompt_id).by_token
    built_for = target.build(work, prompt)
    keys = graph_keys(work, prompt, settings, labels, built_for)
    reused = has_graphs(work, prompt.prompt_id, keys, with_edges=not scores_only)
    if not reused:
        keys = build_graphs(
            work, prompt, settings, labels=labels, target=built_for, scores_only=scores_only
        )
    return BuiltGraphs(
        prompt_id=prompt.prompt_id,
        graphs=keys,
        reused=reused,
        target=None if built_for is None else built_for.name,
    )


def _built(
    work: Workspace,
    prompt: Prompt,
    settings: AttributionSettings,
    labels: Mapping[int, Label] | None,
    target: Target | None,
) -> PairGraphs:
    """Both graphs; where memory runs out, again with half as many rows at once.

    Raises:
        WorkFailed: If it does not suffice for a few rows either.
    """
    while True:
        try:
            return build_pair_graphs(
                work.pair,
                prompt,
                settings,
                labels=labels,
                target=target,
                progress=work.progress,
                scratch=work.graphs.root,
            )
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            reason = " ".join(str(error).split())[:120]
        # After the exception, whose frames hold what was computed.
        if settings.batch_size <= _LEAST_ROWS:
            plan = work.plan(work.pair.length(prompt))
            raise WorkFailed(
                f"out of memory ({reason}); the graphs take {plan.attribution / 1e9:.2f} GB beside "
                "the models: ask for fewer --nodes (--max-features), or a shorter prompt"
            )
        settings = settings.model_copy(update={"batch_size": settings.batch_size // 2})
        release_freed()
        logger.warning("out of memory; again with --batch-size %d", settings.batch_size)


def has_graphs(
    work: Workspace, prompt_id: str, keys: Mapping[str, str], *, with_edges: bool = True
) -> bool:
    """Whether graphs of these keys are on disk and in the store, so that none need be built.

    A file that is not what was written is named in a warning and put aside.
    """
    registered = {record.key for record in work.store.graphs.all(prompt_id, work.pair.key)}
    return all(
        key in registered
        and work.graphs.has_sound(key)
        and (not with_edges or work.graphs.load(key).edges is not None)
        for key in keys.values()
    )


def with_graphs(work: Workspace, *, whole: bool = False) -> set[str]:
    """Prompts whose graphs of both models, to next tokens, are registered and on the disk; `whole`:
    and sound."""
    there = work.graphs.has_sound if whole else work.graphs.has
    models: dict[str, set[str]] = {}
    for record in work.store.graphs.all(pair=work.pair.key):
        if there(record.key) and work.graphs.header(record.key).target is None:
            models.setdefault(record.prompt_id, set()).add(record.model)
    return {prompt_id for prompt_id, found in models.items() if found == {"base", "merged"}}


def _store(
    work: Workspace, graph: AttributionGraph, model: ModelName, started: datetime
) -> GraphRecord:
    path = work.graphs.save(graph, _provenance(work, graph, started))
    return GraphRecord(
        key=graph.header.key,
        prompt_id=graph.header.prompt_id,
        pair=work.pair.key,
        model=model,
        path=str(path.relative_to(work.root)),
        sha256=sha256_file(path),
        bytes=path.stat().st_size,
    )


def _provenance(work: Workspace, graph: AttributionGraph, started: datetime) -> dict[str, Any]:
    pair = work.pair
    return {
        "inputs": {
            "prompt_id": graph.header.prompt_id,
            "model": graph.header.fingerprint,
            "adapter": graph.header.adapter_hash,
            "transcoders": graph.header.transcoder_fingerprint,
            "pair": pair.key,
        },
        "config": {
            "models": pair.settings.model_dump()
            | {"device": str(pair.device), "dtype": graph.header.dtype},
            "health": TypeAdapter(tuple[Check, ...]).dump_python(work.warnings),
            "revisions": {name: source.revision for name, source in pair.sources.items()},
            "attribution": graph.header.attribution,
        },
        "device": str(pair.device),
        "dtype": graph.header.dtype,
        "seed": work.seed,
        "started_at": started.isoformat(),
    }
