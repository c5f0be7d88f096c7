"""Differences of node activations, candidate minus base, averaged over a text's tokens.

For a text with positions 0 ... P-1, of which the first is skipped (transcoders have no nodes there,
and attention sinks dwarf everything else),

    d_i = mean over p >= 1 of a_ip (candidate) - mean over p >= 1 of a_ip (base)

An adapter's rank has no activation in the base: there its d is the candidate's own activation.

    nodes = SpaceNodes(pair, "transcoder")
    base, candidate = nodes.means(input_ids)          # d = candidate - base
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.audit.settings import AuditBasis
from em_circuits.bases import Part, adapter_parts, neuron_parts, own_parts, transcoder_parts
from em_circuits.graphs.full import part_record
from em_circuits.graphs.held import captured
from em_circuits.models import Model, ModelPair
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import Frozen

SKIPPED = 1
"""Positions at the start that count in no mean."""


class SpacePart(Frozen):
    """One part of a basis, as far as two spaces must agree in it."""

    name: str
    layer: int
    width: int
    hook: str
    """Where it reads."""


class FeatureSpace(Frozen):
    """What the numbers of two audits must share before they can be compared."""

    base: str
    """Fingerprint of the base model."""
    basis: str
    dictionary: str | None
    """Fingerprint of the transcoders, or of the adapter whose ranks are the nodes."""
    parts: tuple[SpacePart, ...]

    @classmethod
    def of(cls, pair: ModelPair, basis: AuditBasis) -> FeatureSpace:
        """The space of a pair's nodes."""
        parts = _parts(pair, basis)[1]
        kind = parts[0].basis
        hook = getattr(pair.transcoders, "feature_input_hook", None)
        dictionary = {
            "transcoder": pair.transcoder_fingerprint,
            "adapter": pair.adapter_fingerprint,
        }.get(kind)
        return cls(
            base=pair.base.fingerprint,
            basis=kind,
            dictionary=dictionary,
            parts=tuple(
                SpacePart(
                    name=one.name,
                    layer=one.layer,
                    width=one.n_nodes,
                    hook=hook if kind == "transcoder" and hook else one.stage.name.lower(),
                )
                for one in parts
            ),
        )

    def require(self, other: FeatureSpace, what: str) -> None:
        """Refuse numbers of another space.

        Raises:
            RequestError: Naming the first thing that differs.
        """
        for name in ("base", "basis", "dictionary"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise RequestError(
                    f"{what} is of another feature space: {name} {_short(theirs)}, here "
                    f"{_short(mine)}; calibrate anew on this one"
                )
        if len(self.parts) != len(other.parts):
            raise RequestError(
                f"{what} is of another feature space: {len(other.parts)} parts, here "
                f"{len(self.parts)}; calibrate anew on this one"
            )
        for mine, theirs in zip(self.parts, other.parts, strict=True):
            for name in ("layer", "width", "hook", "name"):
                if getattr(mine, name) != getattr(theirs, name):
                    raise RequestError(
                        f"{what} is of another feature space: {name} {getattr(theirs, name)} in "
                        f"{theirs.name}, here {getattr(mine, name)}; calibrate anew on this one"
                    )


class SpaceNode(NamedTuple):
    """A node wherever it fires: ``L/ID``, of an adapter ``MODULE:L/RANK``."""

    part: int
    module: str
    layer: int
    id: int

    def __str__(self) -> str:
        return f"{self.module}{':' if self.module else ''}{self.layer}/{self.id}"


def _parts(pair: ModelPair, basis: AuditBasis) -> tuple[tuple[Part, ...] | None, tuple[Part, ...]]:
    """Parts of base and candidate; the base has no adapter ranks."""
    if basis == "adapter":
        return None, tuple(adapter_parts(pair))
    choose: dict[str, Callable[[Model], Sequence[Part]]] = {
        "own": own_parts,
        "transcoder": transcoder_parts,
        "neuron": neuron_parts,
    }
    base, candidate = (tuple(choose[basis](model)) for model in pair.models)
    return base, candidate


class SpaceNodes:
    """The nodes of a pair in one basis, side by side over all parts."""

    def __init__(self, pair: ModelPair, basis: AuditBasis) -> None:
        self.pair = pair
        self.base, self.candidate = _parts(pair, basis)
        self._starts = torch.tensor([0, *(one.n_nodes for one in self.candidate)]).cumsum(0)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def name(self, node: int) -> SpaceNode:
        """What a node is called."""
        part = int(torch.searchsorted(self._starts, node, right=True)) - 1
        record = part_record(self.candidate[part])
        return SpaceNode(part, record.module, record.layer, node - int(self._starts[part]))

    def means(
        self, input_ids: Int64[Tensor, " pos"]
    ) -> tuple[Float[Tensor, " node"], Float[Tensor, " node"]]:
        """Mean activation of every node over a text's tokens, base and candidate.

        Raises:
            RequestError: If there is no token but the first.
            WorkFailed: If an activation is not finite.
        """
        if len(input_ids) <= SKIPPED:
            raise RequestError("a prompt of the suite has a single token; give a longer text")
        candidate = _means(self.pair.merged, self.candidate, input_ids)
        if self.base is None:
            return torch.zeros_like(candidate), candidate
        return _means(self.pair.base, self.base, input_ids), candidate


@torch.no_grad()
def _means(
    model: Model, parts: tuple[Part, ...], input_ids: Int64[Tensor, " pos"]
) -> Float[Tensor, " node"]:
    reads = captured(model, parts, input_ids)
    means = torch.cat(
        [
            part.activations(x)[SKIPPED:].float().mean(0).cpu()
            for part, x in zip(parts, reads, strict=True)
        ]
    )
    if not means.isfinite().all():
        raise WorkFailed(
            f"{model.name} model: activations are not finite; try --dtype float32, or run "
            "em-circuits doctor"
        )
    return means


def _short(value: str | None) -> str:
    return "none" if value is None else value[:12]
