"""Source model: activations of another model, patched into one that reads the same tokens.

The source runs ahead of every forward pass of the recipient, over the same tokens and with a cache
of its own, and what its layers did is put into the recipient's rows that take it:

    features       mlp_out += (source's activations - own activations) @ W_dec (the recipient's)
    mlp_outputs    mlp_out  = source's

While generating both read the recipient's tokens, one by one: with both caches on this equals one
pass over the whole text (tested).

    source = SourceModel(pair.merged, treatments)
    patched = source.run(input_ids=ids)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.interventions.edits import Row, Tensors, Treatment
from em_circuits.models import Model
from em_circuits.models.dictionaries import Dictionary, one_layer_only
from pivotal_tokens.errors import RequestError

_ELEMENTS = 1 << 25
"""Activations that are held at a time."""


@dataclass(frozen=True)
class PatchedActivations:
    """What the source did in one pass, and which rows of which layers get it."""

    rows: dict[tuple[int, Tensors], Int64[Tensor, " patched"]]
    """(layer, kind) -> rows that get it."""
    inputs: dict[int, Float[Tensor, "row pos d_model"]]
    outputs: dict[int, Float[Tensor, "row pos d_model"]]
    dictionaries: tuple[Dictionary, ...]
    """The source's."""
    first: bool
    """The pass starts at position 0, which has no transcoder features."""

    def at(self, layer: int) -> bool:
        """Some row gets something at this layer."""
        return any((layer, kind) in self.rows for kind in Tensors)

    def put(
        self, model: Model, layer: int, inputs: Tensor, output: Tensor
    ) -> Float[Tensor, "row pos d_model"]:
        """The recipient's MLP output with the source's tensors in it."""
        output = output.clone()
        if (rows := self.rows.get((layer, Tensors.MLP_OUTPUTS))) is not None:
            output[rows] = self.outputs[layer][rows]
        if (rows := self.rows.get((layer, Tensors.FEATURES))) is not None:
            own, other = model.dictionaries[layer], self.dictionaries[layer]
            if own.n_writes > 1:
                raise one_layer_only("taking every feature of a layer from another model")
            for part in rows.split(max(1, _ELEMENTS // (own.width * inputs.shape[1]))):
                change = other.encode(self.inputs[layer][part]) - own.encode(inputs[part])
                if self.first:
                    change[:, : own.first_position] = 0
                ids = change.flatten(0, 1).any(0).nonzero()[:, 0]
                output[part] += change[..., ids] @ own.decoder(ids)
        return output


class SourceModel:
    """The other model, run in step with the recipient."""

    def __init__(self, model: Model, rows: Sequence[Row]) -> None:
        self._model = model
        self._rows = patched_rows(rows)
        self._cache: Any = None

    @torch.no_grad()
    def run(self, *, use_cache: bool = False, **given: Any) -> PatchedActivations:
        """Read what the recipient is about to read, and keep what the layers did."""
        inputs: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}

        def read(layer: int, x: Tensor) -> None:
            inputs[layer] = x

        def write(layer: int, output: Tensor) -> None:
            outputs[layer] = output

        first = self._cache is None
        with self._model.sites.hooked(read, write):
            name = self._model.decoder.cache_name
            given[name] = self._cache
            done = self._model.hf(**given, use_cache=use_cache, logits_to_keep=1)
        self._cache = done[name] if use_cache else None
        return PatchedActivations(self._rows, inputs, outputs, self._model.dictionaries, first)

    def expand(self, n_samples: int, rows: Sequence[Row]) -> None:
        """Go on with every row repeated."""
        self._cache.batch_repeat_interleave(n_samples)
        self._rows = patched_rows(rows)


def patched_rows(rows: Sequence[Row]) -> dict[tuple[int, Tensors], Int64[Tensor, " row"]]:
    """(layer, kind) -> rows that take the source's tensors there."""
    found: dict[tuple[int, Tensors], list[int]] = {}
    for number, row in enumerate(rows):
        if isinstance(row, Treatment) and row.replacement is not None:
            for layer in row.replacement.layers:
                found.setdefault((layer, row.replacement.tensors), []).append(number)
    return {place: torch.tensor(numbers) for place, numbers in found.items()}


def source_model_for(
    model: Model, source: Model | None, rows: Sequence[Row], n_layers: int
) -> SourceModel | None:
    """The source of a batch, if any of its rows takes one.

    Raises:
        RequestError: If a row takes tensors and there is no other model, or no such layer.
    """
    places = patched_rows(rows)
    if not places:
        return None
    if source is None or source is model:
        raise RequestError("replacing tensors needs another model to take them from")
    for layer, _ in places:
        if layer not in range(n_layers):
            raise RequestError(f"layer {layer} does not exist; choose 0 to {n_layers - 1}")
    return SourceModel(source, rows)
