"""Rewritten hops: later writes of a cross-layer feature that the model computes from earlier ones.

A feature of a cross-layer transcoder writes into its own layer and into later ones. Where a later
write stands for what that layer reads from the residual stream by itself, it replaces a repetition,
as it should. But the later MLP may compute it *from the feature's own earlier writes*: the real
model then takes two hops, the graph shows one, and what lies between is no node. For feature f of
layer l with activation a, and each later layer m,

    response_m = real MLP output of m - the same with f's writes into layers l ... m-1 removed
    share = sum over m of response_m . a w_m  /  sum over m of |a w_m|^2

Near 0 the later writes stand for something else; near 1 they are hops rewritten as one. Removing
the feature then counts twice: its write goes, and so does what the real MLP made of it.

    hops = rewritten_hops(model, state, n=100)
    hops[0].share
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.feature import Feature
from em_circuits.graphs.memory import RUN_ROWS
from em_circuits.models import Model
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

REWRITTEN = 0.5
"""Share from which a feature's later writes are called rewritten."""


class RewrittenHop(Frozen):
    """A feature's later writes, and how much of them the model computes from its earlier ones."""

    feature: str
    """``layer/position/id``."""
    share: float
    size: float
    """Length of the later writes together, in units of the residual stream."""
    layers: tuple[float, ...]
    """Share of the write into each later layer; 0 where there is none."""

    @property
    def rewritten(self) -> bool:
        return self.share >= REWRITTEN


@torch.no_grad()
def rewritten_hops(
    model: Model, state: ActivationCache, *, n: int = 100
) -> tuple[RewrittenHop, ...]:
    """The features that write most into later layers, largest share first.

    Args:
        model: With a cross-layer transcoder; the real model is run.
        state: The prompt, captured on it.
        n: Active features that are looked at, those with the largest later writes.

    Raises:
        RequestError: If the transcoders are per-layer ones: they have no later writes.
    """
    if model.dictionaries[0].n_writes == 1:
        raise RequestError(
            "rewritten hops are of a cross-layer transcoder; per-layer transcoders (and neurons) "
            "write into their own layer alone, so there is nothing to check"
        )
    writes = [
        _writes(model, layer, feature, float(activation))
        for (layer, _, feature), activation in zip(
            state.active.tolist(), state.activations.tolist(), strict=True
        )
    ]
    sizes = torch.tensor([float(one[1:].norm()) for one in writes])
    chosen = [i for i in sizes.argsort(descending=True)[:n].tolist() if sizes[i] > 0]
    rows = [
        (i, later)
        for i in chosen
        for later in range(1, len(writes[i]))
        if float(writes[i][later].norm()) > 0
    ]
    places = state.active.tolist()
    along: dict[int, Tensor] = {i: torch.zeros(len(writes[i])) for i in chosen}
    for start in range(0, len(rows), RUN_ROWS - 1):
        part = rows[start : start + RUN_ROWS - 1]
        removed = [(places[i][0], places[i][1], writes[i][:later]) for i, later in part]
        for (i, later), response in zip(part, _responses(model, state, removed), strict=True):
            along[i][later] = float(response.float().cpu() @ writes[i][later])
    hops = []
    for i in chosen:
        squares = writes[i].square().sum(1)
        by_layer = torch.where(squares > 0, along[i] / squares.clamp_min(1e-30), 0.0)
        hops.append(
            RewrittenHop(
                feature=str(Feature(*places[i])),
                share=float(along[i][1:].sum() / squares[1:].sum()),
                size=float(sizes[i]),
                layers=tuple(by_layer[1:].tolist()),
            )
        )
    return tuple(sorted(hops, key=lambda hop: -hop.share))


def rewritten_share(hops: Sequence[RewrittenHop]) -> float:
    """Share over features, each weighted by the square of its later writes' length."""
    total = sum(hop.size**2 for hop in hops)
    return sum(hop.share * hop.size**2 for hop in hops) / total if total else 0.0


def _writes(model: Model, layer: int, feature: int, activation: float) -> Tensor:
    """What a feature writes into its own and each later layer (layer x d_model), on the CPU."""
    dictionary = model.dictionaries[layer]
    one = torch.tensor([feature])
    rows = [dictionary.decoder(one, k)[0].float().cpu() for k in range(dictionary.n_writes)]
    return activation * torch.stack(rows)


def _responses(
    model: Model, state: ActivationCache, removed: Sequence[tuple[int, int, Tensor]]
) -> list[Tensor]:
    """Change of the MLP output above some removed writes, by a row each.

    Args:
        removed: (first layer, position, writes into that layer and the next ones).
    """
    seen: dict[int, Tensor] = {}

    def write(layer: int, output: Tensor) -> Tensor:
        changed = output.clone()
        for row, (first, position, vectors) in enumerate(removed, start=1):
            if first <= layer < first + len(vectors):
                changed[row, position] -= vectors[layer - first].to(output)
            elif layer == first + len(vectors):
                seen[row] = output[0, position] - output[row, position]
        return changed

    ids = state.input_ids.expand(len(removed) + 1, -1)
    with model.sites.hooked(write=write):
        model.hf(input_ids=ids, use_cache=False, logits_to_keep=1)
    return [seen[row] for row in range(1, len(removed) + 1)]
