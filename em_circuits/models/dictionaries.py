"""Dictionaries: one layer's nodes, read from its MLP's input and written into its output.

    a = encode(x),    mlp_out = decode(a, x) + error

| dictionary | a | decoder row | error |
|---|---|---|---|
| `TranscoderDictionary` | ``act(W_enc x + b_enc)`` | row of ``W_dec`` | MLP - reconstruction |
| `CrossLayerDictionary` | the same | rows of ``W_dec``: this layer and each later one | of all |
| `NeuronDictionary` (`models.neurons`) | ``act(gate) * up`` | column of ``down_proj`` | none |

Everything that changes, scores or explains nodes asks a model's dictionaries, never its
transcoders. Base and merged share their transcoders, but each has neurons of its own: where the
fine-tune changes an MLP, one neuron has two activations on one input, and two decoder rows.

    dictionary = model.dictionaries[2]
    dictionary.decode(dictionary.activations(x), x)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from circuit_tracer.transcoder.activation_functions import JumpReLU
from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder
from jaxtyping import Float, Int64
from torch import Tensor, nn

from em_circuits.intervention import FIRST_POSITION
from pivotal_tokens.errors import RequestError

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

    n_writes: ClassVar[int] = 1
    """MLP outputs that a node writes into: its own layer's, then those of the next layers."""

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
        """MLP output that the activations stand for; bias and skip connection included. What nodes
        of earlier layers write there, too, is not in it: see `reconstruction`."""

    @abstractmethod
    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
        """What one unit of activation writes, `write` layers further up."""

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

    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
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
class CrossLayerDictionary(Dictionary):
    """The features of circuit-tracer's cross-layer transcoder that read at one layer."""

    transcoder: CrossLayerTranscoder
    layer: int

    first_position: ClassVar[int] = FIRST_POSITION

    @property
    def n_writes(self) -> int:  # type: ignore[override]
        return int(self.transcoder.n_layers) - self.layer

    @property
    def width(self) -> int:
        return int(self.transcoder.d_transcoder)

    @property
    def d_model(self) -> int:
        return int(self.transcoder.d_model)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        return self.transcoder.encode_layer(x.to(self.transcoder.dtype), self.layer)

    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        rows = self.transcoder._get_decoder_vectors(self.layer).detach()
        output = activations @ rows[:, 0] + self.transcoder.b_dec[self.layer]
        return output if self.skipped(x) is None else output + self.skipped(x)

    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
        unique, index = ids.to(self.transcoder.device).unique(return_inverse=True)
        rows = self.transcoder._get_decoder_vectors(self.layer, unique).detach()
        return rows[index, write]

    def encoder(self, ids: Int64[Tensor, " op"]) -> TranscoderEncoder:
        ids = ids.to(self.transcoder.device)
        bias = self.transcoder.b_enc.detach()[self.layer, ids]
        threshold = torch.zeros_like(bias)
        if isinstance(self.transcoder.activation_function, JumpReLU):
            threshold = self.transcoder.activation_function.threshold.detach()[self.layer, 0, ids]
        weight = self.transcoder._get_encoder_weights(self.layer).detach()[ids]
        return TranscoderEncoder(self, ids, weight, bias, threshold)

    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        raise one_layer_only(self, "the linear part of one layer's MLP")

    def skipped(self, change: Tensor) -> Tensor | None:
        if self.transcoder.W_skip is None:
            return None
        return self.transcoder.compute_skip(self.layer, change)


def one_layer_only(dictionary: Dictionary, what: str) -> RequestError:
    """The error of what needs nodes that write into their own layer alone."""
    return RequestError(
        f"{what} is not defined where features write into later layers too "
        f"({type(dictionary.transcoder).__name__}); use what runs the real model (regimes direct, "  # type: ignore[attr-defined]
        "attention_frozen, free), or --transcoders none"
    )


def reconstruction(
    dictionaries: Sequence[Dictionary],
    layer: int,
    activations: Mapping[int, Float[Tensor, "*batch node"]],
    x: Float[Tensor, "*batch d_model"],
) -> Float[Tensor, "*batch d_model"]:
    """What every node that writes into a layer's MLP output stands for there.

    Args:
        dictionaries: Of all layers.
        layer: Whose MLP output.
        activations: Of this layer, and of those before it whose nodes write here.
        x: What this layer reads.
    """
    output = dictionaries[layer].decode(activations[layer], x)
    for earlier, dictionary in enumerate(dictionaries[:layer]):
        if dictionary.n_writes > layer - earlier:
            acts = activations[earlier]
            ids = acts.reshape(-1, acts.shape[-1]).any(0).nonzero()[:, 0]
            output = output + acts[..., ids] @ dictionary.decoder(ids, layer - earlier)
    return output


@dataclass(frozen=True)
class TranscoderEncoder(Encoder):
    """Encoder rows of some features, in the model's precision."""

    transcoder: SingleLayerTranscoder | CrossLayerDictionary
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
