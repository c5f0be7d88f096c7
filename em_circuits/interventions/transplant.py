"""What comes of giving one model another one's feature activations on a prompt?

    transplant = Transplant.of(pair, input_ids, groups, "sufficiency")
    transplant.shares(transplant.run([torch.arange(20)]))     # of the shift, 20 features moved

*Sufficiency* treats the base with the merged model's values, *necessity* the merged model with the
base's. A share counts from the treated model's own contrast towards the other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from em_circuits.contrast import Contrast
from em_circuits.interventions.changed import ChangedFeatures
from em_circuits.interventions.components import component_logits
from em_circuits.interventions.engine import run_rows
from em_circuits.interventions.mediation_result import MIN_SHIFT, Direction, InModel, Shares
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model, ModelPair


@dataclass(frozen=True)
class Transplant:
    """The treated model, the other, and the features in which they differ on one prompt."""

    models: tuple[Model, Model]
    """The treated one, the other."""
    states: tuple[PromptState, PromptState]
    changed: ChangedFeatures
    groups: Contrast
    direction: Direction

    @classmethod
    def of(
        cls,
        pair: ModelPair,
        input_ids: Int[Tensor, " pos"],
        groups: Contrast,
        direction: Direction = "sufficiency",
    ) -> Transplant:
        """Run both models undisturbed and compare them.

        Raises:
            RequestError: If no token is evil or none is safe ("no contrast").
        """
        if not groups.is_defined:
            groups.weights(max((*groups.evil, *groups.safe, 0)) + 1)  # says what is missing
        treated, other = pair.models if direction == "sufficiency" else pair.models[::-1]
        states = PromptState.capture(treated, input_ids), PromptState.capture(other, input_ids)
        changed = ChangedFeatures.between(*states)
        return cls((treated, other), states, changed, groups, direction)

    @property
    def sign(self) -> int:
        """1 where the other model is the merged one."""
        return 1 if self.direction == "sufficiency" else -1

    @property
    def contrast(self) -> InModel:
        """Of both models, undisturbed."""
        return self._in_model([float(self.contrasts(s.logits[None])[0]) for s in self.states])

    @property
    def evil_mass(self) -> InModel:
        """Of both models, undisturbed."""
        return self._in_model([float(self.groups.evil_mass(s.logits)) for s in self.states])

    def _in_model(self, values: list[float]) -> InModel:
        return InModel(*values[:: self.sign])

    def run(self, subsets: Sequence[Tensor]) -> Float[Tensor, "row vocab"]:
        """Logits of the treated model, each subset of `changed` at the other model's values."""
        return run_rows(self.models[0], self.states[0], self.changed.plan(subsets))

    def contrasts(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Evil minus safe, in logits."""
        values = self.groups.value(logits)
        assert values is not None
        return values.cpu()

    def moved(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """How far the contrast went from the treated model's towards the other's, in logits."""
        own = self.contrasts(self.states[0].logits[None])
        return self.sign * (self.contrasts(logits) - own)

    def shares(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"] | None:
        """`moved` as a share of the shift; None if the shift is too small to have one."""
        shift = self.contrast.change
        if shift < MIN_SHIFT:
            return None
        return self.moved(logits) / shift


def layer_shares(transplant: Transplant) -> tuple[float | None, ...]:
    """Share of each layer's changed features, set together; None where the shift is too small."""
    layers = range(transplant.models[0].sites.n_layers)
    of = transplant.changed.coordinates[:, 0]
    shares = transplant.shares(transplant.run([(of == layer).nonzero()[:, 0] for layer in layers]))
    return tuple(None for _ in layers) if shares is None else tuple(shares.tolist())


def component_shares(transplant: Transplant) -> Shares:
    """Shares of features, errors, attention, and all at once."""
    treated = component_logits(transplant.models, transplant.states, transplant.changed)
    names = [f.name for f in fields(treated)]
    shares = transplant.shares(torch.stack([getattr(treated, name) for name in names]))
    values = [None] * len(names) if shares is None else shares.tolist()
    return Shares(**dict(zip(names, values, strict=True)))
