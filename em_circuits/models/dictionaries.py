"""Dictionaries: one layer's nodes, read from its MLP's input and written into its output.

    a = encode(x),    mlp_out = decode(a, x) + error

| dictionary | a | decoder row | error |
|---|---|---|---|
| `TranscoderDictionary` | ``act(W_enc x + b_enc)`` | row of ``W_dec`` | MLP - reconstruction |
| the same, cross-layer | the same | rows of ``W_dec``: this layer and each later one | of all |
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
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from em_circuits.intervention import FIRST_POSITION
from pivotal_tokens.errors import RequestError

CHUNK = 16_384
"""Pairs of activation and node that are gathered at a time."""
_FEW = 2
"""Of so many features fewer than one fires: their decoder rows are read, not the whole matrix."""

Active = tuple[Int64[Tensor, " active"], Int64[Tensor, " active"], Int64[Tensor, " active"]]
"""(row, position, id) of the active nodes of some prompts."""


class Encoder(ABC):
    """Encoders of a few nodes: all of them, or pair by pair, node ``which[i]`` on ``inputs[i]``."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        """Activation of every one of these nodes; differentiable."""

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

    n_writes: int = 1
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


@dataclass(frozen=True, eq=False)
class TranscoderDictionary(Dictionary):
    """The features that read at one layer: of a per-layer transcoder, or of a cross-layer one.

        pre = W_enc x + b_enc
        a   = relu(pre), or pre where it is above its threshold, or pre where it is of the k largest

    Attributes:
        layer: Where they read.
        matrices: ``W_enc`` (feature x d_model) or ``W_dec`` (feature x d_model; of a cross-layer
            transcoder feature x write x d_model), or some rows of it, on the device and in the
            models' precision, from wherever it waits.
        b_enc: Of the features.
        b_dec: Of the layer's MLP output.
        W_skip: What the input adds to the output past every feature (output x input), or None.
        threshold: Of JumpReLU, by feature; None for ReLU and Top-K.
        top_k: Features that fire; None where each is gated by itself.
        positive: Of the k largest, those that are negative do not fire.
        n_writes: MLP outputs that a feature writes into.
        ids: Ids of the features in the whole set, ascending, where only some are here (`among`).
    """

    layer: int
    matrices: Callable[[str, Tensor | None], Tensor]
    b_enc: Float[Tensor, " feature"]
    b_dec: Float[Tensor, " d_model"]
    W_skip: Float[Tensor, "d_out d_in"] | None = None
    threshold: Float[Tensor, " feature"] | None = None
    top_k: int | None = None
    positive: bool = False
    n_writes: int = 1
    ids: Int64[Tensor, " feature"] | None = None

    first_position: ClassVar[int] = FIRST_POSITION

    def among(self, ids: Int64[Tensor, " feature"]) -> TranscoderDictionary:
        """Some features alone, numbered from 0, whose rows are all that is read; with Top-K, where
        one fires only beside all the others, every feature.

        Args:
            ids: Ascending, without repetition; none of them means the first, so that nothing is
                empty.
        """
        if self.top_k is not None:
            return self
        ids = (ids if len(ids) else ids.new_zeros(1)).to(self.b_enc.device)
        return replace(
            self,
            matrices=lambda name, of: self.matrices(name, ids if of is None else ids[of]),
            b_enc=self.b_enc[ids],
            threshold=None if self.threshold is None else self.threshold[ids],
            ids=ids,
        )

    @property
    def width(self) -> int:
        return len(self.b_enc)

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    @property
    def W_enc(self) -> Float[Tensor, "feature d_model"]:
        """Encoder rows."""
        return self.matrices("W_enc", None)

    @property
    def W_dec(self) -> Float[Tensor, "feature d_model"]:
        """Decoder rows into this layer's own MLP output."""
        return _write(self.matrices("W_dec", None), 0)

    def gate(self, pre: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch feature"]:
        """Activations of given pre-activations."""
        if self.top_k is not None:
            largest = pre.topk(self.top_k, dim=-1).indices
            pre = pre * torch.zeros_like(pre).scatter_(-1, largest, 1)
            return torch.relu(pre) if self.positive else pre
        return torch.relu(pre) if self.threshold is None else pre * (pre > self.threshold)

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        return self.gate(torch.nn.functional.linear(x.to(self.b_enc), self.W_enc, self.b_enc))

    def decode(
        self, activations: Float[Tensor, "*batch node"], x: Float[Tensor, "*batch d_model"]
    ) -> Float[Tensor, "*batch d_model"]:
        fire = activations.detach().reshape(-1, self.width).any(0).nonzero()[:, 0]
        if _FEW * len(fire) < self.width:  # a whole matrix may be half a gigabyte on a disk
            output = activations[..., fire] @ self.decoder(fire) + self.b_dec
        else:
            output = activations @ self.W_dec + self.b_dec
        skip = self.skipped(x)
        return output if skip is None else output + skip

    def decoder(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_model"]:
        # What waits on disk is read by rows: each of them once.
        unique, index = ids.to(self.b_enc.device).unique(return_inverse=True)
        return _write(self.matrices("W_dec", unique), write)[index]

    def encoder(self, ids: Int64[Tensor, " op"]) -> TranscoderEncoder:
        ids = ids.to(self.b_enc.device)
        threshold = None
        if self.top_k is None:
            zeros = torch.zeros_like(self.b_enc) if self.threshold is None else self.threshold
            threshold = zeros[ids]
        return TranscoderEncoder(self, ids, self.matrices("W_enc", ids), self.b_enc[ids], threshold)

    def linearised(
        self, x: Float[Tensor, "row pos d_model"], active: Active
    ) -> Callable[[Tensor], Tensor]:
        if self.n_writes > 1:
            raise one_layer_only("the linear part of one layer's MLP")
        row, position, feature = active
        ids, index = feature.unique(return_inverse=True)
        encoder, decoder = self.encoder(ids).weight, self.decoder(ids)
        gates = x.new_zeros((*x.shape[:2], len(ids)))
        gates[row, position, index] = 1
        return lambda change: ((change @ encoder.T) * gates) @ decoder

    def skipped(self, change: Tensor) -> Tensor | None:
        return None if self.W_skip is None else change @ self.W_skip.T


def _write(
    rows: Float[Tensor, "feature *write d_model"], write: int
) -> Float[Tensor, "feature d_model"]:
    return rows if rows.ndim == 2 else rows[:, write]


def one_layer_only(what: str) -> RequestError:
    """The error of what needs nodes that write into their own layer alone."""
    return RequestError(
        f"{what} is not defined where features write into later layers too (cross-layer "
        "transcoders); use what runs the real model (regimes direct, attention_frozen, free), or "
        "--transcoders none"
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

    dictionary: TranscoderDictionary
    ids: Int64[Tensor, " feature"]
    weight: Float[Tensor, "feature d_model"]
    bias: Float[Tensor, " feature"]
    threshold: Float[Tensor, " feature"] | None
    """A feature fires above it (0 for ReLU); None if whether it fires depends on the others."""

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch node"]:
        if self.threshold is None:
            return self.dictionary.encode(x)[..., self.ids]
        pre = torch.nn.functional.linear(x.to(self.bias), self.weight, self.bias)
        return pre * (pre > self.threshold)

    def activations(
        self, inputs: Float[Tensor, "op d_model"], which: Int64[Tensor, " op"]
    ) -> Float[Tensor, " op"]:
        if self.threshold is None:
            return self.encode(inputs).gather(1, which[:, None])[:, 0]
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
