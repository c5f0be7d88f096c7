"""Checks of token edges: a graph's, beside real changes of the embeddings.

An edge from a token is linear in its embedding, so that is multiplied for real, position by
position, as rows of one batch:

    frozen edges    embedding times 2, norms, patterns and MLP outputs held: the change of a logit
    full edges      embedding times 1 + h and 1 - h in the real model: the difference over 2 h

A scale that a family puts on its embeddings, and that is forgotten, shows as that very factor.

    for check in check_token_edges(model, input_ids):
        check.ok, check.found
"""

from __future__ import annotations

import contextlib

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache, BatchedCache
from em_circuits.bases import own_parts
from em_circuits.graphs import AttributionSettings, attribute
from em_circuits.graphs.gradient import demeaned_targets
from em_circuits.graphs.held import choose_nodes, full_edges
from em_circuits.intervention import Regime
from em_circuits.interventions.regimes import FrozenMLP, frozen
from em_circuits.models import Model
from em_circuits.models.check import Check
from em_circuits.models.sites import Site, on_site
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Prompt

STEP = 0.01
"""h of a derivative in the real model: above rounding, below curvature."""
FROZEN_LIMIT, FULL_LIMIT = 1e-3, 0.05
"""Of float32, as shares of the largest edge; sixteen-bit precisions are allowed `ROUGH`."""
ROUGH = 0.2
_NODES = 8


def check_token_edges(model: Model, input_ids: Int64[Tensor, " pos"]) -> list[Check]:
    """Token edges of a model's graphs of one prompt, to the likeliest next token.

    Args:
        model: Its frozen graph is checked where it has transcoders.
        input_ids: The prompt.
    """
    state = ActivationCache.capture(model, input_ids)
    target = state.logits.argmax()[None].cpu()
    full = _full(model, state, target), _derivatives(model, state, target)
    checks = [_check(model, "full", *full, FULL_LIMIT)]
    if model.transcoders is not None:
        try:
            found = _frozen(model, input_ids, target)
            checks.append(
                _check(model, "frozen", found, _changes(model, state, target), FROZEN_LIMIT)
            )
        except RequestError as error:  # the family has no frozen edges here, or no frozen norms
            name = f"{model.name}: frozen token edges are real changes"
            checks.append(Check(name, False, str(error), "frozen edges", fatal=False))
    return checks


def _check(model: Model, kind: str, edges: Tensor, real: Tensor, limit: float) -> Check:
    limit = limit if model.dtype == torch.float32 else ROUGH
    gap = float((edges - real).abs().max() / real.abs().max())
    ratio = float((edges * real).sum() / real.square().sum())
    return Check(
        f"{model.name}: {kind} token edges are real changes",
        gap <= limit,
        f"{gap:.2g} of the largest, {ratio:.3g} times the real ones",
        f"at most {limit:.2g}",
        "edges of tokens, and scores that rest on them, are wrong for this model; report it",
    )


def _full(model: Model, state: ActivationCache, target: Tensor) -> Float[Tensor, " pos"]:
    """First-order effect of every token over all paths, by full edges."""
    weights = demeaned_targets(target, len(state.logits))
    nodes = choose_nodes(model, own_parts(model), state.input_ids, weights, n=_NODES)
    edges = full_edges(model, nodes, state.input_ids, weights)
    return edges.total_effect()[0, edges.layout.tokens]


def _frozen(model: Model, input_ids: Tensor, target: Tensor) -> Float[Tensor, " pos"]:
    settings = AttributionSettings(edges="frozen", top_k=1, max_feature_nodes=1)
    prompt = Prompt.of("token edges", token_ids=tuple(input_ids.tolist()))
    graph = attribute(model, prompt, settings=settings)
    row = graph.targets.token_ids.tolist().index(int(target))
    return graph.require_edges().logit_rows()[row, graph.layout.tokens].double()


@torch.no_grad()
def _derivatives(model: Model, state: ActivationCache, target: Tensor) -> Float[Tensor, " pos"]:
    weights = demeaned_targets(target, len(state.logits))[0].double()
    ahead, behind = (_logits(model, state, 1 + h).double().cpu() @ weights for h in (STEP, -STEP))
    return (ahead - behind) / (2 * STEP)


@torch.no_grad()
def _changes(model: Model, state: ActivationCache, target: Tensor) -> Float[Tensor, " pos"]:
    """Change of the logit, before any soft-cap, when a token's embedding is doubled."""
    stacked = BatchedCache.of([state])
    mlps = [
        FrozenMLP(model, stacked, layer, Regime.DIRECT) for layer in range(model.sites.n_layers)
    ]
    reads: dict[int, Tensor] = {}
    finals: list[Tensor] = []

    def keep(x: Tensor) -> None:
        finals.append(x[:, -1])

    def write(layer: int, _output: Tensor) -> Tensor:
        return mlps[layer](reads[layer])

    with contextlib.ExitStack() as stack:
        stack.enter_context(frozen(model, stacked, Regime.DIRECT))
        stack.enter_context(model.sites.hooked(reads.__setitem__, write))
        final = Site(model.decoder.final_norm.module, "output")
        stack.enter_context(on_site(final, keep))
        for factor in (1.0, 2.0):
            _logits(model, state, factor)
    head: Tensor = model.hf.get_output_embeddings().weight  # type: ignore[operator]
    direction = head[target[0]].double() - head.double().mean(0)
    return ((finals[1] - finals[0]).double() @ direction).cpu()


def _logits(model: Model, state: ActivationCache, factor: float) -> Float[Tensor, "pos vocab"]:
    """Next logits, row p with the embedding at position p multiplied."""
    n_pos = state.n_pos
    factors = torch.ones(n_pos, n_pos, 1, device=model.device, dtype=model.dtype)
    factors.diagonal()[...] = factor
    embedding = Site(model.hf.get_input_embeddings(), "output")  # type: ignore[operator]
    with on_site(embedding, lambda x: x * factors):
        ids = state.input_ids.expand(n_pos, -1)
        return model.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]
