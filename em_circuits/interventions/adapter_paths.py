"""Paths of an adapter's effect: what reads each of its writes first, down to the logits.

The base with t times the adapter's writes added (`AdapterWrites`) is the base at t = 0 and the
merged model at t = 1, so with c the evil-minus-safe contrast

    c(merged) - c(base) = integral over t of dc/dt,    dc/dt = sum over nodes n of  u_n . dc/d out_n

where n is a rank of a module at a position and ``u_n`` its write. On its way to the logits a write
enters the residual stream (those of q, k, v through their own attention, of gate and up through
their own MLP) and is read there. By the chain rule dc/dt is the sum over readers r of

    E_r . G_r      E_r: change per t of the residual at r by all earlier writes, nothing responding
                   G_r: gradient of c with respect to the residual as r reads it, all responding

so every path is counted once, by its **first reader**:

* straight: the final norm and the logits;
* attention: a layer's heads, each by the change of its output when the residual changes by E_r;
* features: those of a layer's transcoder that are active there, ``(dlive_f . E_r) w_f . dc/d out``;
* remainder: the rest of that MLP, which the transcoder does not explain.

    paths = adapter_paths(pair, writes, input_ids, weights)
    paths.integrated.carriers, paths.integrated.heads

The integral is a Gauss-Legendre sum over few points, doubled until the parts sum to the measured
shift within `TOLERANCE`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor

from em_circuits.bases import NeuronPart, Part, own_parts
from em_circuits.coordinates import unique_rows
from em_circuits.interventions.adapter_writes import AdapterWrites, Readers, WrittenPrompt
from em_circuits.models import ModelPair
from em_circuits.models.memory import BatchSize
from em_circuits.models.neurons import matrix
from em_circuits.models.sites import Site, on_site
from pivotal_tokens.errors import RequestError

CARRIERS = ("straight", "features", "attention", "remainder")
"""What may read a write first."""
POINTS = (8, 16, 32)
"""Points of the sum, until it is complete."""
TOLERANCE = 0.01
"""Of the shift: how far the sum of parts may be from it."""
SMALL = 0.5
"""Logits; the tolerance of a smaller shift is that of this one."""
_ROWS = 4
"""Points of one batched pass."""
_ELEMENTS = 1 << 24
"""Gathered encoder entries at a time."""


@dataclass(frozen=True, eq=False)
class PathSplit:
    """dc/dt, or its integral, by first reader; in logits, float64 on the CPU.

    Attributes:
        carriers: By `CARRIERS`; their sum is the whole.
        heads: Of ``attention``.
        coordinates: (layer, position, feature id) of ``features``, sorted.
        features: Of each of them.
        nodes: Of each module's ranks, by carrier and position.
        unranked: By carrier, what modules write besides their ranks: DoRA's rescaling of the base's
            weights, and rounding of merged weights.
    """

    carriers: Float64[Tensor, " carrier"]
    heads: Float64[Tensor, "layer head"]
    coordinates: Int64[Tensor, "feature 3"]
    features: Float64[Tensor, " feature"]
    nodes: tuple[Float64[Tensor, "carrier pos _"], ...]
    unranked: Float64[Tensor, " carrier"]

    @property
    def total(self) -> float:
        """The sum of all parts."""
        return float(self.carriers.sum())

    def __add__(self, other: PathSplit) -> PathSplit:
        both = torch.cat([self.coordinates, other.coordinates])
        coordinates, place = unique_rows(both)
        features = torch.zeros(len(coordinates), dtype=torch.float64)
        features.index_add_(0, place, torch.cat([self.features, other.features]))
        return PathSplit(
            self.carriers + other.carriers,
            self.heads + other.heads,
            coordinates,
            features,
            tuple(a + b for a, b in zip(self.nodes, other.nodes, strict=True)),
            self.unranked + other.unranked,
        )


@dataclass(frozen=True, eq=False)
class AdapterPaths:
    """The shift of one prompt, taken apart."""

    first_order: PathSplit
    """dc/dt in the base."""
    integrated: PathSplit
    """Its integral, which is the shift."""
    points: int
    """Of the sum that stands for the integral."""


def adapter_paths(
    pair: ModelPair,
    writes: AdapterWrites,
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, " vocab"],
    *,
    parts: Sequence[Part] | None = None,
    points: Sequence[int] = POINTS,
) -> AdapterPaths:
    """Split the shift of weighted logits from base to merged by the adapter's first readers.

    Args:
        pair: Base and merged model.
        writes: Of its adapter on this prompt.
        input_ids: One prompt, with its beginning-of-sequence token.
        weights: The target is ``sum_v w[v] logit_v`` at the last position.
        parts: What counts as features; by default the model's own features.
        points: Numbers of points that are tried in turn.
    """
    if parts is None:
        parts = own_parts(pair.base)
    line = _Line(pair.base, Readers.of(pair.base), writes, input_ids, weights, tuple(parts))
    base, merged = (model.next_logits(input_ids).float().cpu() for model in pair.models)
    shift = float(weights @ (merged - base))
    for n in points:
        nodes, amounts = np.polynomial.legendre.leggauss(n)
        integrated = line.split(torch.tensor((nodes + 1) / 2), torch.tensor(amounts / 2))
        if abs(integrated.total - shift) <= TOLERANCE * max(abs(shift), SMALL):
            break
    first = line.split(torch.zeros(1).double(), torch.ones(1).double())
    return AdapterPaths(first, integrated, n)


@dataclass(frozen=True, eq=False)
class _Gradients:
    """Of the target, at some points of the line."""

    readers: list[Float[Tensor, "row pos d_model"]]
    """With respect to the residual as each reader reads it."""
    outputs: list[Float[Tensor, "row pos d_model"]]
    """With respect to each ``o_proj``'s output."""
    sites: dict[Site, Float[Tensor, "row pos d_write"]]
    """With respect to what features write into."""


class _Line(WrittenPrompt):
    """The base with t times the writes added."""

    def split(self, points: Float64[Tensor, " row"], amounts: Float64[Tensor, " row"]) -> PathSplit:
        """The weighted sum of dc/dt over some points."""
        some = BatchSize(_ROWS).over(
            len(points), lambda a, b: self._split(points[a:b], amounts[a:b])
        )
        return reduce(PathSplit.__add__, (found for _, found in some))

    def _split(self, points: Tensor, amounts: Tensor) -> PathSplit:
        device = self.model.device
        t, by_row = points.to(device), amounts.to(device)
        added = [t.to(w)[:, None, None] * w for w in self.writes.written]
        gradients = self._gradients(added)
        primals, entries = self._entries(added)
        heads, reads = self._responses(added, entries)

        def along(tangent: Tensor, gradient: Tensor) -> Tensor:
            """Their product, summed over points and positions."""
            product = (tangent.double() * gradient.double()).sum((1, -1))
            return torch.tensordot(by_row, product, dims=1).cpu()

        n_layers = len(self.readers.mlp)
        by_reader = torch.stack(
            [along(e, g) for e, g in zip(entries, gradients.readers, strict=True)]
        )
        found_features, pulled = self._features(reads, gradients, primals, by_row, added)
        by_head = torch.stack(
            [
                along(z, self.readers.by_head(g @ output.get_parameter("weight")))
                for z, g, output in zip(heads, gradients.outputs, self.readers.outputs, strict=True)
            ]
        )
        features = sum((values.sum() for _, values in found_features), torch.zeros(()).double())
        carriers = torch.stack(
            [
                by_reader[-1],
                features,
                by_reader[:n_layers].sum(),
                by_reader[n_layers:-1].sum() - features,
            ]
        )
        nodes, unranked = self._nodes(added, self._by_carrier(gradients, pulled), by_row)
        return PathSplit(
            carriers,
            by_head,
            torch.cat([coordinates for coordinates, _ in found_features]),
            torch.cat([values for _, values in found_features]),
            nodes,
            unranked,
        )

    def _gradients(self, added: Sequence[Tensor]) -> _Gradients:
        """One backward pass, everything responding but the adapter."""
        sites = [Site(norm, "input") for norm in self.readers.all]
        sites += [Site(output, "output") for output in self.readers.outputs]
        written = list(dict.fromkeys(site for part in self.parts for site in part.writes))
        nudges: dict[Site, Tensor] = {}

        def nudge(site: Site, x: Tensor) -> Tensor:
            nudges[site] = torch.zeros_like(x, requires_grad=True)
            return x + nudges[site]

        with torch.enable_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(self.writes.added(added))
            for site in (*sites, *written):
                stack.enter_context(on_site(site, partial(nudge, site)))
            logits = self.run(len(added[0])).float()
            target = (logits @ self.weights.to(logits)).sum()
            every = [nudges[site] for site in (*sites, *written)]
            found = list(torch.autograd.grad(target, every))
        n, m = len(self.readers.all), len(sites)
        return _Gradients(found[:n], found[n:m], dict(zip(written, found[m:], strict=True)))

    @torch.no_grad()
    def _entries(self, added: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The residual as each reader reads it, and its change per t when no reader responds."""
        primals: dict[int, Tensor] = {}
        tangents: dict[int, Tensor] = {}

        def read(number: int, x: Tensor) -> Tensor:
            value, tangent = forward_ad.unpack_dual(x)
            primals[number] = value
            tangents[number] = torch.zeros_like(value) if tangent is None else tangent
            return value

        with _forward_mode(), contextlib.ExitStack() as stack:
            stack.enter_context(self.writes.added(added))
            for module, written in zip(self.writes.modules, self.writes.written, strict=True):
                stack.enter_context(on_site(Site(module, "output"), partial(_moving, written)))
            for number, norm in enumerate(self.readers.all):
                stack.enter_context(on_site(Site(norm, "input"), partial(read, number)))
            self.run_layers(len(added[0]))
        numbers = range(len(self.readers.all))
        return [primals[i] for i in numbers], [tangents[i] for i in numbers]

    @torch.no_grad()
    def _responses(
        self, added: Sequence[Tensor], entries: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]]]:
        """Each reader's answer to its entry: change of every head, value and change of what each
        part reads."""
        heads: dict[int, Tensor] = {}
        reads: dict[int, tuple[Tensor, Tensor]] = {}

        def enter(entry: Tensor, x: Tensor) -> Tensor:
            return forward_ad.make_dual(forward_ad.unpack_dual(x).primal, entry)

        def keep(kept: dict, number: int, x: Tensor) -> None:
            value, tangent = forward_ad.unpack_dual(x)
            kept[number] = (value, torch.zeros_like(value) if tangent is None else tangent)

        outputs: dict[int, tuple[Tensor, Tensor]] = {}
        with _forward_mode(), contextlib.ExitStack() as stack:
            stack.enter_context(self.writes.added(added))
            # Before the parts', one of which may read this very input.
            for norm, entry in zip(self.readers.all[:-1], entries, strict=False):
                stack.enter_context(on_site(Site(norm, "input"), partial(enter, entry)))
            for number, part in enumerate(self.parts):
                stack.enter_context(on_site(part.read, partial(keep, reads, number)))
            for number, output in enumerate(self.readers.outputs):
                stack.enter_context(on_site(Site(output, "input"), partial(keep, outputs, number)))
            self.run_layers(len(added[0]))
        heads = {i: self.readers.by_head(tangent) for i, (_, tangent) in outputs.items()}
        return [heads[i] for i in sorted(heads)], [reads[i] for i in sorted(reads)]

    def _features(
        self,
        reads: Sequence[tuple[Tensor, Tensor]],
        gradients: _Gradients,
        primals: Sequence[Tensor],
        by_row: Tensor,
        added: Sequence[Tensor],
    ) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
        """What goes through each active feature, and their gradients at the MLPs' readers."""
        first = len(self.readers.attention)
        pulled = [torch.zeros_like(x) for x in primals[first:-1]]
        found = []
        for part, (x, tangent) in zip(self.parts, reads, strict=True):
            towards = [gradients.sites[site] for site in part.writes]
            place, values, back = _through(part, x, tangent, towards)
            layer = part.layer
            back = self._pulled_back(part, primals[first + layer], x, back, added)
            pulled[layer] = pulled[layer] + back
            weighted = values.double() * by_row[place[:, 0]]
            where, which = unique_rows(place[:, 1:])
            where[:, 1] = part.ids(where[:, 1])
            total = torch.zeros(len(where), dtype=torch.float64, device=where.device)
            total.index_add_(0, which, weighted)
            layers = torch.full_like(where[:, :1], layer)
            found.append((torch.cat([layers, where], 1).cpu(), total.cpu()))
        return found, pulled

    def _pulled_back(
        self, part: Part, residual: Tensor, read: Tensor, gradient: Tensor, added: Sequence[Tensor]
    ) -> Float[Tensor, "row pos d_model"]:
        """A gradient with respect to what a part reads as one with respect to the residual."""
        with torch.enable_grad(), self.writes.added(added):
            x = residual.detach().requires_grad_()
            y = self.read_by(part, x)
            if y.shape != read.shape or not torch.allclose(y, read, rtol=1e-3, atol=1e-4):
                raise RequestError(f"{part.basis} {part.name} does not read what its MLP reads")
            (found,) = torch.autograd.grad(y, x, gradient)
        return found

    def _by_carrier(
        self, gradients: _Gradients, pulled: Sequence[Tensor]
    ) -> list[Float[Tensor, "carrier row pos d_model"]]:
        """Gradients at each reader, by the carriers through which they come."""
        nothing = torch.zeros_like(gradients.readers[0])
        attention, mlp = len(self.readers.attention), len(self.readers.mlp)
        found = [torch.stack([nothing, nothing, g, nothing]) for g in gradients.readers[:attention]]
        for g, features in zip(gradients.readers[attention : attention + mlp], pulled, strict=True):
            found.append(torch.stack([nothing, features, nothing, g - features]))
        found.append(torch.stack([gradients.readers[-1], nothing, nothing, nothing]))
        return found

    def _nodes(
        self, added: Sequence[Tensor], at_readers: Sequence[Tensor], by_row: Tensor
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Parts of every rank and position, by carrier; and of what is no rank's."""
        kept: list[tuple[int, Tensor]] = []
        nudges: dict[int, Tensor] = {}

        def nudge(number: int, x: Tensor) -> Tensor:
            nudges[number] = torch.zeros_like(x, requires_grad=True)
            return x + nudges[number]

        def cut(number: int, x: Tensor) -> Tensor:
            kept.append((number, x))
            return x.detach()

        with torch.enable_grad(), contextlib.ExitStack() as stack:
            stack.enter_context(self.writes.added(added))
            for number, module in enumerate(self.writes.modules):
                stack.enter_context(on_site(Site(module, "output"), partial(nudge, number)))
            for number, norm in enumerate(self.readers.all):
                stack.enter_context(on_site(Site(norm, "input"), partial(cut, number)))
            self.run(len(added[0]))
            reached = [(number, x) for number, x in kept if x.requires_grad]
            found = torch.autograd.grad(
                [x for _, x in reached],
                [nudges[i] for i in range(len(nudges))],
                [at_readers[number] for number, _ in reached],
                is_grads_batched=True,
            )
        nodes, unranked = [], torch.zeros(len(CARRIERS), dtype=torch.float64)
        writes = self.writes
        for gradient, part, a, written in zip(
            found, writes.parts, writes.activations, writes.written, strict=True
        ):
            mean = torch.einsum("crpd,r->cpd", gradient.double(), by_row)
            up, a = part.up.double(), a.double()
            nodes.append((torch.einsum("cpd,kd->cpk", mean, up) * a).cpu())
            rest = written.double() - a @ up
            unranked += (mean * rest).sum((1, 2)).cpu()
        return tuple(nodes), unranked


@contextlib.contextmanager
def _forward_mode() -> Iterator[None]:
    """Tensors may carry tangents."""
    with forward_ad.dual_level():
        with warnings.catch_warnings():
            # The first dual tensor loads rules, by way of a function that torch calls deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
        yield


def _moving(written: Tensor, x: Tensor) -> Tensor:
    """A module's output, which changes by `written` per t beside what its input does."""
    change = written.to(x.dtype).expand(x.shape).contiguous()
    return x + forward_ad.make_dual(torch.zeros_like(change), change)


def _through(
    part: Part, x: Tensor, tangent: Tensor, towards: Sequence[Tensor]
) -> tuple[Int64[Tensor, "op 3"], Float[Tensor, " op"], Float[Tensor, "row pos d_read"]]:
    """Per active (row, position, id): its answer to the tangent, times what its write is worth.

    Also the gradients with respect to what the part reads, through its active nodes alone.
    """
    with torch.no_grad():
        activations = part.activations(x).clone()
        activations[:, : part.first_position] = 0
        place = activations.nonzero()
    if isinstance(part, NeuronPart):  # reads each node's activation as it is: no slopes to gather
        (gradient,) = towards
        back = gradient.to(x) @ matrix(part.dictionary.down).detach()
        return place, (back * tangent)[tuple(place.T)], back
    back, values = torch.zeros_like(x), []
    for some in place.split(max(1, _ELEMENTS // x.shape[-1])):
        row, position, ids = some.unbind(1)
        with torch.enable_grad():
            at = x[row, position].detach().requires_grad_()
            (slope,) = torch.autograd.grad(part.live(at, ids).sum(), at)
        worth = torch.zeros(len(some), device=x.device, dtype=x.dtype)
        for k, gradient in enumerate(towards):
            worth = worth + (part.written(ids, k).to(gradient) * gradient[row, position]).sum(-1)
        values.append(worth * (slope * tangent[row, position]).sum(-1))
        back.index_put_((row, position), worth[:, None] * slope, accumulate=True)
    return place, torch.cat([x.new_zeros(0), *values]), back
