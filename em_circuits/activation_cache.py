"""Activation caches: a model's activations on undisturbed prompts.

One forward pass of the real model records MLP inputs and active features, MLP outputs,
attention patterns and outputs, the scale of every norm, and the logits.

    cache = ActivationCache.capture(model, input_ids)
    cache.active, cache.activations, cache.logits

The rows of a batch may be of several prompts. Prompts of different lengths are padded at their end:
attention is causal, so no real position sees the padding. Where all rows share one prompt there is
a single row, which broadcasts.

    BatchedCache.of([cache])               # every row of the batch is this prompt
    BatchedCache.of([cache_a, cache_b])    # row 0 is a, row 1 is b
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from em_circuits.models import Model
from em_circuits.models.dictionaries import reconstruction

_COMPARED = 64
"""Stored activations of a layer that are computed again."""
_SAME = 64
"""Roundings by which activations of one input may differ."""


@dataclass(frozen=True)
class ActivationCache:
    """One undisturbed prompt on one model; tensors on the model's device, in its precision."""

    input_ids: Int64[Tensor, " pos"]
    inputs: Float[Tensor, "layer pos d_model"]
    """What the dictionaries encode."""
    mlp_outputs: Float[Tensor, "layer pos d_model"]
    """What the dictionaries stand for, and where features are written."""
    attention_outputs: Float[Tensor, "layer pos d_model"]
    patterns: Float[Tensor, "layer head pos pos"]
    """Softmax of the attention scores."""
    norm_scales: tuple[Tensor | None, ...]
    """1 / size of what each norm of the residual stream divides (`Decoder.norms`); None for a norm
    of a form that is not known."""
    active: Int64[Tensor, "active 3"]
    """(layer, position, feature id), sorted; none before `first_position`."""
    activations: Float[Tensor, " active"]
    width: int
    """Features (or neurons) of a layer."""
    first_position: int
    """First position with features."""
    logits: Float[Tensor, " vocab"]
    """Raw, after the last position, in float32."""

    @property
    def n_pos(self) -> int:
        return len(self.input_ids)

    @classmethod
    @torch.no_grad()
    def capture(cls, model: Model, input_ids: Int[Tensor, " pos"]) -> ActivationCache:
        """Run the model once and record its activations.

        Args:
            model: The real model is run, with eager attention.
            input_ids: One prompt, with its beginning-of-sequence token.
        """
        ids = input_ids.to(model.device).long()
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def read(layer: int, x: Tensor) -> None:
            inputs[layer] = x[0]

        def write(layer: int, output: Tensor) -> None:
            outputs[layer] = output[0]

        with (
            _recording(attention_modules(model), lambda _i, _args, out: out) as attention,
            _recording(norm_modules(model), partial(_scale, model)) as scales,
            model.sites.hooked(read, write),
        ):
            logits = model.hf(input_ids=ids[None], use_cache=False).logits[0, -1]
        layers = range(model.sites.n_layers)
        found = _known(model, ids, inputs)
        if found is None:
            found = _active(model, inputs)
            if model.transcoders is not None:  # every neuron is active, and costs nothing to find
                model.remember_active(ids, *found)
        active, activations = found
        return cls(
            input_ids=ids,
            inputs=torch.stack([inputs[i] for i in layers]),
            mlp_outputs=torch.stack([outputs[i] for i in layers]),
            attention_outputs=torch.stack([attention[i][0][0] for i in layers]),
            patterns=torch.stack([attention[i][1][0] for i in layers]),
            norm_scales=tuple(scales[i] for i in range(len(scales))),
            active=active,
            activations=activations,
            width=model.dictionaries[0].width,
            first_position=model.dictionaries[0].first_position,
            logits=logits.float(),
        )

    def keys(self, coordinates: Int[Tensor, "op 3"]) -> Int64[Tensor, " op"]:
        """One integer per (layer, position, feature id), which sorts as the triples do."""
        layer, position, feature = coordinates.long().unbind(1)
        return (layer * self.n_pos + position) * self.width + feature

    def coordinates(self, keys: Int64[Tensor, " op"]) -> Int64[Tensor, "op 3"]:
        """(layer, position, feature id) of each key."""
        place = keys // self.width
        return torch.stack([place // self.n_pos, place % self.n_pos, keys % self.width], dim=1)

    def activation_of(self, coordinates: Int[Tensor, "op 3"]) -> Float[Tensor, " op"]:
        """Activations of any (layer, position, feature id); 0 where inactive."""
        asked = self.keys(coordinates.to(self.active.device))
        if not len(self.active):
            return self.activations.new_zeros(len(asked))
        known = self.keys(self.active)
        at = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        return torch.where(known[at] == asked, self.activations[at], 0)

    def dense_activations(self, layer: int) -> Float[Tensor, "pos feature"]:
        """Activations of every feature of a layer, zeros included."""
        dense = self.activations.new_zeros((self.n_pos, self.width))
        here = self.of_layer(layer)
        dense[self.active[here, 1], self.active[here, 2]] = self.activations[here]
        return dense

    def of_layer(self, layer: int) -> slice:
        """Which of the active features are a layer's."""
        bounds = torch.searchsorted(self._layers, self._layers.new_tensor([layer, layer + 1]))
        return slice(*bounds.tolist())

    @cached_property
    def _layers(self) -> Int64[Tensor, " active"]:
        return self.active[:, 0].contiguous()

    def errors(self, model: Model) -> Float[Tensor, "layer pos d_model"]:
        """Errors: MLP output minus what a model's dictionaries make of these activations.

        Position 0 has no transcoder features, so its error is the MLP output minus the decoder's
        bias. Neurons leave none (but rounding) with the model they were captured on; with another
        one, what the two models' ``down_proj`` write differently at these activations.

        Args:
            model: Whose decoders are asked.
        """
        acts = {layer: self.dense_activations(layer) for layer in range(model.sites.n_layers)}
        parts = [
            self.mlp_outputs[i] - reconstruction(model.dictionaries, i, acts, self.inputs[i])
            for i in acts
        ]
        return torch.stack(parts).detach()


def attention_modules(model: Model) -> tuple[nn.Module, ...]:
    """The attention module of every layer."""
    return tuple(layer.attention for layer in model.decoder.layers)


def norm_modules(model: Model) -> tuple[nn.Module, ...]:
    """Every norm of the residual stream, in the order in which they run."""
    return tuple(norm.module for norm in model.decoder.norms)


def _scale(model: Model, index: int, args: tuple, output: Tensor) -> Tensor | None:
    norm, x = model.decoder.norms[index], args[0]
    # Checked on the spot, so that no norm passes for another.
    return norm.scale(x)[0] if norm.fits(x, output) else None


def _active(model: Model, inputs: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    places, values = [], []
    for layer, dictionary in enumerate(model.dictionaries):
        acts = dictionary.activations(inputs[layer])
        found = acts.nonzero()
        places.append(torch.cat([torch.full_like(found[:, :1], layer), found], dim=1))
        values.append(acts[found[:, 0], found[:, 1]])
    return torch.cat(places), torch.cat(values).detach()


def _known(model: Model, ids: Tensor, inputs: dict[int, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Active nodes of a prompt that was encoded before or has a graph, if what the model reads now
    gives the same activations; without those nothing need be encoded."""
    found = model.known_active(ids)
    if found is None or not len(found[0]):
        return None
    active, activations = found[0].to(ids.device), found[1].to(ids.device, model.dtype)
    tolerance = _SAME * torch.finfo(model.dtype).eps
    for layer in {int(active[0, 0]), int(active[-1, 0])}:
        rows = (active[:, 0] == layer).nonzero()[:_COMPARED, 0]
        distinct, index = active[rows, 2].unique(return_inverse=True)
        encoder = model.dictionaries[layer].encoder(distinct)
        now = encoder.activations(inputs[layer][active[rows, 1]], index)
        if (now - activations[rows]).abs().max() > tolerance * now.abs().max():
            return None
    return active, activations


@contextlib.contextmanager
def _recording(modules: tuple[nn.Module, ...], keep: Any) -> Iterator[dict[int, Any]]:
    """Collect ``keep(number, args, output)`` of every module, by its number."""
    recorded: dict[int, Any] = {}

    def recorder(index: int) -> Any:
        def hook(_module: nn.Module, args: tuple, output: Any) -> None:
            recorded[index] = keep(index, args, output)

        return hook

    handles = [m.register_forward_hook(recorder(i)) for i, m in enumerate(modules)]
    try:
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class BatchedCache:
    """Caches of a batch's rows; the axis ``row`` has one entry where all rows share a prompt."""

    states: tuple[ActivationCache, ...]

    @classmethod
    def of(cls, states: Sequence[ActivationCache]) -> BatchedCache:
        """One cache per row; a single one where all rows are of the same prompt."""
        first = states[0]
        return cls((first,) if all(state is first for state in states) else tuple(states))

    @property
    def shared(self) -> bool:
        """Whether all rows are of one prompt."""
        return len(self.states) == 1

    @cached_property
    def lengths(self) -> Int64[Tensor, " row"]:
        """Tokens of each prompt."""
        return torch.tensor([state.n_pos for state in self.states])

    @cached_property
    def n_pos(self) -> int:
        """Tokens of the longest prompt."""
        return max(state.n_pos for state in self.states)

    @cached_property
    def input_ids(self) -> Int64[Tensor, "row pos"]:
        return self._padded(lambda state: state.input_ids, 0)

    @cached_property
    def inputs(self) -> Float[Tensor, "layer row pos d_model"]:
        return self._padded(lambda state: state.inputs, 1).transpose(0, 1)

    @cached_property
    def mlp_outputs(self) -> Float[Tensor, "layer row pos d_model"]:
        return self._padded(lambda state: state.mlp_outputs, 1).transpose(0, 1)

    @cached_property
    def patterns(self) -> Float[Tensor, "layer row head pos pos"]:
        """Padding attends to nothing, and is attended to by nothing."""
        whole = self._padded(lambda state: self._pad(state.patterns, 2), 3)
        return whole.transpose(0, 1)

    @cached_property
    def norm_scales(self) -> tuple[Tensor | None, ...]:
        """Per norm ``[row pos 1]``; None for a norm that cannot be frozen."""
        return tuple(
            None if first is None else self._padded(lambda s, i=i: s.norm_scales[i], 0)  # type: ignore[misc]
            for i, first in enumerate(self.states[0].norm_scales)
        )

    def dense_activations(self, layer: int) -> Float[Tensor, "row pos feature"]:
        """Activations of every feature of a layer, zeros included."""
        return self._padded(lambda state: state.dense_activations(layer), 0)

    def active_in(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """(row, position, feature id) of every active feature of a layer."""
        parts = []
        for row, state in enumerate(self.states):
            here = state.active[state.of_layer(layer), 1:]
            parts.append(torch.cat([torch.full_like(here[:, :1], row), here], dim=1))
        row, position, feature = torch.cat(parts).T.contiguous()
        return row, position, feature

    def activation_of(
        self, row: Int64[Tensor, " op"], coordinates: Int64[Tensor, "op 3"]
    ) -> Float[Tensor, " op"]:
        """Undisturbed activation of each (layer, position, feature id) in its row's prompt."""
        if self.shared:
            return self.states[0].activation_of(coordinates)
        values = self.states[0].activations.new_zeros(len(row))
        for number in row.unique().tolist():
            mine = row == number
            values[mine.to(values.device)] = self.states[number].activation_of(coordinates[mine])
        return values

    def _padded(self, part: Callable[[ActivationCache], Tensor], dim: int) -> Tensor:
        return torch.stack([self._pad(part(state), dim) for state in self.states])

    def _pad(self, tensor: Tensor, dim: int) -> Tensor:
        missing = self.n_pos - tensor.shape[dim]
        if not missing:
            return tensor
        shape = list(tensor.shape)
        shape[dim] = missing
        return torch.cat([tensor, tensor.new_zeros(shape)], dim)
