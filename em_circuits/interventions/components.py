"""How much of the shift enters by features, by transcoder errors, by attention?

Four treatments of one model, each with values of the other one, the rest running free. With the
base treated and the merged model the other:

* features: every changed feature is set to its merged activation;
* errors: ``err_merged - err_base`` is added at every layer and position, where the error is the
  MLP output minus what the transcoder makes of it (an adapter on ``down_proj`` enters here);
* attention: every attention layer gives its merged output;
* together: merged attention outputs, features and errors at once.

    logits = component_logits(pair.models, (base_state, merged_state), changed)

In *together* the error is put at the other model's value rather than added to: the own error has
already answered to the other's inputs, and would be counted twice. MLP outputs then equal the
other model's, so what *together* reaches is the whole shift but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.intervention import FIRST_POSITION
from em_circuits.interventions.changed import ChangedFeatures
from em_circuits.interventions.engine import run_rows
from em_circuits.interventions.plan import Plan
from em_circuits.interventions.regimes import replaced_attention
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model


@dataclass(frozen=True)
class ComponentLogits:
    """Raw last-position logits of the treated model under each treatment, in float32."""

    features: Float[Tensor, " vocab"]
    errors: Float[Tensor, " vocab"]
    attention: Float[Tensor, " vocab"]
    together: Float[Tensor, " vocab"]


def component_logits(
    models: tuple[Model, Model], states: tuple[PromptState, PromptState], changed: ChangedFeatures
) -> ComponentLogits:
    """Run the four treatments.

    Args:
        models: The treated one and the other; only the treated one is run.
        states: The same prompt, captured on each.
        changed: The features in which the two states differ.
    """
    model, (own, other) = models[0], states
    before, after = own.errors(models[0]), other.errors(models[1])
    all_features = changed.plan([torch.arange(len(changed))])
    nothing = changed.plan([torch.arange(0)])

    def run(plan: Plan) -> Tensor:
        # The hooks below speak of whole prompts, so no position may come from a cache.
        return run_rows(model, own, plan, share_prefix=False)[0]

    features = run(all_features)
    with _added(model, after - before):
        errors = run(nothing)
    with replaced_attention(model, other.attention_outputs):
        attention = run(nothing)
        with _errors_at(model, after):
            together = run(all_features)
    return ComponentLogits(features, errors, attention, together)


@contextlib.contextmanager
def _added(model: Model, change: Float[Tensor, "layer pos d_model"]) -> Iterator[None]:
    """Add `change` to the MLP outputs."""
    with model.sites.hooked(write=lambda layer, output: output + change[layer]):
        yield


@contextlib.contextmanager
def _errors_at(model: Model, errors: Float[Tensor, "layer pos d_model"]) -> Iterator[None]:
    """MLP outputs are what the transcoders make of their inputs, plus `errors`."""
    outputs: dict[int, Tensor] = {}

    def read(layer: int, inputs: Tensor) -> None:
        transcoder = model.transcoders[layer]
        active = transcoder.encode(inputs)
        active[:, :FIRST_POSITION] = 0
        outputs[layer] = transcoder.decode(active, inputs) + errors[layer]

    with model.sites.hooked(read, lambda layer, _output: outputs.pop(layer)):
        yield
