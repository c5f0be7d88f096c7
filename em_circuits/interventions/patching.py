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

Under a target of `em_circuits.target` the contrast is its value, and what is read of a row are the
values of its terms. Sets of changed features stand at the prompt's positions; the four kinds above
are patched at the forced tokens' positions too, where base and merged differ as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from em_circuits.interventions.run import (
    iter_rows,
    iter_values,
    run_branch,
    run_rows,
    run_values,
    with_forced,
)
from em_circuits.models import Model, ModelPair
from em_circuits.models.dictionaries import Dictionary, reconstruction
from em_circuits.target import Branch, Columns, Target
from pivotal_tokens.errors import RequestError

Direction = Literal["sufficiency", "necessity"]
"""Which model is treated: the base, or the merged one."""

MIN_SHIFT = 0.5
"""Logits, or nats; a smaller shift, or one away from evil, has no shares."""
_LAYERS = 4
"""Whose features are set in one run."""
MIN_PART = 0.01
"""The same along a direction, whose length is anybody's: part of the larger of the two values."""


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
        self, model: Model, cache: ActivationCache, of: Float[Tensor, " vocab"] | Target
    ) -> Float[Tensor, " changed"]:
        """First-order change of weighted logits by each feature's value in the other model."""
        columns, weights = _columns(of)
        gradients = mlp_output_gradients(model, cache.input_ids, columns)
        return weights @ written_scores(model, gradients, self.coordinates, self.change)

    def integrated_effects(
        self, model: Model, cache: ActivationCache, of: Float[Tensor, " vocab"] | Target
    ) -> Float[Tensor, " changed"]:
        """Change of weighted logits by each feature while all move to the other model's values."""
        columns, weights = _columns(of)
        return weights @ integrated_effects(
            model, cache.input_ids, self.coordinates, self.own, self.other, columns
        )

    def scanned_effects(
        self, model: Model, cache: ActivationCache, contrast: Contrast | Target
    ) -> Float[Tensor, " changed"]:
        """Change of the contrast when each feature alone is put at the other model's value."""
        alone = [torch.arange(0), *torch.arange(len(self)).split(1)]
        values = contrast.value(_read(model, cache, self.edits(alone), contrast))
        assert values is not None
        return (values[1:] - values[0]).cpu()


def _columns(of: Float[Tensor, " vocab"] | Target) -> tuple[Columns, Float[Tensor, " target"]]:
    """What engines differentiate, and the weights of that."""
    if isinstance(of, Target):
        return of.terms, of.over().float()
    return of[None], torch.ones(1)


def _read(
    model: Model, cache: ActivationCache, edits: EditBatch, contrast: Contrast | Target
) -> Float[Tensor, "row read"]:
    """What the contrast is made of, in each row: next-token logits, or a target's terms."""
    if isinstance(contrast, Target):
        return run_values(model, cache, edits, contrast.terms)
    return run_rows(model, cache, edits)


@dataclass(frozen=True)
class ActivationPatch:
    """The treated model, the other, and the features in which they differ on one prompt."""

    models: tuple[Model, Model]
    """The treated one, the other."""
    caches: tuple[ActivationCache, ActivationCache]
    diff: ActivationDiff
    contrast: Contrast | Target
    direction: Direction

    @classmethod
    def of(
        cls,
        pair: ModelPair,
        input_ids: Int[Tensor, " pos"],
        contrast: Contrast | Target,
        direction: Direction = "sufficiency",
    ) -> ActivationPatch:
        """Run both models undisturbed and compare them.

        Raises:
            RequestError: If no token is evil or none is safe ("no contrast"), or a continuation is
                too long.
        """
        if isinstance(contrast, Target):
            contrast.check_length(len(input_ids), pair.max_tokens)
        else:
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
        """Of the logits, in the contrast.

        Raises:
            RequestError: Under a target that is not one of next-token logits.
        """
        if isinstance(self.contrast, Target):
            raise RequestError(f"{self.contrast.name} is no contrast of next tokens")
        return self.contrast.weights(len(self.caches[0].logits))

    @property
    def measured(self) -> Float[Tensor, " vocab"] | Target:
        """What is differentiated: the contrast's weights, or the target."""
        return self.contrast if isinstance(self.contrast, Target) else self.weights

    @cached_property
    def undisturbed(self) -> tuple[Float[Tensor, "one read"], Float[Tensor, "one read"]]:
        """What is read of the treated model and of the other."""
        if not isinstance(self.contrast, Target):
            return self.caches[0].logits[None], self.caches[1].logits[None]
        none = self.diff.edits([torch.arange(0)])
        own, other = (
            _read(model, cache, none, self.contrast)
            for model, cache in zip(self.models, self.caches, strict=True)
        )
        return own, other

    @property
    def contrasts(self) -> InModels:
        """Evil minus safe in both models, undisturbed."""
        return self._in_models([float(self.values(read)[0]) for read in self.undisturbed])

    @property
    def shift(self) -> float | None:
        """Merged minus base; None if it is too small to have shares, or runs away from evil."""
        least = MIN_SHIFT
        if isinstance(self.contrast, Target) and self.contrast.unit == "activation":
            least = MIN_PART * max(abs(self.contrasts.base), abs(self.contrasts.merged))
        return None if self.contrasts.change < least else self.contrasts.change

    @property
    def evil_mass(self) -> InModels | None:
        """Of both models, undisturbed; None for a target that has none."""
        masses = [self.masses(read) for read in self.undisturbed]
        known = [float(mass[0]) for mass in masses if mass is not None]
        return self._in_models(known) if len(known) == 2 else None

    def _in_models(self, values: list[float]) -> InModels:
        base, merged = values[:: self.sign]
        return InModels(base=base, merged=merged)

    def run(self, subsets: Sequence[Tensor]) -> Float[Tensor, "row read"]:
        """What is read of the treated model, each subset of `diff` at the other model's values."""
        return _read(self.models[0], self.caches[0], self.diff.edits(subsets), self.contrast)

    def figures(
        self, subsets: Sequence[Tensor]
    ) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"] | None]:
        """`values` and `masses` of what `run` gives, which is never all in memory: a curve has
        hundreds of rows, and the logits of one are half a megabyte."""
        model, cache, edits = self.models[0], self.caches[0], self.diff.edits(subsets)
        batches = (
            iter_values(model, cache, edits, self.contrast.terms)
            if isinstance(self.contrast, Target)
            else iter_rows(model, cache, edits)
        )
        found = [(self.values(read), self.masses(read)) for _, read in batches]
        masses = [mass for _, mass in found if mass is not None]
        values = torch.cat([torch.zeros(0), *(value for value, _ in found)])
        return values, torch.cat(masses) if len(masses) == len(found) and masses else None

    def values(self, read: Float[Tensor, "row read"]) -> Float[Tensor, " row"]:
        """Evil minus safe, in logits, or the target."""
        values = self.contrast.value(read)
        assert values is not None
        return values.cpu()

    def masses(self, read: Float[Tensor, "row read"]) -> Float[Tensor, " row"] | None:
        """Evil mass; None for a target that has none."""
        masses = self.contrast.evil_mass(read)
        return None if masses is None else masses.cpu()

    def recovered(self, read: Float[Tensor, "row read"]) -> Float[Tensor, " row"]:
        """How far the contrast went from the treated model's towards the other's, in logits."""
        return self.back(self.values(read))

    def back(self, values: Float[Tensor, " row"]) -> Float[Tensor, " row"]:
        """The same of `values`."""
        return self.sign * (values - self.values(self.undisturbed[0]))

    def shares(self, read: Float[Tensor, "row read"]) -> Float[Tensor, " row"] | None:
        """`recovered` as a share of the shift; None if the shift is too small to have one."""
        shift = self.shift
        return None if shift is None else self.recovered(read) / shift

    def layer_shares(self) -> tuple[float | None, ...]:
        """Share of each layer's changed features, set together; None where there are no shares."""
        n_layers = self.models[0].sites.n_layers
        if self.shift is None:
            return (None,) * n_layers
        found, of = torch.zeros(n_layers), self.diff.coordinates[:, 0]
        # A few at a time: those of high layers have little to run.
        for layers in of.unique().split(_LAYERS):
            shares = self.shares(self.run([(of == layer).nonzero()[:, 0] for layer in layers]))
            assert shares is not None
            found[layers] = shares.float()
        return tuple(found.tolist())

    def component_shares(self) -> Shares:
        """Shares of features, errors, attention, and all at once."""
        logits = self.component_logits()
        shares = self.shares(torch.stack(list(logits.values())))
        values = [None] * len(logits) if shares is None else shares.tolist()
        return Shares(**dict(zip(logits, values, strict=True)))

    def component_logits(self) -> dict[str, Float[Tensor, " read"]]:
        """What is read of the treated model with the other's features, errors, attention, or all.

        Next-token logits; or the terms of a target, each read on its whole sequence, forced tokens
        patched as well.
        """
        if isinstance(self.contrast, Target):
            branches = [b for b in Branch.of(self.contrast.terms) if b.terms]
            parts = [self._branch_components(branch) for branch in branches]
            return {name: torch.stack([p[name] for p in parts]).sum(0) for name in parts[0]}
        model, own = self.models[0], self.caches[0]
        # The hooks speak of whole prompts, so no position may come from a cache.
        return self._components(
            *self.caches, lambda edits: run_rows(model, own, edits, share_prefix=False)[0]
        )

    def _branch_components(self, branch: Branch) -> dict[str, Float[Tensor, " read"]]:
        own, other = (
            with_forced(model, cache, branch)
            for model, cache in zip(self.models, self.caches, strict=True)
        )
        prompt = self.caches[0].input_ids

        def run(edits: EditBatch) -> Tensor:
            return run_branch(self.models[0], own, edits, branch, prompt)[0]

        return self._components(own, other, run)

    def _components(
        self, own: ActivationCache, other: ActivationCache, run: Callable[[EditBatch], Tensor]
    ) -> dict[str, Float[Tensor, " read"]]:
        model = self.models[0]
        # The treated model's decoders on both sides: what they make of the other's activations is
        # what setting features can do; the rest is what the other's MLPs do besides.
        before, after = own.errors(model), other.errors(model)
        diff = self.diff if own is self.caches[0] else ActivationDiff.between(own, other)
        every, none = diff.edits([torch.arange(len(diff))]), diff.edits([torch.arange(0)])
        features = run(every)
        with _added(model, after - before):
            errors = run(none)
        with replaced_attention(model, other.attention_outputs):
            attention = run(none)
            active = torch.cat([own.active, other.active])
            with _errors_at(model, after, active):
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
def _errors_at(
    model: Model, errors: Float[Tensor, "layer pos d_model"], active: Int64[Tensor, "active 3"]
) -> Iterator[None]:
    """MLP outputs are what the dictionaries make of their inputs, plus `errors`.

    Of transcoders, only features that are `active` somewhere in either model are encoded: beside
    the other's attention and errors, the inputs are the other's.
    """
    dictionaries: Sequence[Dictionary] = model.dictionaries
    if model.transcoders is not None:
        dictionaries = model.transcoders.among(active).layers
    outputs: dict[int, Tensor] = {}
    activations: dict[int, Tensor] = {}

    def read(layer: int, inputs: Tensor) -> None:
        activations[layer] = dictionaries[layer].activations(inputs)
        written = reconstruction(dictionaries, layer, activations, inputs)
        outputs[layer] = written + errors[layer]

    with model.sites.hooked(read, lambda layer, _output: outputs.pop(layer)):
        yield
