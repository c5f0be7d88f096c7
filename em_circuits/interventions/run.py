"""Batched forward passes under interventions: next-token logits of many rows.

Rows may be of one prompt or each of its own.

    logits = run_rows(model, cache, [[], [intervention]], Regime.FREE)
    effect = demeaned(logits)[0] - demeaned(logits)[1]
    logits = run_rows(model, [cache_a, cache_b], [row, row])      # one on many prompts
    values = run_values(model, cache, [[], [intervention]], target.terms)

`run_values` reads terms of `em_circuits.target` instead of next-token logits. Tokens that a term
forces are run after the prompt, and are to an intervention what generated tokens are.

What is added where stands in `em_circuits.interventions.hooks`. Attention is causal, so positions
before the first one that any row hooks are the same in all of them: they are run once, their keys
and values are copied to every row, and the batch runs only what comes after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import DynamicCache

from em_circuits.activation_cache import ActivationCache, BatchedCache
from em_circuits.graphs.memory import RUN_BYTES, RUN_ROWS
from em_circuits.intervention import Regime
from em_circuits.interventions.edits import (
    EditBatch,
    Row,
    Treatment,
    check_interventions,
    interventions_of,
    resolve_units,
)
from em_circuits.interventions.hooks import Hooks, read_rows
from em_circuits.interventions.regimes import FrozenMLP, frozen
from em_circuits.interventions.source_model import source_model_for
from em_circuits.models import Model
from em_circuits.models.memory import BatchSize
from em_circuits.target import Branch, Columns
from pivotal_tokens.errors import RequestError


def run_rows(
    model: Model,
    state: ActivationCache | Sequence[ActivationCache],
    rows: Sequence[Row] | EditBatch,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
    source: Model | None = None,
    share_prefix: bool = True,
) -> Float[Tensor, "row vocab"]:
    """Logits after the last position, one row per list of interventions.

    An empty row is the undisturbed model. Where no activation hooks (``scale`` by 1, ``add`` 0,
    ablating what is inactive) the logits are those of an empty row in the same batch, bit for bit.

    Args:
        model: The real model is run (`Model.hf`) and left as it was.
        state: The prompt, captured on this model, or the prompt of each row.
        rows: Interventions or treatment of each row, or a edits of them; a treatment's own regime
            does not count here.
        regime: What is frozen meanwhile.
        batch_size: Rows per forward pass; None fits them into memory.
        source: Where rows that replace tensors take them from.
        share_prefix: Run positions that no row hooks once for all rows.

    Returns:
        Raw logits in float32.

    Raises:
        RequestError: If an intervention has no place in the model or the prompt.
    """
    batches = iter_rows(
        model, state, rows, regime, batch_size=batch_size, source=source, share_prefix=share_prefix
    )
    parts = [logits for _, logits in batches]
    one = state if isinstance(state, ActivationCache) else state[0]
    return torch.cat(parts) if parts else one.logits.new_zeros((0, len(one.logits)))


def iter_rows(
    model: Model,
    state: ActivationCache | Sequence[ActivationCache],
    rows: Sequence[Row] | EditBatch,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
    source: Model | None = None,
    share_prefix: bool = True,
) -> Iterator[tuple[int, Tensor]]:
    """Like `run_rows`, batch by batch: (number of the first row, its ``[row vocab]`` logits)."""
    n_rows = rows.n_rows if isinstance(rows, EditBatch) else len(rows)
    states = states_of(state, n_rows)
    given: Sequence[Row] = [] if isinstance(rows, EditBatch) else prepared(model, states, rows)
    if not n_rows:
        return
    edits = rows if isinstance(rows, EditBatch) else edits_of(states, given)
    longest = max(states, key=lambda s: s.n_pos)
    size = batch_size or default_batch(model, longest, regime)
    batches = Batches(model, [edits], regime, share_prefix=share_prefix)

    def run(start: int, stop: int) -> Tensor:
        part = edits.rows(start, stop)
        tensors = source_model_for(model, source, given[start:stop], model.sites.n_layers)
        batch = batches.batch(
            BatchedCache.of(states[start:stop]), part, replaces=tensors is not None
        )
        if tensors is not None:
            batch.hooks.patched = tensors.run(input_ids=batch.input_ids)
        return batch.run(use_cache=False)[0]

    yield from BatchSize(size).over(n_rows, run)


def run_values(
    model: Model,
    state: ActivationCache,
    rows: Sequence[Row] | EditBatch,
    targets: Columns,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
) -> Float[Tensor, "row target"]:
    """Values of targets under interventions on one prompt, one row per list of interventions.

    Args:
        model: The real model is run and left as it was.
        state: The prompt, captured on this model.
        rows: As for `run_rows`; positions by number are the prompt's.
        targets: Terms, token ids or weights of the next token's logits.
        regime: What is frozen meanwhile, forced tokens included.
        batch_size: Rows per forward pass; None fits them into memory.

    Returns:
        Float32 in the targets' units, on the CPU.

    Raises:
        RequestError: If an intervention has no place in the model or the prompt.
    """
    batches = iter_values(model, state, rows, targets, regime, batch_size=batch_size)
    return torch.cat([torch.empty(0, len(targets)), *(values for _, values in batches)])


def iter_values(
    model: Model,
    state: ActivationCache,
    rows: Sequence[Row] | EditBatch,
    targets: Columns,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[int, Float[Tensor, "row target"]]]:
    """Like `run_values`, batch by batch: (number of the first row, its values)."""
    n_rows = rows.n_rows if isinstance(rows, EditBatch) else len(rows)
    given: Sequence[Row] = []
    if not isinstance(rows, EditBatch):
        given = prepared(model, [state] * n_rows, rows)
    runs = []
    for branch in Branch.of(targets):
        if not branch.terms or not n_rows:
            continue
        longer = with_forced(model, state, branch)
        edits = (
            rows
            if isinstance(rows, EditBatch)
            else edits_of([state] * n_rows, given, n_forced=len(branch.forced))
        )
        runs.append((branch, longer, edits, Batches(model, [edits], regime)))
    if not runs:
        return
    size = batch_size or default_batch(model, state, regime, targets=targets)

    def values(start: int, stop: int) -> Tensor:
        total = torch.zeros(stop - start, len(targets))
        for branch, longer, edits, batches in runs:
            part = edits.rows(start, stop)
            first = branch.first_read(state.n_pos)
            batch = batches.batch(BatchedCache.of([longer]), part, at_most=first)
            total += batch.values(branch, state.input_ids).cpu()
        return total

    if batch_size is None:
        yield from BatchSize(size).over(n_rows, values)
    else:  # whoever gives a size may rely on it
        for start in range(0, n_rows, size):
            yield start, values(start, min(start + size, n_rows))


def with_forced(model: Model, state: ActivationCache, branch: Branch) -> ActivationCache:
    """The undisturbed prompt with a branch's forced tokens."""
    if not branch.forced:
        return state
    return ActivationCache.capture(model, branch.ids(state.input_ids))


def run_branch(
    model: Model,
    longer: ActivationCache,
    edits: EditBatch,
    branch: Branch,
    prompt: Int64[Tensor, " pos"],
) -> Float[Tensor, "row target"]:
    """One pass over a branch's sequence, edited anywhere in it, no position from a cache.

    Args:
        model: The real model is run.
        longer: The branch's sequence, captured on it (`with_forced`).
        edits: Positions are the sequence's.
        branch: What is read.
        prompt: The prompt alone.
    """
    batches = Batches(model, [edits], Regime.FREE, share_prefix=False)
    return batches.batch(BatchedCache.of([longer]), edits).values(branch, prompt).cpu()


def states_of(
    state: ActivationCache | Sequence[ActivationCache], n_rows: int
) -> Sequence[ActivationCache]:
    """The state of each row."""
    if isinstance(state, ActivationCache):
        return [state] * n_rows
    if len(state) != n_rows:
        raise RequestError(f"{n_rows} rows on {len(state)} prompts; give one prompt per row")
    return state


def prepared(model: Model, states: Sequence[ActivationCache], rows: Sequence[Row]) -> list[Row]:
    """Rows that have been checked, with every value absolute."""
    found: list[Row] = []
    for state, row in zip(states, rows, strict=True):
        items = resolve_units(state, interventions_of(row))
        check_interventions(model, items, state.n_pos)
        whole = isinstance(row, Treatment)
        found.append(row.model_copy(update={"interventions": items}) if whole else items)  # type: ignore[union-attr]
    return found


def edits_of(
    states: Sequence[ActivationCache], rows: Sequence[Row], *, n_forced: int = 0
) -> EditBatch:
    """Prepared rows as tensors, each on its own prompt."""
    lengths = [state.n_pos for state in states]
    first = states[0].first_position
    return EditBatch.of(rows, lengths, first_position=first, n_forced=n_forced)


def default_batch(
    model: Model, state: ActivationCache, regime: Regime, *, targets: Columns = ()
) -> int:
    """Rows whose activations fit into a modest piece of memory, with what `targets` read."""
    branches = Branch.of(targets)
    n_pos = state.n_pos + max(len(branch.forced) for branch in branches)
    n_read = max(branch.n_read(state.n_pos) for branch in branches)
    hidden, inner = model.decoder.d_model, model.decoder.d_mlp
    per_position = 10 * hidden + 3 * inner + 3 * state.patterns.shape[1] * n_pos
    if regime is Regime.GATES_RECOMPUTED:
        per_position += 3 * state.width
    row = n_pos * per_position * state.inputs.element_size()
    row += 12 * n_read * len(state.logits)
    most = 4 * RUN_BYTES if model.device.type == "cuda" else RUN_BYTES
    return max(1, min(RUN_ROWS, most // row))


class Batches:
    """Makes the batches of one run; what they have in common is fetched once."""

    def __init__(
        self, model: Model, every: Sequence[EditBatch], regime: Regime, *, share_prefix: bool = True
    ) -> None:
        self.model, self.regime = model, regime
        self.rows = read_rows(model, every)
        self._share_prefix = share_prefix and not regime.freezes_norms
        self._prefix: tuple[ActivationCache, Prefix] | None = None
        self._mlps: tuple[ActivationCache, dict[int, FrozenMLP]] | None = None

    def batch(
        self,
        stacked: BatchedCache,
        edits: EditBatch,
        *,
        replaces: bool = False,
        at_most: int | None = None,
    ) -> Batch:
        """A batch of prompts, ready to run; from position `at_most` on at the latest."""
        start, cache = 0, None
        if self._share_prefix and stacked.shared and not replaces:
            prefix = self._prefix_of(stacked.states[0])
            start = prefix.length(edits, at_most)
            cache = prefix.cache(start, edits.n_rows) if start else None
        hooks = Hooks(
            self.model,
            edits,
            self.rows,
            self.regime,
            start,
            stacked,
            self._frozen_mlps(stacked) if self.regime.freezes_norms else {},
        )
        return Batch(stacked, hooks, cache)

    def _prefix_of(self, state: ActivationCache) -> Prefix:
        if self._prefix is None or self._prefix[0] is not state:
            self._prefix = state, Prefix(self.model, state.input_ids)
        return self._prefix[1]

    def _frozen_mlps(self, stacked: BatchedCache) -> dict[int, FrozenMLP]:
        layers = range(self.model.sites.n_layers)
        if not stacked.shared:
            return {i: FrozenMLP(self.model, stacked, i, self.regime) for i in layers}
        state = stacked.states[0]
        if self._mlps is None or self._mlps[0] is not state:
            frozen_mlps = {i: FrozenMLP(self.model, stacked, i, self.regime) for i in layers}
            self._mlps = state, frozen_mlps
        return self._mlps[1]


class Batch:
    """One forward pass over the prompts of some rows."""

    def __init__(self, stacked: BatchedCache, hooks: Hooks, cache: Any) -> None:
        self.stacked, self.hooks, self._cache = stacked, hooks, cache
        ids = stacked.input_ids.expand(hooks.edits.n_rows, -1)
        self.input_ids: Int64[Tensor, "row pos"] = ids[:, hooks.start :]

    @torch.no_grad()
    def run(self, *, use_cache: bool) -> tuple[Float[Tensor, "row vocab"], Any]:
        """Logits after each row's last position in float32, and the cache of keys and values."""
        hooks, lengths = self.hooks, self.stacked.lengths
        model = hooks.model
        last = lengths.unique()
        keep = 1 if len(last) == 1 else (last - 1 - hooks.start).to(model.device)
        name = model.decoder.cache_name
        cached = {name: self._cache} if self._cache is not None else {}
        with (
            frozen(model, self.stacked, hooks.regime, start=hooks.start),
            hooks.installed(),
        ):
            output = model.hf(
                input_ids=self.input_ids,
                use_cache=use_cache or bool(cached),
                logits_to_keep=keep,
                **cached,
            )
        which = torch.searchsorted(last, lengths).to(model.device)
        rows = torch.arange(hooks.edits.n_rows, device=model.device)
        logits = output.logits[rows, which.expand(len(rows))]
        return logits.float(), output[name] if use_cache else None

    @torch.no_grad()
    def values(self, branch: Branch, prompt: Int64[Tensor, " pos"]) -> Float[Tensor, "row target"]:
        """A branch's targets in each row; 0 for those of other branches."""
        hooks = self.hooks
        model = hooks.model
        name = model.decoder.cache_name
        cached = {name: self._cache} if self._cache is not None else {}
        with (
            branch.reading(model.hf, prompt, start=hooks.start) as reading,
            frozen(model, self.stacked, hooks.regime, start=hooks.start),
            hooks.installed(),
        ):
            output = model.hf(
                input_ids=self.input_ids,
                use_cache=bool(cached),
                logits_to_keep=reading.keep,
                **cached,
            )
        return reading.values(output.logits)


WORTH_IT = 2
"""Positions below which a prefix saves nothing."""


class Prefix:
    """Keys and values of one undisturbed prompt, every position's in every layer."""

    def __init__(self, model: Model, input_ids: Int64[Tensor, " pos"]) -> None:
        self._model, self._input_ids = model, input_ids

    def length(self, edits: EditBatch, at_most: int | None = None) -> int:
        """Positions that all rows of a edits share; 0 where it is not worth it."""
        if not len(edits.position):
            return 0
        first = int(edits.position.min())
        first = first if at_most is None else min(first, at_most)
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
        # A cache of no particular model: its own would drop what lies before a layer's window,
        # and a position that is cut off in the middle still attends to that.
        whole = DynamicCache()
        with torch.no_grad():
            self._model.hf(
                input_ids=self._input_ids[None],
                use_cache=True,
                logits_to_keep=1,
                **{self._model.decoder.cache_name: whole},
            )
        found: list[Any] = [(layer.keys, layer.values) for layer in whole.layers]
        assert all(keys.shape[2] == len(self._input_ids) for keys, _ in found)
        return found
