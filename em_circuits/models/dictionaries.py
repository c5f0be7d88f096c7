"""Dictionaries: one layer's nodes, read from its MLP's input and written into its output.

    a = encode(x),    mlp_out = decode(a, x) + error

| dictionary | a | decoder row | error |
|---|---|---|---|
| `TranscoderDictionary` | ``act(W_enc x + b_enc)`` | row of ``W_dec`` | MLP - reconstruction |
| `NeuronDictionary` (`models.neurons`) | ``act(gate) * up`` | column of ``down_proj`` | none |

Everything that changes, scores or explains nodes asks a model's dictionaries, never its
transcoders. Base and merged share their transcoders, but each has neurons of its own: where the
fine-tune changes an MLP, one neuron has two activations on one input, and two decoder rows.

    dictionary = model.dictionaries[2]
    dictionary.decode(dictionary.activations(x), x)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from jaxtyping import Float, Int64
from torch import Tensor, nn

from em_circuits.intervention import FIRST_POSITION

CHUNK = 16_384
"""Pairs of activation and node that are gathered at a time."""

Active = tuple[Int64[Tensor, " active"], Int64[Tensor, " active"], Int64[Tensor, " active"]]
"""(row, position, id) of the active nodes of some prompts."""


class Encoder(ABC):
    """Encoders of a few nodes, pair by pair: node ``which[i]`` on ``inputs[i]``."""

    @abstractmethod
    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        """Activation of each."""

    @abstractmethod
    def responses(
        self,
        at: Float[Tensor, "op d_model"],
        change: Float[Tensor, "op d_model"],
        which: Int64[Tensor, " op"],
        *,
        before: Float[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        """First-order change of each by a change of what it reads.

        Args:
            at: What they read on the undisturbed prompt.
            change: By how much that changes.
            which: The nodes.
            before: Their activations on the undisturbed prompt.
        """


class Dictionary(ABC):
    """One layer's nodes."""

    first_position: ClassVar[int]
    """First position with nodes."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Node ids go from 0 to this number minus one."""

    @property
    @abstractmethod
    def d_model(self) -> int:
        """Width of what is read and written."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        """Every node's activation, wherever it is."""

    @abstractmethod
    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        """MLP output that the activations stand for; bias and skip connection included."""

    @abstractmethod
    def decoder(self, ids: Int64[Tensor, " op"]) -> Float[Tensor, "op d_model"]:
        """What one unit of activation writes."""

    @abstractmethod
    def encoder(self, ids: Int64[Tensor, " op"]) -> Encoder:
        """Encoders of some nodes; `ids` ascending, without repetition."""

    @abstractmethod
    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        """First-order change of the MLP output by a change of its input, gates frozen at `x`.

        Args:
            x: What the layer reads on the undisturbed prompts.
            active: Their active nodes.

        Returns:
            A function from ``[batch pos d_model]`` to the same; skip connections are not in it.
        """

    def skipped(self, change: Tensor) -> Tensor | None:
        """What a change of the input does to the output past every node; None if nothing."""
        return None

    def activations(self, x: Float[Tensor, "*batch pos d_model"]) -> Float[Tensor, "*batch _ node"]:
        """Every node's activation on whole prompts; 0 at positions without nodes."""
        found = self.encode(x)
        if self.first_position:
            found[..., : self.first_position, :] = 0
        return found


@dataclass(frozen=True)
class TranscoderDictionary(Dictionary):
    """The features of one per-layer transcoder of circuit-tracer's."""

    transcoder: SingleLayerTranscoder

    first_position: ClassVar[int] = FIRST_POSITION

    @property
    def width(self) -> int:
        return len(self.transcoder.b_enc)

    @property
    def d_model(self) -> int:
        return int(self.transcoder.d_model)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        return self.transcoder.encode(x)

    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        return self.transcoder.decode(activations, x)

    def decoder(self, ids: Int64[Tensor, " op"]) -> Float[Tensor, "op d_model"]:
        # Lazily loaded transcoders read rows from files: each row once.
        unique, index = ids.to(self.transcoder.b_enc.device).unique(return_inverse=True)
        return self.transcoder._get_decoder_vectors(unique).detach()[index]

    def encoder(self, ids: Int64[Tensor, " op"]) -> TranscoderEncoder:
        ids = ids.to(self.transcoder.b_enc.device)
        bias = self.transcoder.b_enc.detach()[ids]
        return TranscoderEncoder(
            self.transcoder,
            ids,
            self.transcoder.W_enc.detach()[ids],
            bias,
            _threshold(self.transcoder.activation_function, ids, bias),
        )

    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        row, position, feature = active
        ids, index = feature.unique(return_inverse=True)
        encoder, decoder = self.encoder(ids).weight, self.decoder(ids)
        gates = x.new_zeros((*x.shape[:2], len(ids)))
        gates[row, position, index] = 1
        return lambda change: ((change @ encoder.T) * gates) @ decoder

    def skipped(self, change: Tensor) -> Tensor | None:
        if self.transcoder.W_skip is None:
            return None
        return self.transcoder.compute_skip(change)


@dataclass(frozen=True)
class TranscoderEncoder(Encoder):
    """Encoder rows of some features, in the model's precision."""

    transcoder: SingleLayerTranscoder
    ids: Int64[Tensor, " feature"]
    weight: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"] | None
    """A feature fires above it (0 for ReLU); None if whether it fires depends on the others."""

    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        if self.threshold is None:
            everything = self.transcoder.encode(inputs)
            return everything.gather(1, self.ids[which][:, None])[:, 0]
        pre = row_products(inputs, self.weight, which) + self.bias[which]
        return pre * (pre > self.threshold[which])

    def responses(
        self,
        at: Float[Tensor, "op d_model"],
        change: Float[Tensor, "op d_model"],
        which: Int64[Tensor, " op"],
        *,
        before: Float[Tensor, " op"],
    ) -> Float[Tensor, " op"]:
        return row_products(change, self.weight, which) * (before != 0)


def row_products(
    inputs: Float[Tensor, "op d_model"],
    rows: Float[Tensor, "node d_model"],
    which: Int64[Tensor, " op"],
) -> Float[Tensor, " op"]:
    """``rows[which[i]] . inputs[i]`` for every i."""
    parts = [
        torch.einsum("nd,nd->n", inputs[i : i + CHUNK], rows[which[i : i + CHUNK]])
        for i in range(0, len(which), CHUNK)
    ]
    return torch.cat(parts) if parts else inputs.new_zeros(0)


def _threshold(function: object, ids: Tensor, like: Tensor) -> Tensor | None:
    if function is torch.nn.functional.relu or isinstance(function, nn.ReLU):
        return torch.zeros_like(like)
    if isinstance(function, JumpReLU):
        threshold = function.threshold.detach()
        return threshold.expand(len(ids)) if threshold.ndim == 0 else threshold[ids]
    return None
