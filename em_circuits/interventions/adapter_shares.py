"""Shares of an adapter's effect, really measured: its writes on the base, what responds chosen.

The adapter's writes stand in the base (`AdapterWrites`), and of what reads them

    features      a layer's transcoder features take the activations that its live input gives them
    attention     a layer's attention reads the live residual
    remainder     what these features do not explain of the MLP answers to its live input

only the chosen ones respond; all others do what they do in the undisturbed base. With c(S) the
contrast when S responds,

    straight = c({}) - c(base)           alone(x) = c({x}) - c({})
    together = c(all) - c(base)          held(x)  = c(all) - c(all but x)

`together` is the shift; what the others leave of it is interaction, by pair and of all three:

    pair(x, y) = c({x, y}) - c({x}) - c({y}) + c({})

    found = measured_shares(pair.base, writes, input_ids, weights)
    found.alone, found.random.mean(0)

*Control*: writes of equal size at the same places into random directions (`AdapterWrites.random`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from em_circuits.bases import Part, Stage, own_parts
from em_circuits.graphs.held import captured
from em_circuits.interventions.adapter_writes import AdapterWrites, Readers, WrittenPrompt
from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.models.sites import Site, on_site

RESPONDING = ("features", "attention", "remainder")
"""What may respond to the adapter's writes."""
FIGURES = ("straight", *RESPONDING, "together")
"""Columns of what is measured alone."""
PAIRS = (("features", "attention"), ("features", "remainder"), ("attention", "remainder"))
"""What may respond in turn."""
_ALL = frozenset(RESPONDING)
_ELEMENTS = 1 << 25
"""Activations of one layer that are held at a time."""


@dataclass(frozen=True, eq=False)
class MeasuredShares:
    """Changes of the contrast, in logits; float64 on the CPU."""

    alone: Float64[Tensor, " figure"]
    """By `FIGURES`."""
    held: Float64[Tensor, " carrier"]
    """By `RESPONDING`: what goes away when it alone does not respond."""
    pairs: Float64[Tensor, " pair"]
    """By `PAIRS`: what both together have beyond each alone."""
    random: Float64[Tensor, "draw figure"]
    """`alone` for writes into random directions."""

    @property
    def interaction(self) -> Float64[Tensor, ""]:
        """What everything together has beyond the sum of the four alone."""
        return self.alone[-1] - self.alone[:-1].sum()


def measured_shares(
    model: Model,
    writes: AdapterWrites,
    input_ids: Int[Tensor, " pos"],
    weights: Float[Tensor, " vocab"],
    *,
    parts: Sequence[Part] | None = None,
    n_random: int = 20,
    seed: int = 0,
) -> MeasuredShares:
    """Run the base with the adapter's writes, each kind of response alone, held, and together.

    Args:
        model: The base.
        writes: Of the adapter on this prompt.
        input_ids: One prompt, with its beginning-of-sequence token.
        weights: The contrast is ``sum_v w[v] logit_v`` at the last position.
        parts: What counts as features; by default the model's own features.
        n_random: Draws of random directions.
        seed: Of the draws.
    """
    runs = HeldRuns.of(model, writes, input_ids, weights, parts)
    real = [written[None] for written in writes.written]
    random = writes.random(n_random, seed)
    rows = [torch.cat([a.to(b), b]) for a, b in zip(real, random, strict=True)]
    none = runs.contrast(rows, frozenset())
    all_of_them = runs.contrast(rows, _ALL)
    each = [runs.contrast(rows, frozenset({name})) - none for name in RESPONDING]
    alone = torch.stack([none - runs.base, *each, all_of_them - runs.base], 1)
    without = {name: runs.contrast(real, _ALL - {name}) for name in RESPONDING}
    held = [all_of_them[:1] - without[name] for name in RESPONDING]
    by_name = dict(zip(FIGURES, alone[0], strict=True))
    pairs = []
    for one, other in PAIRS:
        (third,) = _ALL - {one, other}
        pairs.append(without[third] - none[:1] - by_name[one] - by_name[other])
    return MeasuredShares(alone[0], torch.cat(held), torch.cat(pairs), alone[1:])


@dataclass(frozen=True, eq=False)
class HeldRuns(WrittenPrompt):
    """Runs of the base in which chosen readers respond to writes, and the others do not."""

    residuals: tuple[Float[Tensor, "pos d_model"], ...]
    """What each reader reads in the undisturbed base."""
    activations: tuple[Float[Tensor, "pos _"], ...]
    """Of each part, in the undisturbed base."""
    base: float
    """The undisturbed contrast."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: Model,
        writes: AdapterWrites,
        input_ids: Int[Tensor, " pos"],
        weights: Float[Tensor, " vocab"],
        parts: Sequence[Part] | None = None,
    ) -> HeldRuns:
        """Capture the undisturbed base."""
        parts = tuple(own_parts(model) if parts is None else parts)
        readers = Readers.of(model)
        found: dict[int, Tensor] = {}

        def keep(number: int, x: Tensor) -> None:
            found[number] = x[0]

        with contextlib.ExitStack() as stack:
            for number, norm in enumerate(readers.all):
                stack.enter_context(on_site(Site(norm, "input"), partial(keep, number)))
            logits = model.next_logits(input_ids)
        reads = captured(model, parts, input_ids)
        return cls(
            model,
            readers,
            writes,
            input_ids,
            weights,
            parts,
            tuple(found[i] for i in range(len(found))),
            tuple(_activations(part, x) for part, x in zip(parts, reads, strict=True)),
            float(weights.double() @ logits.double().cpu()),
        )

    @torch.no_grad()
    def contrast(
        self, amounts: Sequence[Float[Tensor, "row pos _"]], responding: frozenset[str]
    ) -> Float64[Tensor, " row"]:
        """The contrast with some writes, a row each, when some of `RESPONDING` respond."""
        widest = max((part.n_nodes for part in self.parts), default=1)
        size = max(1, _ELEMENTS // max(1, widest * len(self.ids)))
        batches = BatchSize(size).over(
            len(amounts[0]),
            lambda a, b: self._run([amount[a:b] for amount in amounts], responding),
        )
        return torch.cat([found for _, found in batches])

    def _run(self, amounts: Sequence[Tensor], responding: frozenset[str]) -> Tensor:
        changes: dict[Site, Tensor] = {}
        n_layers = len(self.readers.mlp)

        def read_attention(number: int, x: Tensor) -> Tensor:
            return x if "attention" in responding else self.residuals[number].expand_as(x)

        def read_mlp(layer: int, x: Tensor) -> Tensor:
            if ("features" in responding) != ("remainder" in responding):
                sign = 1 if "features" in responding else -1
                self._record_changes(layer, x, sign, changes)
            at = n_layers + layer
            return x if "remainder" in responding else self.residuals[at].expand_as(x)

        def write(site: Site, output: Tensor) -> Tensor | None:
            change = changes.pop(site, None)
            return None if change is None else output + change.to(output.dtype)

        with contextlib.ExitStack() as stack:
            stack.enter_context(self.writes.added(amounts))
            for layer, norm in enumerate(self.readers.attention):
                stack.enter_context(on_site(Site(norm, "input"), partial(read_attention, layer)))
            for layer, norm in enumerate(self.readers.mlp):
                stack.enter_context(on_site(Site(norm, "input"), partial(read_mlp, layer)))
            for site in dict.fromkeys(site for part in self.parts for site in part.writes):
                stack.enter_context(on_site(site, partial(write, site)))
            logits = self.run(len(amounts[0]))
        return logits.double().cpu() @ self.weights.double()

    def _record_changes(
        self, layer: int, residual: Tensor, sign: int, changes: dict[Site, Tensor]
    ) -> None:
        """What the features of a layer add when they answer to a residual, per write site."""
        for part, before in zip(self.parts, self.activations, strict=True):
            if part.layer != layer:
                continue
            change = _activations(part, self.read_by(part, residual))
            if part.stage is Stage.MLP_HIDDEN:  # where writes stand that need no residual
                undisturbed = self.residuals[len(self.readers.mlp) + layer].expand_as(residual)
                before = _activations(part, self.read_by(part, undisturbed))
            change = change - before
            ids = change.flatten(0, 1).any(0).nonzero()[:, 0]
            for k, site in enumerate(part.writes):
                vectors = part.written(ids, k).to(change)
                changes[site] = changes.get(site, 0) + sign * change[..., ids] @ vectors


def _activations(part: Part, x: Float[Tensor, "*row pos d"]) -> Float[Tensor, "*row pos node"]:
    activations = part.activations(x).clone()
    activations[..., : part.first_position, :] = 0
    return activations
