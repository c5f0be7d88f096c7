"""What does the model say when these features are changed?

Many rows of interventions on one prompt run as one batch of the real model; row by row

    mlp_out[layer, position] += (new activation - current activation) * W_dec[feature]

where *current* is what the feature does in that very pass (in `direct`: in the undisturbed one),
as in circuit-tracer's `feature_intervention`. Activations and the products with decoder rows are
computed in the model's precision, their sums in float32.

    logits = run_rows(model, state, [[], [intervention]], Regime.FREE)
    effect = demeaned(logits)[0] - demeaned(logits)[1]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.models import Model
from em_circuits.steering.feature_rows import FeatureRows
from em_circuits.steering.intervention import Intervention, check_interventions
from em_circuits.steering.plan import Plan
from em_circuits.steering.regimes import FrozenMLP, Regime, frozen
from em_circuits.steering.state import PromptState

MAX_ROWS = 256
"""Rows of a batch at most; more do not make a pass faster."""
_BATCH_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Activations of a batch, roughly."""


def run_rows(
    model: Model,
    state: PromptState,
    rows: Sequence[Sequence[Intervention]] | Plan,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
) -> Float[Tensor, "row vocab"]:
    """Logits after the last position, one row per list of interventions.

    An empty row is the undisturbed model. Where no activation changes (``scale`` by 1, ``add`` 0,
    ablating what is inactive) the logits are those of an empty row in the same batch, bit for bit.

    Args:
        model: The real model is run (`Model.hf`) and left as it was.
        state: The prompt, captured on this model.
        rows: Interventions of each row, or a plan of them.
        regime: What is frozen meanwhile.
        batch_size: Rows per forward pass; None fits them into memory.

    Returns:
        Raw logits in float32.

    Raises:
        RequestError: If an intervention has no place in the model or the prompt.
    """
    parts = [logits for _, logits in iter_rows(model, state, rows, regime, batch_size=batch_size)]
    return torch.cat(parts) if parts else state.logits.new_zeros((0, len(state.logits)))


def iter_rows(
    model: Model,
    state: PromptState,
    rows: Sequence[Sequence[Intervention]] | Plan,
    regime: Regime = Regime.FREE,
    *,
    batch_size: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Like `run_rows`, batch by batch: (number of the first row, its ``[row vocab]`` logits)."""
    if not isinstance(rows, Plan):
        check_interventions(model, chain.from_iterable(rows), state.n_pos)
        rows = Plan.of(rows, state.n_pos)
    size = batch_size or default_batch(model, state, regime)
    layers = _LayerTable(model, state, rows, regime)
    for start in range(0, rows.n_rows, size):
        batch = _Batch(layers, rows.rows(start, start + size))
        yield start, batch.run()


def default_batch(model: Model, state: PromptState, regime: Regime) -> int:
    """Rows whose activations fit into a modest piece of memory."""
    config: object = model.hf.config
    hidden, inner = getattr(config, "hidden_size", 0), getattr(config, "intermediate_size", 0)
    per_position = 10 * hidden + 3 * inner + 3 * state.patterns.shape[1] * state.n_pos
    if regime is Regime.GATES_RECOMPUTED:
        per_position += 3 * state.d_transcoder
    row = state.n_pos * per_position * state.inputs.element_size() + 12 * len(state.logits)
    return max(1, min(MAX_ROWS, _BATCH_BYTES.get(model.device.type, 2**28) // row))


class _LayerTable:
    """What every batch of a run needs, fetched once."""

    def __init__(self, model: Model, state: PromptState, plan: Plan, regime: Regime) -> None:
        self.model, self.state, self.regime = model, state, regime
        self.rows: dict[int, FeatureRows] = {}
        self.mlps: dict[int, FrozenMLP] = {}
        for layer in plan.layer.unique().tolist():
            ids = plan.feature[plan.layer == layer]
            self.rows[layer] = FeatureRows.read(model.transcoders[layer], ids)
        if regime.freezes_norms:
            for layer in range(model.sites.n_layers):
                self.mlps[layer] = FrozenMLP(model, state, layer, regime)


class _Batch:
    """One forward pass: keeps each layer's transcoder input until the layer writes."""

    def __init__(self, table: _LayerTable, plan: Plan) -> None:
        self._table, self._plan = table, plan
        self._inputs: Tensor | None = None

    @torch.no_grad()
    def run(self) -> Float[Tensor, "row vocab"]:
        table = self._table
        ids = table.state.input_ids.expand(self._plan.n_rows, -1)
        with (
            frozen(table.model, table.state, table.regime),
            table.model.sites.hooked(self._read, self._write),
        ):
            output = table.model.hf(input_ids=ids, use_cache=False, logits_to_keep=1)
        return output.logits[:, -1].float()

    def _read(self, layer: int, inputs: Tensor) -> None:
        self._inputs = inputs

    def _write(self, layer: int, output: Tensor) -> Tensor | None:
        inputs, self._inputs = self._inputs, None
        assert inputs is not None
        mlp = self._table.mlps.get(layer)
        frozen_output = None if mlp is None else mlp(inputs)
        ops = self._plan.layer_ops(layer)
        if not len(ops.row):
            return frozen_output
        base = output if frozen_output is None else frozen_output
        return base + self._changes(layer, ops, inputs).to(base.dtype)

    def _changes(self, layer: int, ops: Plan, inputs: Tensor) -> Float[Tensor, "batch pos d_model"]:
        device, rows = inputs.device, self._table.rows[layer]
        place = (ops.row * inputs.shape[1] + ops.position).to(device)
        which = rows.index(ops.feature)
        coordinates = torch.stack([ops.layer, ops.position, ops.feature], dim=1)
        current = self._current(coordinates, inputs.flatten(0, 1)[place], which)
        gain, offset, cap = (n.to(device, current.dtype) for n in (ops.gain, ops.offset, ops.cap))
        new = torch.minimum(gain * current + offset, cap)
        change = rows.written(new - current, which, place=place, n_places=inputs[..., 0].numel())
        return change.view(inputs.shape)

    def _current(
        self,
        coordinates: Int64[Tensor, "op 3"],
        inputs: Float[Tensor, "op d_model"],
        which: Int64[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        """Activations in this pass of the features that are changed."""
        regime, state = self._table.regime, self._table.state
        layer = int(coordinates[0, 0])
        rows = self._table.rows[layer]
        if regime in (Regime.DIRECT, Regime.FROZEN_LINEAR):
            before = state.activation_of(coordinates)
            if regime is Regime.DIRECT:
                return before
            positions = coordinates[:, 1].to(inputs.device)
            change = rows.responses(inputs - state.inputs[layer][positions], which)
            return before + change * (before != 0)
        return rows.activations(inputs, which)
