"""Attention heads that carry the shift: each really patched.

A head's output is its slice of the input of ``o_proj``, at every position (with grouped queries a
head is a query head). With everything else running free,

    alone   = contrast of base with the head's output set to its merged value - that of base
    without = contrast of merged - that of merged with the head's output set to the base's value

both in logits, as shares of the shift from base to merged; positive = it carries the shift.

    found = mediate_heads(pair, input_ids, words)
    found.heads[0], found.cumulative

Several heads together are taken by the first of these (the second, with `necessity`) and stand
beside as many random other heads.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.interventions.adapter_writes import Readers
from em_circuits.interventions.patching import MIN_SHIFT, Direction
from em_circuits.models import Model, ModelPair
from em_circuits.models.sites import Site, on_site
from em_circuits.spread import Spread
from pivotal_tokens.schema import Frozen

Figure = TypeVar("Figure")

SIZES = (1, 2, 3, 5, 10, 20, 50, 100)
"""Heads that are set together; all of them are the last point."""
_ROWS = 32
"""Rows of one pass."""


class PatchedHead(Frozen, Generic[Figure]):
    """One head, really patched alone."""

    layer: int
    head: int
    alone: Figure
    """Share of the shift that comes back when the base gets the merged model's output."""
    without: Figure
    """Share that goes away when the merged model gets the base's."""


class MediatedHead(PatchedHead[float | None]):
    """One head, really patched alone on one prompt."""

    alone_logits: float
    without_logits: float


class HeadPoint(Frozen):
    """The first k heads set together, beside as many random others."""

    k: int
    share: float | None
    random: Spread | None
    """None where no k others are left, or there are no shares."""


class HeadMediation(Frozen):
    """Heads that carry the shift, the largest first."""

    heads: tuple[MediatedHead, ...]
    cumulative: tuple[HeadPoint, ...]


class HeadsTogether(NamedTuple):
    """Changes of the contrast by several heads set together, in logits."""

    k: int
    change: Float64[Tensor, ""]
    random: Float64[Tensor, " draw"]
    """By k random other heads; none where no k others are left."""


@dataclass(frozen=True, eq=False)
class HeadPatch:
    """One model, into which outputs of heads of the other are put."""

    model: Model
    readers: Readers
    ids: Int[Tensor, " pos"]
    weights: Float[Tensor, " vocab"]
    others: Float[Tensor, "layer pos head d_head"]
    """The other model's outputs of heads."""

    @classmethod
    def of(
        cls, model: Model, other: Model, input_ids: Int[Tensor, " pos"], contrast: Contrast
    ) -> HeadPatch:
        """Capture the other model's heads."""
        d_vocab = len(model.next_logits(input_ids[:1]))
        weights = contrast.weights(d_vocab)
        return cls(model, Readers.of(model), input_ids, weights, head_outputs(other, input_ids))

    @property
    def n_heads(self) -> int:
        """Of all layers."""
        return self.others.shape[0] * self.others.shape[2]

    @torch.no_grad()
    def contrast(self, chosen: Bool[Tensor, "row layer head"]) -> Float64[Tensor, " row"]:
        """The model's contrast with each row's heads set to the other's outputs."""
        return torch.cat([self._run(rows) for rows in chosen.split(_ROWS)])

    def each(self) -> Float64[Tensor, "layer head"]:
        """Change of the contrast by each head alone."""
        n = self.n_heads
        rows = torch.cat([torch.zeros(1, n), torch.eye(n)]).bool()
        values = self.contrast(rows.unflatten(1, self.shape))
        return (values[1:] - values[0]).unflatten(0, self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and heads of a layer."""
        return self.others.shape[0], self.others.shape[2]

    def rows(self, subsets: list[Int64[Tensor, " _"]]) -> Bool[Tensor, "row layer head"]:
        """A row per subset of heads, numbered layer by layer."""
        chosen = torch.zeros(len(subsets), self.n_heads, dtype=torch.bool)
        for row, subset in enumerate(subsets):
            chosen[row, subset] = True
        return chosen.unflatten(1, self.shape)

    def together(
        self, by: Float[Tensor, "layer head"], n_random: int, seed: int
    ) -> list[HeadsTogether]:
        """The first k heads by a value set together, for `SIZES`, beside as many random others."""
        order, n = by.flatten().argsort(descending=True, stable=True), self.n_heads
        sizes = [*(k for k in SIZES if k < n), n]
        subsets, spans = [torch.arange(0)], []
        for k in sizes:
            draws = random_heads(order[:k], n, n_random, seed + k)
            spans.append((len(subsets), len(draws)))
            subsets += [order[:k], *draws]
        values = self.contrast(self.rows(subsets))
        changes = values - values[0]
        return [
            HeadsTogether(k, changes[at], changes[at + 1 : at + 1 + count])
            for k, (at, count) in zip(sizes, spans, strict=True)
        ]

    def _run(self, chosen: Tensor) -> Tensor:
        chosen = chosen.to(self.model.device)

        def put(layer: int, x: Tensor) -> Tensor:
            here = chosen[:, layer, None, :, None]
            return torch.where(here, self.others[layer], self.readers.by_head(x)).flatten(-2)

        with contextlib.ExitStack() as stack:
            for layer, output in enumerate(self.readers.outputs):
                stack.enter_context(on_site(Site(output, "input"), partial(put, layer)))
            ids = self.ids.to(self.model.device).expand(len(chosen), -1)
            output = self.model.hf(input_ids=ids, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1].double().cpu() @ self.weights.double()


@torch.no_grad()
def head_outputs(
    model: Model, input_ids: Int[Tensor, " pos"]
) -> Float[Tensor, "layer pos head d_head"]:
    """Inputs of every ``o_proj`` on the undisturbed prompt, head by head."""
    readers = Readers.of(model)
    found: dict[int, Tensor] = {}

    def keep(layer: int, x: Tensor) -> None:
        found[layer] = readers.by_head(x[0])

    with contextlib.ExitStack() as stack:
        for layer, output in enumerate(readers.outputs):
            stack.enter_context(on_site(Site(output, "input"), partial(keep, layer)))
        model.next_logits(input_ids)
    return torch.stack([found[layer] for layer in range(len(found))])


def mediate_heads(
    pair: ModelPair,
    input_ids: Int[Tensor, " pos"],
    contrast: Contrast,
    *,
    direction: Direction = "sufficiency",
    n_random: int = 20,
    seed: int = 0,
) -> HeadMediation:
    """Patch every head alone, in both directions, and the largest together.

    Args:
        pair: Base and merged model.
        input_ids: One prompt, with its beginning-of-sequence token.
        contrast: Evil and safe tokens.
        direction: Which one orders the heads, and is measured for several together.
        n_random: Random draws per size.
        seed: Of the draws.

    Raises:
        RequestError: If there is no contrast.
    """
    into_base = HeadPatch.of(pair.base, pair.merged, input_ids, contrast)
    into_merged = HeadPatch.of(pair.merged, pair.base, input_ids, contrast)
    nothing = into_base.rows([torch.arange(0)])
    shift = float(into_merged.contrast(nothing) - into_base.contrast(nothing))
    alone, without = into_base.each(), -into_merged.each()
    patch, by = (into_base, alone) if direction == "sufficiency" else (into_merged, without)
    scale = None if shift < MIN_SHIFT else shift

    def share(value: float) -> float | None:
        return None if scale is None else value / scale

    heads = tuple(
        MediatedHead(
            layer=layer,
            head=head,
            alone=share(float(alone[layer, head])),
            without=share(float(without[layer, head])),
            alone_logits=float(alone[layer, head]),
            without_logits=float(without[layer, head]),
        )
        for layer, head in heads_by(by)
    )
    sign = 1 if direction == "sufficiency" else -1
    points = patch.together(by, 0 if scale is None else n_random, seed)
    return HeadMediation(
        heads=heads, cumulative=tuple(_point(point, sign, scale) for point in points)
    )


def heads_by(values: Float[Tensor, "layer head"]) -> list[tuple[int, int]]:
    """(layer, head), the largest value first."""
    order = values.flatten().argsort(descending=True, stable=True)
    return [divmod(number, values.shape[1]) for number in order.tolist()]


def random_heads(
    chosen: Int64[Tensor, " _"], n_heads: int, n_draws: int, seed: int
) -> list[Int64[Tensor, " _"]]:
    """As many heads as chosen, from the others, drawn alike; none where there are too few."""
    others = torch.ones(n_heads, dtype=torch.bool)
    others[chosen] = False
    pool = others.nonzero()[:, 0]
    if len(pool) < len(chosen):
        return []
    generator = torch.Generator().manual_seed(seed)
    return [
        pool[torch.randperm(len(pool), generator=generator)[: len(chosen)]] for _ in range(n_draws)
    ]


def _point(point: HeadsTogether, sign: int, scale: float | None) -> HeadPoint:
    if scale is None:
        return HeadPoint(k=point.k, share=None, random=None)
    random = Spread.of(sign * point.random / scale) if len(point.random) else None
    return HeadPoint(k=point.k, share=float(sign * point.change / scale), random=random)
