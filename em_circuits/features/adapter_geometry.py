"""Directions of an adapter among the transcoder features around it, and its spectra.

A rank writes w_r = scaling B_r and reads along A_r. Where these are directions of the residual
stream they are compared, by cosine, with

    decoder    w_r with the decoder rows of its own layer
    encoder    w_r, through the norm before them, with the encoder rows of each layer downstream
    upstream   A_r, through the norm before it, with the decoder rows of each layer before

and with as many random directions, taken along the same way. A norm's linear part is its weight
(and, for a LayerNorm, the centring); the scale it divides by changes no cosine. ``v_proj`` writes
through ``o_proj``, as if every head of a group attended fully; ``q_proj``, ``k_proj``,
``gate_proj`` and ``up_proj`` write no direction of the residual stream, ``o_proj`` and
``down_proj`` read none.

    rows = alignments(pair, adapter_parts(pair), n_random=100, seed=0)
    rows[0].cosine, rows[0].feature_layer, rows[0].feature, rows[0].quantile
    spectra(parts)[0].effective_rank
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from em_circuits.bases.adapters import AdapterPart
from em_circuits.models import Model, ModelPair
from em_circuits.models.family import LinearMap
from em_circuits.models.neurons import matrix
from em_circuits.progress import Progress, no_progress, tracked
from pivotal_tokens.schema import Frozen

TOP = 100
"""Features whose share of all squared cosines says how localised a direction is."""
_SHOWN = 8
"""Singular values that are listed."""
_SPREAD = 20
"""Random directions whose spread over features is measured; sorting every cosine takes time."""
BINS = 40
"""Of a histogram."""

Side = Literal["decoder", "encoder", "upstream"]


class Alignment(Frozen):
    """One rank's direction among one layer's decoder or encoder rows, beside random ones."""

    module: str
    layer: int | None
    """Of the module, from 0; null for an embedding."""
    rank: int
    side: Side
    """`decoder`: its write with its own layer's decoders; `encoder`: its write with encoders
    downstream; `upstream`: its read with decoders of an earlier layer."""
    feature_layer: int
    feature: int
    """Of the largest absolute cosine."""
    cosine: float
    """That one, signed."""
    random: float
    """Mean over random directions of their largest absolute cosine."""
    quantile: float
    """Share of the random directions whose largest absolute cosine is smaller."""
    gini: float
    """Of the squared cosines over features: 0 alike, 1 all in one."""
    random_gini: float
    """Mean over the first 20 random directions, as is what else is called random below."""
    top_share: float
    """Share of the 100 largest squared cosines in their sum."""
    random_top_share: float
    upper: float
    """End of the histograms' last bin; the first begins at 0."""
    histogram: tuple[int, ...]
    """Features by absolute cosine."""
    random_histogram: tuple[float, ...]
    """Mean over random directions."""


class Spectrum(Frozen):
    """Singular values of what one module's adapter adds to its weight, ``scaling B A``."""

    module: str
    singular_values: tuple[float, ...]
    """Largest first, eight at most."""
    relative: float
    """Frobenius norm over that of the base's weight."""
    stable_rank: float
    """``|dW|_F^2 / |dW|_2^2``."""
    effective_rank: float
    """``exp(entropy of s / sum s)``, Roy and Vetterli 2007."""
    random_stable_rank: float
    """Mean over random A and B with the same norms, rank by rank."""
    random_effective_rank: float


@torch.no_grad()
def alignments(
    pair: ModelPair,
    parts: Sequence[AdapterPart],
    *,
    n_random: int,
    seed: int,
    progress: Progress = no_progress,
) -> list[Alignment]:
    """Every rank among the features it can be compared with; none without transcoders.

    Args:
        pair: Whose transcoders and norms are meant; the norms of the merged model.
        parts: Of its adapter.
        n_random: Random directions beside each module's ranks.
        seed: Of these.
        progress: Called with the layers done.
    """
    # Neurons have no dictionary to compare with, cross-layer features not one vector each.
    if pair.transcoders is None or pair.transcoders.cross_layer:
        return []
    order = {part.name: i for i, part in enumerate(parts)}
    ways = [
        way for part in parts for way in (*_written(pair.merged, part), *_read(pair.merged, part))
    ]
    places = sorted({way.place for way in ways})
    found: list[Alignment] = []
    for place in tracked(places, "geometry", progress):  # a layer's matrices are read once
        rows = _unit(_rows(pair.merged, *place).to(pair.device, torch.float32))
        for way in ways:
            if way.place == place:
                drawn = _directions(n_random, way.vectors, seed)
                found += _compared(rows, way, way.moved(torch.cat([way.vectors, drawn])))
    return sorted(found, key=lambda line: order[line.module])


class _Way(NamedTuple):
    """Vectors of a part, and the way to where a layer's rows are compared with them."""

    side: Side
    layer: int
    part: AdapterPart
    vectors: Tensor
    into: Callable[[Tensor], Tensor]
    """Into the residual stream."""
    norm: nn.Module | None
    """Behind that."""

    @property
    def place(self) -> tuple[bool, int]:
        """Whether encoders are meant, and of which layer."""
        return self.side == "encoder", self.layer

    def moved(self, vectors: Tensor) -> Tensor:
        """Vectors like the part's, as they are compared."""
        return through_norm(self.norm, self.into(vectors))


def _written(model: Model, part: AdapterPart) -> Iterator[_Way]:
    """Where a write goes: its own layer's decoders, encoders downstream."""
    into = _into_stream(model, part)
    if into is None:
        return
    if not part.embedding:
        yield _Way("decoder", part.layer, part, part.up, into, None)
    for layer in range(part.layer + (_kind(model, part) == "down"), model.sites.n_layers):
        yield _Way("encoder", layer, part, part.up, into, _norm_of_reads(model, layer))


def _read(model: Model, part: AdapterPart) -> Iterator[_Way]:
    """Where a read comes from: the decoders of the layers before."""
    layer, kind = model.decoder.layers[part.layer], _kind(model, part)
    if kind not in ("queries", "up"):
        return
    norm = layer.attention_norm if kind == "queries" else layer.mlp_norm
    for before in range(part.layer):
        yield _Way("upstream", before, part, part.down, _as_it_is, norm.module)


def _into_stream(model: Model, part: AdapterPart) -> Callable[[Tensor], Tensor] | None:
    """How writes become directions of the residual stream; None where they are none."""
    if part.embedding:
        return _as_it_is
    decoder, kind = model.decoder, _kind(model, part)
    layer = decoder.layers[part.layer]
    # Gemma norms what attention and MLP write before it is added to the stream.
    behind = layer.behind_mlp if kind == "down" else layer.behind_attention
    after = None if behind is None else behind.module
    if kind in ("down", "heads"):
        return partial(through_norm, after)
    if not part.name.endswith(".v_proj"):
        return None
    output, head = matrix(layer.output).float(), decoder.d_head

    def through_heads(vectors: Tensor) -> Tensor:
        groups = output.shape[1] // vectors.shape[1]
        by_head = vectors.unflatten(1, (-1, head)).repeat_interleave(groups, dim=1)
        return through_norm(after, by_head.flatten(1) @ output.T)

    return through_heads


def _as_it_is(vectors: Tensor) -> Tensor:
    return vectors


def _norm_of_reads(model: Model, layer: int) -> nn.Module | None:
    """The norm that a layer's transcoder reads behind; None where it reads the stream itself."""
    site = model.sites.reads[layer]
    return site.module if site.side == "output" else None


def through_norm(norm: nn.Module | None, vectors: Tensor) -> Tensor:
    """A norm's linear part, up to a positive factor: ``norm(v) - norm(0)``."""
    if norm is None:
        return vectors
    weight = next(norm.parameters())
    moved, still = norm(vectors.to(weight)), norm(torch.zeros_like(vectors[:1]).to(weight))
    return (moved - still).float()


def _kind(model: Model, part: AdapterPart) -> LinearMap | None:
    place = model.decoder.map_at(part.name)
    return None if place is None else place[1]


def _rows(model: Model, encoder: bool, layer: int) -> Float[Tensor, "feature d_model"]:
    assert model.transcoders is not None
    dictionary = model.transcoders[layer]
    return dictionary.W_enc if encoder else dictionary.W_dec


def _directions(n: int, like: Float[Tensor, "vector d"], seed: int) -> Float[Tensor, "draw d"]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, like.shape[1]), generator=generator).to(like)


def _compared(
    rows: Float[Tensor, "feature d_model"], way: _Way, vectors: Float[Tensor, "vector d_model"]
) -> Iterator[Alignment]:
    """The part's own vectors, which come first, beside random ones; rows have length 1."""
    n, part = way.part.n_nodes, way.part
    cosines = rows @ _unit(vectors).T
    largest, which = cosines.abs().max(0)
    random = float(largest[n:].mean())
    sizes = cosines[:, : n + _SPREAD].abs()
    ginis, shares = gini(sizes.square()), top_share(sizes.square())
    for r in range(n):
        upper = max(float(largest[r]), random, 1e-6)
        drawn = torch.histc(sizes[:, n:].clamp(max=upper), BINS, 0, upper)
        yield Alignment(
            module=part.name,
            layer=None if part.embedding else part.layer,
            rank=r,
            side=way.side,
            feature_layer=way.layer,
            feature=int(which[r]),
            cosine=float(cosines[which[r], r]),
            random=random,
            quantile=float((largest[n:] < largest[r]).float().mean()),
            gini=float(ginis[r]),
            random_gini=float(ginis[n:].mean()),
            top_share=float(shares[r]),
            random_top_share=float(shares[n:].mean()),
            upper=upper,
            histogram=tuple(map(int, torch.histc(sizes[:, r], BINS, 0, upper).tolist())),
            random_histogram=tuple((drawn / (sizes.shape[1] - n)).tolist()),
        )


def gini(values: Float[Tensor, "feature vector"]) -> Float[Tensor, " vector"]:
    """Gini coefficient of non-negative values over features; 0 where all are 0."""
    n = len(values)
    ordered = values.double().sort(0).values
    place = torch.arange(1, n + 1, device=values.device, dtype=torch.float64)[:, None]
    total = ordered.sum(0)
    found = (2 * (place * ordered).sum(0) / (n * total)) - (n + 1) / n
    return torch.where(total > 0, found, 0.0)


def top_share(values: Float[Tensor, "feature vector"], n: int = TOP) -> Float[Tensor, " vector"]:
    """Share of the n largest non-negative values in their sum; 0 where all are 0."""
    total = values.double().sum(0)
    found = values.topk(min(n, len(values)), 0).values.double().sum(0) / total
    return torch.where(total > 0, found, 0.0)


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(vectors.dtype).tiny)


@torch.no_grad()
def spectra(
    pair: ModelPair, parts: Sequence[AdapterPart], *, n_random: int, seed: int
) -> list[Spectrum]:
    """Spectrum of every module's ``scaling B A`` (with DoRA's factor on its rows).

    Args:
        pair: Whose base weights the size is compared with.
        parts: Of its adapter.
        n_random: Random adapters of the same norms, rank by rank.
        seed: Of these.
    """
    found = []
    for part in parts:
        generator = torch.Generator().manual_seed(seed)
        values = singular_values(part.up, part.down)
        draws = [
            singular_values(*(_random_like(m, generator) for m in (part.up, part.down)))
            for _ in range(n_random)
        ]
        base: Any = pair.base.hf.get_submodule(part.name)
        found.append(
            Spectrum(
                module=part.name,
                singular_values=tuple(values[:_SHOWN].tolist()),
                relative=float(values.norm() / base.weight.float().norm()),
                stable_rank=_stable(values),
                effective_rank=_effective(values),
                random_stable_rank=sum(map(_stable, draws)) / max(len(draws), 1),
                random_effective_rank=sum(map(_effective, draws)) / max(len(draws), 1),
            )
        )
    return found


def singular_values(
    up: Float[Tensor, "rank d_write"], down: Float[Tensor, "rank d_read"]
) -> Float[Tensor, " _"]:
    """Of ``up^T down``, from two thin factorisations: the matrix itself is never made."""
    (_, left), (_, right) = (torch.linalg.qr(m.double().T) for m in (up, down))
    return torch.linalg.svdvals(left @ right.T)


def _random_like(matrix: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(matrix.shape, generator=generator).to(matrix)
    return _unit(drawn) * matrix.norm(dim=1, keepdim=True)


def _stable(values: Tensor) -> float:
    return float(values.square().sum() / values[0].square()) if values[0] > 0 else 0.0


def _effective(values: Tensor) -> float:
    total = values.sum()
    if total <= 0:
        return 0.0
    return float(torch.exp(torch.special.entr(values / total).sum()))
