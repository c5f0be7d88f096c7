"""Activation patching: activations of one model put into another on the same prompt.

*Sufficiency* treats the base with the merged model's values, *necessity* the merged model with the
base's. A share counts from the treated model's own contrast towards the other's.

    patch = ActivationPatch.of(pair, input_ids, words, "sufficiency")
    patch.shares(patch.run([torch.arange(20)]))     # of the shift, 20 features patched

Which features differ: every (layer, position, feature id) active in either model whose activation
differs; position 0 has none. How much enters by what, the rest running free:

* features: every changed feature is set to its value in the other model;
* errors: ``err_other - err_own`` is added at every layer and position, where the error is the MLP
  output minus what the transcoder makes of it (an adapter on ``down_proj`` enters here);
* attention: every attention layer gives the other model's output;
* together: all of these at once. The error is then put at the other model's value rather than added
  to: the own error has already answered to the other's inputs, and would be counted twice. MLP
  outputs then equal the other model's, so *together* reaches the whole shift but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int, Int64
from pydantic import BaseModel, computed_field
from torch import Tensor

from em_circuits.activation_cache import ActivationCache
from em_circuits.contrast import Contrast
from em_circuits.graphs.gradient import mlp_output_gradients
from em_circuits.interventions.edits import EditBatch
from em_circuits.interventions.feature_rows import decoder_norms, written_scores
from em_circuits.interventions.integrated import integrated_effects
from em_circuits.interventions.regimes import replaced_attention
from em_circuits.interventions.run import run_rows
from em_circuits.models import Model, ModelPair

Direction = Literal["sufficiency", "necessity"]
"""Which model is treated: the base, or the merged one."""

MIN_SHIFT = 0.5
"""Logits; a smaller shift, or one away from evil, has no shares."""


class InModels(BaseModel, frozen=True):
    """A figure in the two undisturbed models."""

    base: float
    merged: float

    @property
    def change(self) -> float:
        """Merged minus base."""
        return self.merged - self.base


class Shares(BaseModel, frozen=True):
    """Shares of the shift that enter by each kind of activation; None where it is too small."""

    features: float | None
    errors: float | None
    attention: float | None
    together: float | None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def interaction(self) -> float | None:
        """What is left of *together* when the sum of the three alone is taken off.

        Negative where they overlap: merged attention outputs, for one, already carry what features
        of lower layers have done to them.
        """
        if self.features is None or self.errors is None or self.attention is None:
            return None
        assert self.together is not None
        return self.together - (self.features + self.errors + self.attention)


@dataclass(frozen=True)
class ActivationDiff:
    """Features with different activations in two models; on the CPU, in float32."""

    coordinates: Int64[Tensor, "changed 3"]
    """(layer, position, feature id), sorted."""
    own: Float[Tensor, " changed"]
    """In the model that is treated."""
    other: Float[Tensor, " changed"]
    """In the model whose values it is given."""

    def __len__(self) -> int:
        return len(self.coordinates)

    @property
    def change(self) -> Float[Tensor, " changed"]:
        """The other model's minus the own activation."""
        return self.other - self.own

    @classmethod
    def between(cls, own: ActivationCache, other: ActivationCache) -> ActivationDiff:
        """Compare two models on one prompt."""
        keys = torch.cat([own.keys(own.active), other.keys(other.active)]).unique()
        active = own.coordinates(keys)
        before, after = own.activation_of(active), other.activation_of(active)
        differs = before != after
        return cls(
            active[differs].cpu(), before[differs].float().cpu(), after[differs].float().cpu()
        )

    def decoder_norms(self, model: Model) -> Float[Tensor, " changed"]:
        """Length of each one's decoder row, in float32 on the CPU."""
        return decoder_norms(model, self.coordinates[:, 0], self.coordinates[:, 2])

    def edits(self, subsets: Sequence[Int64[Tensor, " _"]]) -> EditBatch:
        """One row per subset, setting its features to the other model's activations."""
        empty = torch.empty(0, dtype=torch.int64)
        row = [torch.full((len(subset),), i) for i, subset in enumerate(subsets)]
        which = torch.cat([empty, *subsets])
        return EditBatch.setting(
            len(subsets), torch.cat([empty, *row]), self.coordinates[which], self.other[which]
        )

    def gradient_effects(
        self, model: Model, cache: ActivationCache, weights: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " changed"]:
        """First-order change of weighted logits by each feature's value in the other model."""
        gradients = mlp_output_gradients(model, cache.input_ids, weights[None])
        return written_scores(model, gradients, self.coordinates, self.change)[0]

    def integrated_effects(
        self, model: Model, cache: ActivationCache, weights: Float[Tensor, " vocab"]
    ) -> Float[Tensor, " changed"]:
        """Change of weighted logits by each feature while all move to the other model's values."""
        return integrated_effects(
            model, cache.input_ids, self.coordinates, self.own, self.other, weights[None]
        )[0]

    def scanned_effects(
        self, model: Model, cache: ActivationCache, contrast: Contrast
    ) -> Float[Tensor, " changed"]:
        """Change of the contrast when each feature alone is put at the other model's value."""
        alone = [torch.arange(0), *torch.arange(len(self)).split(1)]
        values = contrast.value(run_rows(model, cache, self.edits(alone)))
        assert values is not None
        return (values[1:] - values[0]).cpu()


@dataclass(frozen=True)
class ActivationPatch:
    """The treated model, the other, and the features in which they differ on one prompt."""

    models: tuple[Model, Model]
    """The treated one, the other."""
    caches: tuple[ActivationCache, ActivationCache]
    diff: ActivationDiff
    contrast: Contrast
    direction: Direction

    @classmethod
    def of(
        cls,
        pair: ModelPair,
        input_ids: Int[Tensor, " pos"],
        contrast: Contrast,
        direction: Direction = "sufficiency",
    ) -> ActivationPatch:
        """Run both models undisturbed and compare them.

        Raises:
            RequestError: If no token is evil or none is safe ("no contrast").
        """
        contrast.require()
        models = pair.models if direction == "sufficiency" else pair.models[::-1]
        own, other = (ActivationCache.capture(model, input_ids) for model in models)
        diff = ActivationDiff.between(own, other)
        return cls((models[0], models[1]), (own, other), diff, contrast, direction)

    @property
    def sign(self) -> int:
        """1 where the other model is the merged one."""
        return 1 if self.direction == "sufficiency" else -1

    @property
    def weights(self) -> Float[Tensor, " vocab"]:
        """Of the logits, in the contrast."""
        return self.contrast.weights(len(self.caches[0].logits))

    @property
    def contrasts(self) -> InModels:
        """Evil minus safe in both models, undisturbed."""
        return self._in_models([float(self.values(c.logits[None])[0]) for c in self.caches])

    @property
    def evil_mass(self) -> InModels:
        """Of both models, undisturbed."""
        return self._in_models([float(self.contrast.evil_mass(c.logits)) for c in self.caches])

    def _in_models(self, values: list[float]) -> InModels:
        base, merged = values[:: self.sign]
        return InModels(base=base, merged=merged)

    def run(self, subsets: Sequence[Tensor]) -> Float[Tensor, "row vocab"]:
        """Logits of the treated model, each subset of `diff` at the other model's values."""
        return run_rows(self.models[0], self.caches[0], self.diff.edits(subsets))

    def values(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """Evil minus safe, in logits."""
        values = self.contrast.value(logits)
        assert values is not None
        return values.cpu()

    def recovered(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
        """How far the contrast went from the treated model's towards the other's, in logits."""
        own = self.values(self.caches[0].logits[None])
        return self.sign * (self.values(logits) - own)

    def shares(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"] | None:
        """`recovered` as a share of the shift; None if the shift is too small to have one."""
        shift = self.contrasts.change
        return None if shift < MIN_SHIFT else self.recovered(logits) / shift

    def layer_shares(self) -> tuple[float | None, ...]:
        """Share of each layer's changed features, set together; None where there are no shares."""
        layers = range(self.models[0].sites.n_layers)
        of = self.diff.coordinates[:, 0]
        shares = self.shares(self.run([(of == layer).nonzero()[:, 0] for layer in layers]))
        return tuple(None for _ in layers) if shares is None else tuple(shares.tolist())

    def component_shares(self) -> Shares:
        """Shares of features, errors, attention, and all at once."""
        logits = self.component_logits()
        shares = self.shares(torch.stack(list(logits.values())))
        values = [None] * len(logits) if shares is None else shares.tolist()
        return Shares(**dict(zip(logits, values, strict=True)))

    def component_logits(self) -> dict[str, Float[Tensor, " vocab"]]:
        """Logits of the treated model with the other's features, errors, attention, or all."""
        model, (own, other) = self.models[0], self.caches
        # The treated model's decoders on both sides: what they make of the other's activations is
        # what setting features can do; the rest is what the other's MLPs do besides.
        before, after = own.errors(model), other.errors(model)
        every = self.diff.edits([torch.arange(len(self.diff))])
        none = self.diff.edits([torch.arange(0)])

        def run(edits: EditBatch) -> Tensor:
            # The hooks below speak of whole prompts, so no position may come from a cache.
            return run_rows(model, own, edits, share_prefix=False)[0]

        features = run(every)
        with _added(model, after - before):
            errors = run(none)
        with replaced_attention(model, other.attention_outputs):
            attention = run(none)
            with _errors_at(model, after):
                together = run(every)
        return {
            "features": features,
            "errors": errors,
            "attention": attention,
            "together": together,
        }


@contextlib.contextmanager
def _added(model: Model, change: Float[Tensor, "layer pos d_model"]) -> Iterator[None]:
    """Add `change` to the MLP outputs."""
    with model.sites.hooked(write=lambda layer, output: output + change[layer]):
        yield


@contextlib.contextmanager
def _errors_at(model: Model, errors: Float[Tensor, "layer pos d_model"]) -> Iterator[None]:
    """MLP outputs are what the dictionaries make of their inputs, plus `errors`."""
    outputs: dict[int, Tensor] = {}

    def read(layer: int, inputs: Tensor) -> None:
        dictionary = model.dictionaries[layer]
        active = dictionary.activations(inputs)
        outputs[layer] = dictionary.decode(active, inputs) + errors[layer]

    with model.sites.hooked(read, lambda layer, _output: outputs.pop(layer)):
        yield
