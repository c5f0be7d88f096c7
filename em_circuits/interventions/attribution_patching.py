"""Outputs of MLPs and attention heads patched across prompts, and the first order of that.

A *site* is the output of an MLP, or of one attention head (its slice of the input of ``o_proj``),
at one position. With y its value on a prompt, y' that on another prompt of as many tokens and m the
contrast at the last position,

    measured[s] = m - m(y_s set to y'_s, everything behind it running free)    activation patching
    gradient[s] = (y_s - y'_s) . dm/dy_s                                       attribution patching

(Syed, Rager and Conmy 2023, arXiv:2310.10348), both in logits; positive = what the site holds on
this prompt and not on the other one raises the contrast. Sites that hold the same on both have no
effect and are left out of `differs`.

    patch = SitePatch.between(model, ids, other_ids, words, kind="head")
    patch.gradient(), patch.each()                 # [layer, pos, unit]
    patch.measured(patch.masks([[(3, 1), (4, 0)]]))  # heads 3.1 and 4.0 together
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from em_circuits.bases import Stage
from em_circuits.bases.directions import DirectionPart
from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import gradients_at
from em_circuits.graphs.held import Nodes, read_sites
from em_circuits.interventions.adapter_writes import Readers
from em_circuits.interventions.run import WORTH_IT, SharedRun
from em_circuits.models import Model
from em_circuits.models.sites import Site, on_site, started_at
from pivotal_tokens.errors import RequestError

SiteKind = Literal["mlp", "head"]
_ROWS = 32
"""Rows of one pass."""


@dataclass(frozen=True, eq=False)
class SitePatch:
    """One model and prompt, into which outputs on another prompt are put.

    Attributes:
        model: The real model is run.
        kind: Whole MLP outputs (one unit a layer), or heads (a unit each).
        sites: One a layer.
        input_ids: The prompt.
        weights: The contrast is ``sum_v w[v] logit_v`` at the last position.
        own: What the sites hold on the prompt.
        other: On the other one.
    """

    model: Model
    kind: SiteKind
    sites: tuple[Site, ...]
    input_ids: Int[Tensor, " pos"]
    weights: Float[Tensor, " vocab"]
    own: Float[Tensor, "layer pos unit width"]
    other: Float[Tensor, "layer pos unit width"]

    @classmethod
    def between(
        cls,
        model: Model,
        input_ids: Int[Tensor, " pos"],
        other_ids: Int[Tensor, " _"],
        contrast: Contrast,
        *,
        kind: SiteKind,
    ) -> SitePatch:
        """Run both prompts once.

        Raises:
            RequestError: If they differ in length, or there is no contrast.
        """
        if len(input_ids) != len(other_ids):
            raise RequestError(
                f"prompts of {len(input_ids)} and {len(other_ids)} tokens; patching needs equally "
                "many"
            )
        readers = Readers.of(model)
        if kind == "head":
            sites, units = tuple(Site(one, "input") for one in readers.outputs), readers.n_heads
        else:
            sites, units = model.sites.writes, 1
        own, other = (
            torch.stack(read_sites(model, sites, ids)).unflatten(-1, (units, -1))
            for ids in (input_ids, other_ids)
        )
        weights = contrast.weights(len(model.next_logits(input_ids)))
        return cls(model, kind, sites, input_ids, weights, own, other)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, positions, units of a layer."""
        layers, positions, units = self.own.shape[:3]
        return layers, positions, units

    @cached_property
    def change(self) -> Float[Tensor, "layer pos unit width"]:
        """What the sites hold on the prompt and not on the other one."""
        return (self.own - self.other).float()

    @property
    def differs(self) -> Bool[Tensor, "layer pos unit"]:
        """Sites that do not hold the same on both."""
        return (self.change != 0).any(-1).cpu()

    @cached_property
    def _slopes(self) -> Float[Tensor, "layer pos unit width"]:
        found = gradients_at(self.model, self.sites, self.input_ids, self.weights[None])
        return torch.stack([one[0] for one in found]).unflatten(-1, self.own.shape[2:]).float()

    def gradient(self) -> Float[Tensor, "layer pos unit"]:
        """First-order effect of every site."""
        return (self.change * self._slopes).sum(-1).cpu()

    def bound(self) -> Float[Tensor, "layer pos unit"]:
        """How large the first-order effect could be at most, whatever the angle."""
        return (self.change.norm(dim=-1) * self._slopes.norm(dim=-1)).cpu()

    @torch.no_grad()
    def direct(self) -> Float[Tensor, "layer unit"]:
        """Contrast that each unit writes straight to the logits, at the last position, in logits.

        Logit attribution (Wang et al. 2022, arXiv:2211.00593): the final norm's scale is held.

        Raises:
            RequestError: If layers do not add their outputs to the stream as they are.
        """
        hf: Any = self.model.hf
        decoder, unembedding = self.model.decoder, hf.get_output_embeddings().weight
        direction = self.weights.to(unembedding) @ unembedding
        norm = decoder.final_norm
        scale = norm.scale(read_sites(self.model, [Site(norm.module, "input")], self.input_ids)[0])

        def contrast(x: Float[Tensor, "unit d_model"]) -> Float[Tensor, " unit"]:
            return (norm.apply(x, scale[-1]) @ direction).float().cpu()

        if any(layer.behind_attention or layer.behind_mlp for layer in decoder.layers):
            raise RequestError("a norm stands behind what layers write: no write is a logit's part")
        found = []
        for layer, own in zip(decoder.layers, self.own[:, -1], strict=True):
            written = own
            if self.kind == "head":  # each head's slice alone
                slices = torch.block_diag(*own)
                written = layer.output(slices) - layer.output(torch.zeros_like(slices[:1]))
            found.append(contrast(written) - contrast(torch.zeros_like(written)))
        return torch.stack(found)

    @torch.no_grad()
    def measured(self, chosen: Bool[Tensor, "row layer pos unit"]) -> Float64[Tensor, " row"]:
        """Effect of each row's sites together, really patched."""
        changed = (chosen & self.differs).any(3)
        at, layer = changed.any(1).int(), changed.any(2).int().argmax(1)
        first = torch.where(at.any(1), at.argmax(1), self.shape[1] - 1)
        # A batch starts at its first changed position, in its first changed layer.
        order = (first * self.shape[0] + layer).argsort(descending=True, stable=True)
        effects = torch.empty(len(chosen), dtype=torch.float64)
        for rows in order.split(_ROWS):
            effects[rows] = self._undisturbed - self._run(chosen[rows], int(first[rows].min()))
        return effects

    def masks(
        self, sets: Sequence[Sequence[tuple[int, int]]]
    ) -> Bool[Tensor, "row layer pos unit"]:
        """A row per set of (layer, unit), at every position."""
        rows = torch.zeros(len(sets), *self.shape, dtype=torch.bool)
        for row, units in zip(rows, sets, strict=True):
            for layer, unit in units:
                row[layer, :, unit] = True
        return rows

    def alone(self, chosen: Bool[Tensor, "layer pos unit"]) -> Float64[Tensor, " site"]:
        """Effect of each of some sites alone, in the order of ``chosen.nonzero()``."""
        rows = torch.zeros(int(chosen.sum()), *self.shape, dtype=torch.bool)
        rows[(torch.arange(len(rows)), *chosen.nonzero(as_tuple=True))] = True
        return self.measured(rows)

    def each(self) -> Float64[Tensor, "layer pos unit"]:
        """Effect of every site alone."""
        found = torch.zeros(self.shape, dtype=torch.float64)
        found[self.differs] = self.alone(self.differs)
        return found

    def units(self) -> Float64[Tensor, "layer unit"]:
        """Effect of every unit, at all positions together."""
        layers, positions, units = self.shape
        rows = torch.eye(layers * units).bool().view(-1, layers, 1, units)
        return self.measured(rows.expand(-1, -1, positions, -1)).view(layers, units)

    def nodes(self, chosen: Bool[Tensor, "layer pos unit"]) -> Nodes:
        """Some sites as nodes of a graph with full edges, along what they hold here and not there.

        Their order is that of ``chosen.nonzero()``.
        """
        size = self.change.norm(dim=-1)
        layers, width = self.shape[0], self.own.shape[2] * self.own.shape[3]
        stage = Stage.ATTENTION_OUTPUT if self.kind == "head" else Stage.MLP_HIDDEN
        parts, coordinates, activation = [], [], []
        for layer in range(layers):
            places = chosen[layer].nonzero()
            position, unit = places.to(self.own.device).unbind(1)
            number = torch.arange(len(places))
            origin, direction = self.own.new_zeros(2, len(places), *self.own.shape[2:])
            origin[number, unit] = self.other[layer, position, unit]
            along = self.change[layer, position, unit] / size[layer, position, unit][:, None]
            direction[number, unit] = along.to(direction)
            parts.append(
                DirectionPart(
                    basis=self.kind,
                    name=str(layer),
                    layer=layer,
                    stage=stage,
                    read=self.sites[layer],
                    writes=(self.sites[layer],),
                    n_nodes=len(places),
                    origin=origin.view(-1, width),
                    directions=direction.view(-1, width),
                )
            )
            at = torch.full((len(places),), layer)
            coordinates.append(torch.stack([at, places[:, 0], number], 1))
            activation.append(size[layer, position, unit].cpu())
        return Nodes.of(parts, torch.cat(coordinates), torch.cat(activation))

    @cached_property
    def _shared(self) -> SharedRun:
        return SharedRun(self.model, self.input_ids.to(self.model.device))

    @cached_property
    def _undisturbed(self) -> float:
        logits = self.model.next_logits(self.input_ids)
        return float(logits.double().cpu() @ self.weights.double())

    @contextlib.contextmanager
    def installed(
        self, chosen: Bool[Tensor, "row layer pos unit"], *, start: int = 0
    ) -> Iterator[None]:
        """Patch each row's sites in every forward pass of the block, which begins at `start`."""
        chosen = chosen[:, :, start:].to(self.model.device)

        def put(layer: int, x: Tensor) -> Tensor:
            here = chosen[:, layer, :, :, None]
            held = x.unflatten(-1, self.own.shape[2:])
            return torch.where(here, self.other[layer, start:], held).flatten(-2)

        with contextlib.ExitStack() as stack:
            for layer, site in enumerate(self.sites):
                stack.enter_context(on_site(site, partial(put, layer)))
            yield

    def _run(
        self, chosen: Bool[Tensor, "row layer pos unit"], first: int
    ) -> Float64[Tensor, " row"]:
        start, cached = (first if first >= WORTH_IT else 0), {}
        if start:
            cached = {self.model.decoder.cache_name: self._shared.cache(start, len(chosen))}
        ids = self.input_ids[start:].to(self.model.device).expand(len(chosen), -1)
        layer = int((chosen & self.differs).any(3).any(2).any(0).int().argmax())
        below = self._shared.below(layer, len(chosen), start) if layer else None
        with self.installed(chosen, start=start), started_at(self.model.decoder, below):
            output = self.model.hf(
                input_ids=ids, use_cache=bool(cached), logits_to_keep=1, **cached
            )
        return output.logits[:, -1].double().cpu() @ self.weights.double()
