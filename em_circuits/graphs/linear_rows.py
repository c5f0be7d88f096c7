"""Attribution rows of a prompt, batched, over upstream's own model and context.

circuit-tracer runs its forward pass at batch size, then one backward pass of automatic
differentiation through *all* layers for every batch. Its local replacement model is linear in the
residual stream, so one forward pass of the prompt is enough: patterns and norm scales are recorded,
and rows are carried back by hand, each from the layer its row reads at, over the positions before
it only. A layer passes the gradient g of the stream behind it on to the stream before it as

    g + (sum over heads of pattern^T . g . W_O^T . W_V^T) * w / scale

and what a source writes on the way is multiplied with the gradient at its layer and position,

    row[t, s] = dec[s] . g[layer(s), position(s)]

one matrix product per (layer, position) of active features, which are sorted that way. Right for
per-layer transcoders, whose features write to one layer each. Besides the rows themselves a batch
takes four times (rows x positions x d_model) values. Patterns of long prompts are large (heads x
pos^2 for every layer); those that exceed `PATTERN_BYTES` are computed again, a layer at a time.

    rows = LinearRows.of(replacement, context, input_ids)
    if rows is not None:
        rows.features(torch.arange(10))  # [10, source]
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.memory import PATTERN_BYTES

_STEP = 512
"""Query positions that are multiplied at once: positions beyond them are zero."""
_READS = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
_WRITES = ("hook_mlp_out", "mlp.hook_out")
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Biases, which Qwen2 has, are constants: no gradient passes through them."""
_SETTINGS = {
    "normalization_type": "RMS",
    "positional_embedding_type": "rotary",
    "parallel_attn_mlp": False,
    "use_normalization_before_and_after": False,
    "use_attn_in": False,
    "use_split_qkv_input": False,
    "use_attn_result": False,
}
_CONTEXT_PARTS = (
    "activation_matrix",
    "decoder_locations",
    "decoder_vecs",
    "encoder_to_decoder_map",
    "encoder_vecs",
    "error_vectors",
    "token_vectors",
)


class LinearRows:
    """Attribution rows of one prompt over active features, errors and tokens, in node order.

    Attributes:
        context: circuit-tracer's attribution context of the prompt.
        layout: Node order of *all* active features, without logits.
        layers: Layer of every active feature.
        positions: Position of every active feature.
    """

    def __init__(self, replacement: Any, context: Any, input_ids: Int64[Tensor, " pos"]) -> None:
        self._model, self._input_ids = replacement, input_ids
        self._frozen: FrozenModel | None = None
        self.context = context
        n_layers, n_pos, _ = context.activation_matrix.shape
        self.layout = NodeLayout(context.activation_matrix._nnz(), n_layers, n_pos, n_logits=0)
        self.layers, self.positions = context.decoder_locations[:2].cpu()
        # First row of each (layer, position) among the sorted active features.
        places = self.layout.places(self.layers, self.positions)
        starts = torch.searchsorted(places, torch.arange(n_layers * n_pos))
        self._starts = torch.cat([starts, torch.tensor([len(places)])]).tolist()

    @classmethod
    def of(cls, replacement: Any, context: Any, input_ids: Tensor) -> LinearRows | None:
        """Rows of a prompt, or None where circuit-tracer's own loop is needed.

        That is nnsight, a cross-layer transcoder, or a circuit-tracer whose parts are not those
        this file knows.
        """
        from circuit_tracer.attribution.context_transformerlens import AttributionContext

        known = (
            _is_known(replacement)
            and type(context) is AttributionContext
            and all(hasattr(context, name) for name in _CONTEXT_PARTS)
            and _is_per_layer(context)
        )
        return cls(replacement, context, input_ids) if known else None

    def targets(
        self, vectors: Float[Tensor, "logit d_model"], *, batch_size: int = 128
    ) -> Float[Tensor, "logit source"]:
        """Rows of directions that the last position's final residual is multiplied by."""
        parts = []
        for part in vectors.split(batch_size):
            positions = torch.full((len(part),), self.layout.n_pos - 1)
            parts.append(self._rows(self.layout.n_layers, positions, part))
        return torch.cat(parts)

    def groups(
        self, indices: Int64[Tensor, " feature"], batch_size: int
    ) -> list[Int64[Tensor, " _"]]:
        """Batches of features that share a backward pass: one layer, positions ascending."""
        places = self.layout.places(self.layers[indices], self.positions[indices])
        ordered = indices[torch.argsort(places, stable=True)]
        counts = self.layers[ordered].unique_consecutive(return_counts=True)[1]
        groups = ordered.split(counts.tolist())
        return [part for group in groups for part in group.split(batch_size)]

    def features(self, indices: Int64[Tensor, " feature"]) -> Float[Tensor, "feature source"]:
        """Rows of active features, all of one group of `groups`."""
        layer = int(self.layers[indices[0]])
        vectors = self.context.encoder_vecs[indices.to(self.context.encoder_vecs.device)]
        return self._rows(layer, self.positions[indices], vectors)

    def forget(self) -> None:
        """Let go of the recorded forward pass; it is run again when needed."""
        self._frozen = None

    @torch.no_grad()
    def _rows(self, layer: int, positions: Tensor, vectors: Tensor) -> Tensor:
        frozen = self._frozen = self._frozen or FrozenModel(self._model, self._input_ids)
        context, length = self.context, int(positions.max()) + 1
        # Transposed (source, row), so that each block is contiguous, here and in the builder.
        rows = context.decoder_vecs.new_zeros((self.layout.n_sources, len(vectors)))
        gradient = frozen.enter(layer, positions, vectors, length=length)
        if layer < self.layout.n_layers:
            frozen.through_attention(layer, gradient)
        for below in reversed(range(layer)):
            self._contract(below, gradient.to(rows.dtype), rows)
            frozen.through_mlp(below, gradient)
            frozen.through_attention(below, gradient)
        tokens = rows[self.layout.tokens]
        tokens[:length] = _products(gradient.to(rows.dtype), context.token_vectors[:length])
        return rows.T

    def _contract(self, layer: int, gradient: Tensor, rows: Tensor) -> None:
        """What a layer's features and errors write, along the gradient."""
        length, first = len(gradient), layer * self.layout.n_pos
        bounds = self._starts[first : first + length + 1]
        for position, (start, end) in enumerate(itertools.pairwise(bounds)):
            if end > start:
                vectors = self.context.decoder_vecs[start:end]
                torch.mm(vectors, gradient[position].T, out=rows[start:end])
        errors = rows[self.layout.errors_of(layer)]
        errors[:length] = _products(gradient, self.context.error_vectors[layer, :length])


class Scales(NamedTuple):
    """A layer's normalisation scales, each ``[pos, 1]``."""

    attention: Tensor
    mlp: Tensor


class FrozenModel:
    """One prompt's forward pass, recorded: patterns and scales that gradients pass back through.

    No tape of automatic differentiation is needed.
    """

    def __init__(self, replacement: Any, input_ids: Int64[Tensor, " pos"]) -> None:
        self._model = replacement
        self.n_layers: int = replacement.cfg.n_layers
        self._streams: list[Tensor] = []
        self._scales: list[Scales] = []
        self._patterns: dict[int, Tensor] = {}
        self._record(input_ids)

    def enter(
        self,
        layer: int,
        positions: Int64[Tensor, " row"],
        vectors: Float[Tensor, "row d_model"],
        *,
        length: int,
    ) -> Float[Tensor, "pos row d_model"]:
        """Gradient of the stream behind a layer's attention (behind the model: before its norm).

        Args:
            layer: Whose transcoder reads; the number of layers for the unembedding.
            positions: Where each row reads.
            vectors: What it multiplies what it reads with.
            length: Positions, beginning with the first, that are looked at.
        """
        stream = self._streams[0]
        gradient = stream.new_zeros((length, len(vectors), stream.shape[-1]))
        read = self._to_stream(layer, positions, vectors.to(stream))
        gradient[positions.to(stream.device), torch.arange(len(vectors))] = read
        return gradient

    def through_mlp(self, layer: int, gradient: Float[Tensor, "pos row d_model"]) -> None:
        """Add, in place, what passes through a transcoder's skip connection; MLPs are frozen."""
        skip = self._model.transcoders[layer].W_skip
        if skip is not None:
            length, n_rows, width = gradient.shape
            places = torch.arange(length).repeat_interleave(n_rows)
            passed = gradient.reshape(-1, width) @ skip.to(gradient)
            gradient += self._to_stream(layer, places, passed).view_as(gradient)

    def through_attention(self, layer: int, gradient: Float[Tensor, "pos row d_model"]) -> None:
        """Turn, in place, the gradient behind a layer's attention into that before the layer."""
        length, n_rows, width = gradient.shape
        block, pattern = self._model.blocks[layer], self._pattern(layer)
        writes, reads = block.attn.W_O, _value_weights(block.attn)
        per_group = len(writes) // len(reads)
        flat = gradient.view(length * n_rows, width)
        passed = torch.zeros_like(flat)
        for group, read in enumerate(reads):
            values = gradient.new_zeros(length, n_rows * read.shape[1])
            for head in range(group * per_group, (group + 1) * per_group):
                heads = (flat @ writes[head].T).view(length, -1)
                for start in range(0, length, _STEP):
                    stop = min(start + _STEP, length)
                    values[:stop].addmm_(pattern[head, start:stop, :stop].T, heads[start:stop])
            passed.addmm_(values.view(-1, read.shape[1]), read.T)
        scale = self._scales[layer].attention[:length, None]
        gradient.addcmul_(passed.view_as(gradient), (block.ln1.w / scale).to(gradient))

    def _to_stream(self, layer: int, positions: Tensor, vectors: Tensor) -> Tensor:
        """Through the norm, if any, between the stream and what is read of it."""
        if layer == self.n_layers:
            return vectors * self._model.ln_final.w / self._final[positions].to(vectors)
        reads = self._model.feature_input_hook
        if reads == "hook_resid_mid":
            return vectors
        weight = self._model.blocks[layer].ln2.w if reads == "mlp.hook_in" else 1.0
        return vectors * weight / self._scales[layer].mlp[positions].to(vectors)

    def _pattern(self, layer: int) -> Float[Tensor, "head query key"]:
        if layer in self._patterns:
            return self._patterns[layer]
        seen: list[Tensor] = []
        name = f"blocks.{layer}.attn.hook_pattern"
        block = self._model.blocks[layer]
        with torch.no_grad(), self._model.hooks(fwd_hooks=[(name, _into(seen))]):
            normed = block.ln1(self._streams[layer])
            block.attn(normed, normed, normed, attention_mask=self._mask)
        return seen[0][0]

    def _record(self, input_ids: Tensor) -> None:
        model, layers = self._model, range(self.n_layers)
        attention: list[list[Tensor]] = [[] for _ in layers]
        mlp: list[list[Tensor]] = [[] for _ in layers]
        patterns: list[list[Tensor]] = [[] for _ in layers]
        final: list[Tensor] = []
        hooks = [("ln_final.hook_scale", _into(final))]
        for layer in layers:
            hooks.append((f"blocks.{layer}.hook_resid_pre", _into(self._streams)))
            hooks.append((f"blocks.{layer}.ln1.hook_scale", _into(attention[layer])))
            hooks.append((f"blocks.{layer}.ln2.hook_scale", _into(mlp[layer])))
        each = model.cfg.n_heads * len(input_ids) ** 2 * model.W_E.element_size()
        for layer in range(min(self.n_layers, PATTERN_BYTES // each)):
            # The lowest layers first: every row passes through them.
            hooks.append((f"blocks.{layer}.attn.hook_pattern", _into(patterns[layer])))
        with torch.no_grad(), model.hooks(fwd_hooks=hooks):
            self._mask = model.input_to_embed(input_ids[None])[3]
            model.ln_final(model.forward(input_ids[None], stop_at_layer=self.n_layers))
        self._scales = [Scales(a[0][0], m[0][0]) for a, m in zip(attention, mlp, strict=True)]
        self._final = final[0][0]
        self._patterns = {layer: seen[0][0] for layer, seen in enumerate(patterns) if seen}


def _is_known(replacement: Any) -> bool:
    """Whether this file's formula is the model's."""
    from circuit_tracer.replacement_model.replacement_model_transformerlens import (
        TransformerLensReplacementModel,
    )

    if not isinstance(replacement, TransformerLensReplacementModel):
        return False
    config = replacement.cfg
    return (
        getattr(config, "original_architecture", None) in _ARCHITECTURES
        and all(getattr(config, name, None) == value for name, value in _SETTINGS.items())
        and getattr(replacement, "feature_input_hook", None) in _READS
        and getattr(replacement, "original_feature_output_hook", None) in _WRITES
        and hasattr(replacement.transcoders, "__getitem__")
    )


def _is_per_layer(context: Any) -> bool:
    """Every active feature writes once, in its own layer, in the order of the buffer's rows."""
    n_active = context.activation_matrix._nnz()
    order = torch.arange(n_active, device=context.encoder_to_decoder_map.device)
    return torch.equal(context.encoder_to_decoder_map, order) and torch.equal(
        context.decoder_locations, context.activation_matrix.indices()[:2]
    )


def _products(gradients: Tensor, vectors: Tensor) -> Float[Tensor, "pos row"]:
    """Dot products of ``[pos, row, d_model]`` with ``[pos, d_model]``."""
    return torch.bmm(gradients, vectors.to(gradients)[:, :, None])[:, :, 0]


def _value_weights(attention: Any) -> Float[Tensor, "group d_model d_head"]:
    """W_V, once for all heads that share it."""
    shared = getattr(attention, "_W_V", None)
    return attention.W_V if shared is None else shared


def _into(seen: list[Tensor]) -> Any:
    def hook(acts: Tensor, hook: Any) -> None:
        seen.append(acts.detach())

    return hook
