"""What do all rows of a batch have in common?

Attention is causal: positions before the first one that any row changes are the same in all of
them. They are run once; their keys and values are copied to every row, and the batch runs only what
comes after.

    prefix = Prefix(model, state)
    cache = prefix.cache(length=11, n_rows=64)      # a cache of positions 0 to 10
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from em_circuits.interventions.plan import Plan
from em_circuits.interventions.state import PromptState
from em_circuits.models import Model

WORTH_IT = 2
"""Positions below which a prefix saves nothing."""


class Prefix:
    """Keys and values of one undisturbed prompt."""

    def __init__(self, model: Model, state: PromptState) -> None:
        self._model, self._state = model, state

    def length(self, plan: Plan) -> int:
        """Positions that all rows of a plan share; 0 where it is not worth it."""
        if not len(plan.position):
            return 0
        first = int(plan.position.min())
        return first if first >= WORTH_IT else 0

    def cache(self, length: int, n_rows: int) -> DynamicCache:
        """A cache of the first positions for every row."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._layers):
            own = [part[:, :, :length].expand(n_rows, -1, -1, -1) for part in (keys, values)]
            cache.update(own[0], own[1], layer)
        return cache

    @cached_property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        with torch.no_grad():
            done: Any = self._model.hf(
                input_ids=self._state.input_ids[None], use_cache=True, logits_to_keep=1
            )
        return [(layer.keys, layer.values) for layer in done.past_key_values.layers]
