"""Circuits run: a set of nodes kept or removed, on one prompt.

Every node has two values, that of the whole model and that of its *reference*. With m the contrast,

    sufficiency(C) = (m(C as it is, the rest at the reference) - m(reference)) / shift
    necessity(C)   = (m(whole) - m(C at the reference)) / shift,   shift = m(whole) - m(reference)

the faithfulness and its complement that circuit benchmarks use (Mueller et al. 2025,
arXiv:2504.13151, sec. 3). The reference is either

* the base of a pair: the nodes are those that the fine-tune changed, set to the one model's or the
  other's values (`between`); errors and attention stay those of the model that is treated, so that
  even all nodes need not reach 1; or
* nothing: the nodes are the active ones of one model, ablated (`alone`); or
* the same model on another prompt of as many tokens: the nodes are those that differ (`resampled`).

    runs = CircuitRuns.between(pair, input_ids, words)
    runs.sufficiency([torch.arange(20)]), runs.necessity([torch.arange(20)])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.interventions.edits import EditBatch
from em_circuits.interventions.feature_rows import decoder_norms
from em_circuits.interventions.integrated import integrated_effects
from em_circuits.interventions.patching import MIN_SHIFT, ActivationDiff
from em_circuits.interventions.run import run_rows
from em_circuits.models import Model, ModelPair

Subsets = Sequence[Int64[Tensor, " _"]]
"""Sets of nodes, by their index in `CircuitRuns.coordinates`."""


@dataclass(frozen=True, eq=False)
class CircuitRuns:
    """The nodes of one prompt, with the two values of each.

    Attributes:
        whole: The model that the claim is about.
        reference: The model that sets are put into for sufficiency: the base, or the same one.
        caches: Of the whole, of the reference.
        coordinates: (layer, position, id) of every node, sorted.
        on: Activations in the whole model.
        off: At the reference.
        contrast: What is measured.
    """

    whole: Model
    reference: Model
    caches: tuple[ActivationCache, ActivationCache]
    coordinates: Int64[Tensor, "node 3"]
    on: Float[Tensor, " node"]
    off: Float[Tensor, " node"]
    contrast: Contrast

    @classmethod
    def between(
        cls, pair: ModelPair, input_ids: Int[Tensor, " pos"], contrast: Contrast
    ) -> CircuitRuns:
        """What the fine-tune changed: base and merged model on one prompt."""
        whole, reference = (
            ActivationCache.capture(model, input_ids) for model in (pair.merged, pair.base)
        )
        diff = ActivationDiff.between(reference, whole)
        caches = whole, reference
        return cls(pair.merged, pair.base, caches, diff.coordinates, diff.other, diff.own, contrast)

    @classmethod
    def alone(cls, model: Model, input_ids: Int[Tensor, " pos"], contrast: Contrast) -> CircuitRuns:
        """One model's active nodes against nothing."""
        state = ActivationCache.capture(model, input_ids)
        on = state.activations.float().cpu()
        places = state.active.cpu()
        return cls(model, model, (state, state), places, on, torch.zeros_like(on), contrast)

    @classmethod
    def resampled(
        cls,
        model: Model,
        input_ids: Int[Tensor, " pos"],
        other_ids: Int[Tensor, " pos"],
        contrast: Contrast,
    ) -> CircuitRuns:
        """One model on one prompt; nodes that leave the circuit take their values on another one.

        Resampling ablation (Chan et al. 2022, causal scrubbing); of attention nothing is replaced.
        """
        state, other = (ActivationCache.capture(model, ids) for ids in (input_ids, other_ids))
        diff = ActivationDiff.between(other, state)
        caches = state, state
        return cls(model, model, caches, diff.coordinates, diff.other, diff.own, contrast)

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def against_base(self) -> bool:
        """Whether the reference is another model."""
        return self.whole is not self.reference

    @cached_property
    def ends(self) -> tuple[float, float]:
        """Contrast of the whole model and of the reference."""
        whole = self._value(self.caches[0].logits[None])
        if self.against_base:
            return float(whole[0]), float(self._value(self.caches[1].logits[None])[0])
        return float(whole[0]), float(self.kept([torch.arange(0)])[0])

    @property
    def shift(self) -> float:
        """Whole minus reference."""
        return self.ends[0] - self.ends[1]

    @property
    def measurable(self) -> bool:
        """Whether the shift is large enough to have shares."""
        return abs(self.shift) >= MIN_SHIFT

    def kept(self, subsets: Subsets) -> Float[Tensor, " set"]:
        """Contrast with these nodes as in the whole model, and every other at the reference."""
        if self.against_base:
            return self._run(self.reference, self.caches[1], subsets, self.on)
        every = torch.ones(len(self), dtype=torch.bool)
        rest = []
        for subset in subsets:
            left = every.clone()
            left[subset] = False
            rest.append(left.nonzero()[:, 0])
        return self._run(self.whole, self.caches[0], rest, self.off)

    def removed(self, subsets: Subsets) -> Float[Tensor, " set"]:
        """Contrast of the whole model with these nodes at the reference."""
        return self._run(self.whole, self.caches[0], subsets, self.off)

    def sufficiency(self, subsets: Subsets) -> Float[Tensor, " set"] | None:
        """Share of the shift that the nodes bring by themselves; None if it is too small."""
        if not self.measurable:
            return None
        return (self.kept(subsets) - self.ends[1]) / self.shift

    def necessity(self, subsets: Subsets) -> Float[Tensor, " set"] | None:
        """Share of the shift that goes with the nodes; None if it is too small."""
        if not self.measurable:
            return None
        return (self.ends[0] - self.removed(subsets)) / self.shift

    def scores(self) -> dict[str, Callable[[], Float[Tensor, " node"]]]:
        """Simple rankings of the nodes by what they do for the whole model's contrast.

        ``magnitude``: change of activation times length of the decoder row, whatever it does.
        ``gradient``: first order, at the reference. ``integrated``: along the line from it.
        """
        weights = self.contrast.weights(len(self.caches[0].logits))
        start, end = self.off, self.on
        model, cache = self.reference, self.caches[1]

        def magnitude() -> Tensor:
            norms = decoder_norms(self.whole, self.coordinates[:, 0], self.coordinates[:, 2])
            return (end - start).abs() * norms

        def gradient() -> Tensor:
            diff = ActivationDiff(self.coordinates, start, end)
            return diff.gradient_effects(model, cache, weights)

        def integrated() -> Tensor:
            effects = integrated_effects(
                model, cache.input_ids, self.coordinates, start, end, weights[None]
            )
            return effects[0]

        return {"magnitude": magnitude, "gradient": gradient, "integrated": integrated}

    def logits(self, subsets: Subsets) -> Float[Tensor, "set vocab"]:
        """Next-token logits of the whole model with these nodes at the reference."""
        return run_rows(self.whole, self.caches[0], self._edits(subsets, self.off))

    def _run(
        self, model: Model, cache: ActivationCache, subsets: Subsets, values: Tensor
    ) -> Float[Tensor, " set"]:
        return self._value(run_rows(model, cache, self._edits(subsets, values)))

    def _edits(self, subsets: Subsets, values: Tensor) -> EditBatch:
        empty = torch.empty(0, dtype=torch.int64)
        row = [torch.full((len(subset),), i) for i, subset in enumerate(subsets)]
        which = torch.cat([empty, *subsets])
        return EditBatch.setting(
            len(subsets), torch.cat([empty, *row]), self.coordinates[which], values[which]
        )

    def _value(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        values = self.contrast.value(logits)
        assert values is not None
        return values.cpu().float()
