"""How much of the shift enters by features, by transcoder errors, by attention?

Four treatments of the base model, each with values of the merged one, the rest running free:

* features: every changed feature is set to its merged activation;
* errors: ``err_merged - err_base`` is added at every layer and position, where the error is the
  MLP output minus what the transcoder makes of it (an adapter on ``down_proj`` enters here);
* attention: every attention layer gives its merged output;
* together: merged attention outputs, features and errors at once.

    logits = component_logits(pair, base_state, merged_state, changed)

In *together* the error is put at its merged value rather than added to: the base's own error has
already answered to the merged inputs, and would be counted twice. MLP outputs then equal the
merged model's, so what *together* reaches is the whole shift but for rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.models import Model, ModelPair
from em_circuits.steering.changed import ChangedFeatures
from em_circuits.steering.engine import run_rows
from em_circuits.steering.intervention import FIRST_POSITION
from em_circuits.steering.plan import Plan
from em_circuits.steering.regimes import replaced_attention
from em_circuits.steering.state import PromptState


@dataclass(frozen=True)
class ComponentLogits:
    """Raw last-position logits of the base under each treatment, in float32."""

    features: Float[Tensor, " vocab"]
    errors: Float[Tensor, " vocab"]
    attention: Float[Tensor, " vocab"]
    together: Float[Tensor, " vocab"]


def component_logits(
    pair: ModelPair, base: PromptState, merged: PromptState, changed: ChangedFeatures
) -> ComponentLogits:
    """Run the four treatments.

    Args:
        pair: Only the base is run.
        base: The prompt, captured on the base.
        merged: The same prompt, captured on the merged model.
        changed: The features in which the two states differ.
    """
    model = pair.base
    before, after = base.errors(model), merged.errors(pair.merged)
    all_features = changed.plan([torch.arange(len(changed))])
    nothing = changed.plan([torch.arange(0)])

    def run(plan: Plan) -> Tensor:
        # The hooks below speak of whole prompts, so no position may come from a cache.
        return run_rows(model, base, plan, share_prefix=False)[0]

    features = run(all_features)
    with _added(model, after - before):
        errors = run(nothing)
    with replaced_attention(model, merged.attention_outputs):
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
