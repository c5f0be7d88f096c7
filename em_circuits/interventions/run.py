"""Batched forward passes under interventions: next-token logits of many rows.

Rows may be of one prompt or each of its own.

    logits = run_rows(model, cache, [[], [intervention]], Regime.FREE)
    effect = demeaned(logits)[0] - demeaned(logits)[1]
    logits = run_rows(model, [cache_a, cache_b], [row, row])      # one on many prompts
    values = run_values(model, cache, [[], [intervention]], target.terms)

`run_values` reads terms of `em_circuits.target` instead of next-token logits. Tokens that a term
forces are run after the prompt, and are to an intervention what generated tokens are.

What is added where stands in `em_circuits.interventions.hooks`. Attention is causal, so positions
before the first one at which rows differ are the same in all of them: they are run once, their keys
and values are copied to every row, and the batch runs only what comes after. The same holds of the
layers below the first one in which rows differ: the batch starts with what they give. Features that
all rows change alike, as in a search that has chosen them, count as no difference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import repeat
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
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
from em_circuits.models.sites import LayerOutput, started_at
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
    batch_size: int | Sequence[int] | None = None,
) -> Iterator[tuple[int, Float[Tensor, "row target"]]]:
    """Like `run_values`, batch by batch: (number of the first row, its values).

    `batch_size` may give the rows of each pass, too.
    """
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

    def values(start: int, stop: int) -> Tensor:
        total = torch.zeros(stop - start, len(targets))
        for branch, longer, edits, batches in runs:
            part = edits.rows(start, stop)
            batch = batches.batch(BatchedCache.of([longer]), part, branch, state.n_pos)
            total += batch.values(branch, state.input_ids).cpu()
        return total

    if batch_size is None:
        yield from BatchSize(default_batch(model, state, regime, targets=targets)).over(
            n_rows, values
        )
        return
    start = 0  # whoever gives sizes may rely on them
    for size in repeat(batch_size) if isinstance(batch_size, int) else batch_size:
        yield start, values(start, min(start + size, n_rows))
        start += size
        if start >= n_rows:
            return


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
    """Makes the batches of one run; what they have in common is fetched or run once."""

    def __init__(
        self, model: Model, every: Sequence[EditBatch], regime: Regime, *, share_prefix: bool = True
    ) -> None:
        self.model, self.regime = model, regime
        self.rows = read_rows(model, every)
        self._shares = share_prefix and not regime.freezes_norms
        self._known: tuple[ActivationCache, dict[bytes, SharedRun]] | None = None
        self._mlps: tuple[ActivationCache, dict[int, FrozenMLP]] | None = None

    def batch(
        self,
        stacked: BatchedCache,
        edits: EditBatch,
        branch: Branch | None = None,
        n_prompt: int = 0,
        *,
        replaces: bool = False,
        every_layer: bool = False,
    ) -> Batch:
        """A batch of prompts, ready to run.

        Args:
            stacked: Of each row.
            edits: Of each row.
            branch: What is read of it; None for the next token's logits.
            n_prompt: Length of the prompt that the branch goes on.
            replaces: Whether rows also take tensors of another model.
            every_layer: Whether the rows' keys and values are wanted.
        """
        start, cache, below = 0, None, None
        if self._shares and stacked.shared and not replaces:
            start, layer, edits, shared = self._start(
                stacked, edits, branch, n_prompt, every_layer=every_layer
            )
            cache = shared.cache(start, edits.n_rows) if shared and start else None
            below = shared.below(layer, edits.n_rows, start) if shared and layer else None
        hooks = Hooks(
            self.model,
            edits,
            self.rows,
            self.regime,
            start,
            stacked,
            self._frozen_mlps(stacked) if self.regime.freezes_norms else {},
        )
        return Batch(stacked, hooks, cache, below)

    def _start(
        self,
        stacked: BatchedCache,
        edits: EditBatch,
        branch: Branch | None,
        n_prompt: int,
        *,
        every_layer: bool,
    ) -> tuple[int, int, EditBatch, SharedRun | None]:
        """First position and layer at which rows differ, what is left to be edited from there on,
        and the run that they share until then: of three ways the one with least to compute."""
        model, n_pos, n_layers = self.model, stacked.n_pos, self.model.sites.n_layers
        common = edits.in_every_row()
        found: list[tuple[int, int, int, EditBatch, SharedRun | None]]
        found = [(edits.n_rows * n_pos * n_layers, 0, 0, edits, None)]
        for alike in [torch.zeros_like(common), common] if common.any() else [common]:
            own = edits.lines(~alike)
            start = _least(own.position, branch.first_read(n_prompt) if branch else None)
            start = start if start >= WORTH_IT else 0
            # What a cross-layer feature writes further up is added where its own layer is run.
            written = own if model.dictionaries[0].n_writes == 1 else edits
            layer = _least(written.layer, branch.first_layer(n_layers) if branch else None)
            layer = 0 if every_layer else layer
            shared = self._shared(stacked, edits.rows(0, 1), alike[edits.row == 0])
            cost = edits.n_rows * (n_pos - start) * (n_layers - layer)
            cost += 0 if shared.is_run else n_pos * n_layers
            left = edits.lines(~alike | (edits.position >= start))
            found.append((cost, start, layer, left, shared))
        return min(found, key=lambda option: option[0])[1:]

    def _shared(
        self, stacked: BatchedCache, row: EditBatch, alike: Bool[Tensor, " op"]
    ) -> SharedRun:
        """The run of some lines of a row."""
        state = stacked.states[0]
        if self._known is None or self._known[0] is not state:
            self._known = state, {}
        known, lines = self._known[1], row.lines(alike)
        key = lines.key()
        if key not in known:
            self._known = state, {k: run for k, run in known.items() if not k}  # a search goes on
            known = self._known[1]
            known[key] = SharedRun(
                self.model, state.input_ids, partial(self._edited, stacked, lines)
            )
        return known[key]

    @contextlib.contextmanager
    def _edited(self, stacked: BatchedCache, lines: EditBatch) -> Iterator[None]:
        hooks = Hooks(self.model, lines, self.rows, self.regime, stacked=stacked)
        with frozen(self.model, stacked, self.regime), hooks.installed():
            yield

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

    def __init__(
        self,
        stacked: BatchedCache,
        hooks: Hooks,
        cache: Any,
        below: tuple[int, LayerOutput] | None = None,
    ) -> None:
        """`cache` holds the positions before the first that is run, `below` what the layers below
        the first that is run (its number) give; None where all are run."""
        self.stacked, self.hooks, self._cache, self._below = stacked, hooks, cache, below
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
            started_at(model.decoder, self._below),
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
            started_at(model.decoder, self._below),
        ):
            output = model.hf(
                input_ids=self.input_ids,
                use_cache=bool(cached),
                logits_to_keep=reading.keep,
                **cached,
            )
        return reading.values(output.logits)


def _least(values: Int64[Tensor, " op"], at_most: int | None) -> int:
    """The least of what rows change and of what is read; 0 where nothing is changed."""
    if not len(values):
        return 0
    least = int(values.min())
    return least if at_most is None else min(least, at_most)


WORTH_IT = 2
"""Positions below which a prefix saves nothing."""


class SharedRun:
    """One prompt with what all rows change alike: what every layer gives, keys and values."""

    def __init__(
        self,
        model: Model,
        input_ids: Int64[Tensor, " pos"],
        edited: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._model, self._input_ids, self._edited = model, input_ids, edited

    @property
    def is_run(self) -> bool:
        """Whether it costs nothing any more."""
        return "_pass" in self.__dict__

    def cache(self, length: int, n_rows: int) -> DynamicCache:
        """A cache of the first positions for every row."""
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._layers):
            own = [part[:, :, :length].expand(n_rows, -1, -1, -1) for part in (keys, values)]
            cache.update(own[0], own[1], layer)
        return cache

    def below(self, first: int, n_rows: int, start: int) -> tuple[int, LayerOutput]:
        """What stands for the layers below layer `first` (1 or more), from a position on, with that
        layer's number."""
        output = self._outputs[first - 1]
        stream = output.stream[:, start:].expand(n_rows, -1, -1)
        return first, LayerOutput(stream, output.in_tuple)

    @property
    def _layers(self) -> list[tuple[Tensor, Tensor]]:
        return self._pass[0]

    @property
    def _outputs(self) -> list[LayerOutput]:
        return self._pass[1]

    @cached_property
    def _pass(self) -> tuple[list[tuple[Tensor, Tensor]], list[LayerOutput]]:
        # A cache of no particular model: its own would drop what lies before a layer's window,
        # and a position that is cut off in the middle still attends to that.
        whole = DynamicCache()
        outputs: list[LayerOutput] = []
        layers = [one.module for one in self._model.decoder.layers]
        handles = [
            module.register_forward_hook(lambda _m, _a, out: outputs.append(LayerOutput.of(out)))
            for module in layers
        ]
        try:
            with torch.no_grad(), self._edited():
                self._model.hf(
                    input_ids=self._input_ids[None],
                    use_cache=True,
                    logits_to_keep=1,
                    **{self._model.decoder.cache_name: whole},
                )
        finally:
            for handle in handles:
                handle.remove()
        found: list[Any] = [(layer.keys, layer.values) for layer in whole.layers]
        assert all(keys.shape[2] == len(self._input_ids) for keys, _ in found)
        assert len(outputs) == len(layers)
        return found, outputs
