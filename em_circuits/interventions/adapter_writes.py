"""Writes of a LoRA, as inputs of the base: the base with them added is the merged model.

On one prompt, with x the input of module m in the merged model,

    written_m = W_merged x - W_base x = sum over ranks r of a_r up_r,    a_r = A_r x,  up_r = s B_r

is what the adapter adds to the module's output at each position. Added to the base's module outputs
as constants they turn the base, layer by layer, into the merged model; t times of them, t from 0 to
1, is a straight line from one to the other. Being constants they answer to nothing: what an earlier
rank does to a later one is the later one's.

    writes = AdapterWrites.of(pair, input_ids)
    with writes.added([w[None] for w in writes.written]):
        pair.base.hf(input_ids[None])          # the merged model's logits

What reads the residual stream, into which all of them end up, are the `Readers`: each layer's
attention and MLP through their norms, and the final norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from em_circuits.bases import Part, Stage
from em_circuits.bases.adapters import AdapterPart, adapter_parts
from em_circuits.graphs.held import captured
from em_circuits.models import Model, ModelPair
from em_circuits.models.sites import Site, on_site


@dataclass(frozen=True, eq=False)
class AdapterWrites:
    """What the ranks of each module write on one prompt, in the merged model.

    Attributes:
        parts: The modules' ranks.
        modules: The same modules of the base.
        activations: Of each module's ranks.
        written: Merged minus base output of each module at the merged model's input.
    """

    parts: tuple[AdapterPart, ...]
    modules: tuple[nn.Module, ...]
    activations: tuple[Float[Tensor, "pos _"], ...]
    written: tuple[Float[Tensor, "pos _"], ...]

    @classmethod
    @torch.no_grad()
    def of(cls, pair: ModelPair, input_ids: Int[Tensor, " pos"]) -> AdapterWrites:
        """Run the merged model once.

        Raises:
            RequestError: If the fine-tune is no LoRA, or changes what has no place in the model.
        """
        parts = adapter_parts(pair)
        reads = captured(pair.merged, parts, input_ids)
        modules = tuple(pair.base.hf.get_submodule(part.name) for part in parts)
        written = [
            part.read.module(x) - module(x)
            for part, module, x in zip(parts, modules, reads, strict=True)
        ]
        activations = [part.activations(x) for part, x in zip(parts, reads, strict=True)]
        return cls(parts, modules, tuple(activations), tuple(written))

    @contextlib.contextmanager
    def added(self, amounts: Sequence[Float[Tensor, "row pos _"]]) -> Iterator[None]:
        """Add constants to the base's module outputs, a row of a batch each."""
        with contextlib.ExitStack() as stack:
            for module, amount in zip(self.modules, amounts, strict=True):
                site = Site(module, "output")
                stack.enter_context(on_site(site, lambda x, add=amount: x + add.to(x.dtype)))
            yield

    def random(self, n: int, seed: int) -> list[Float[Tensor, "row pos _"]]:
        """Writes of equal size into random directions: each rank's ``up`` turned, its length kept.

        Args:
            n: Rows, each with directions of its own.
            seed: Of the directions.
        """
        generator = torch.Generator().manual_seed(seed)
        found = []
        for part, activations in zip(self.parts, self.activations, strict=True):
            turned = torch.randn((n, *part.up.shape), generator=generator).to(part.up)
            turned *= part.up.norm(dim=-1)[:, None] / turned.norm(dim=-1, keepdim=True)
            found.append(activations.to(turned) @ turned)
        return found


@dataclass(frozen=True, eq=False)
class Readers:
    """What reads the residual stream of a model, in order.

    Attributes:
        attention: The norm in front of each layer's attention.
        mlp: The norm in front of each layer's MLP.
        final: The norm in front of the logits.
        outputs: Last linear map of each layer's attention; a head is a slice of its input.
        n_heads: Query heads of a layer.
    """

    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    final: nn.Module
    outputs: tuple[nn.Module, ...]
    n_heads: int

    @classmethod
    def of(cls, model: Model) -> Readers:
        """Find them in a model."""
        layers = model.decoder.layers
        return cls(
            tuple(layer.attention_norm.module for layer in layers),
            tuple(layer.mlp_norm.module for layer in layers),
            model.decoder.final_norm.module,
            tuple(layer.output for layer in layers),
            model.decoder.n_heads,
        )

    @property
    def all(self) -> tuple[nn.Module, ...]:
        """Attention, then MLPs, then the final norm."""
        return (*self.attention, *self.mlp, self.final)

    def by_head(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch head d_head"]:
        """An input of ``o_proj``, head by head."""
        return x.unflatten(-1, (self.n_heads, -1))


@dataclass(frozen=True, eq=False)
class WrittenPrompt:
    """The base on one prompt, into which an adapter's writes are added.

    Attributes:
        model: The base.
        readers: What reads its residual stream.
        writes: Of the adapter on this prompt.
        ids: The prompt, with its beginning-of-sequence token.
        weights: The contrast is ``sum_v w[v] logit_v`` at the last position.
        parts: What counts as features.
    """

    model: Model
    readers: Readers
    writes: AdapterWrites
    ids: Int[Tensor, " pos"]
    weights: Float[Tensor, " vocab"]
    parts: tuple[Part, ...]

    def read_by(
        self, part: Part, residual: Float[Tensor, "row pos d_model"]
    ) -> Float[Tensor, "row pos d_read"]:
        """What a part reads where its layer's MLP reads this residual; differentiable.

        Called within `AdapterWrites.added`, which a neuron's gate may hold some of.
        """
        norm = self.readers.mlp[part.layer]
        if part.read == Site(norm, "input"):
            return residual
        x = norm.forward(residual)  # calling the norm would run its hooks once more
        if part.read.norm is not None:
            return part.read.norm.normalised(residual, x)
        if part.stage is not Stage.MLP_HIDDEN:
            return x
        mlp = self.model.decoder.layers[part.layer].mlp
        found: list[Tensor] = []
        with on_site(part.read, found.append):
            mlp(x)
        return found[0]

    def run(self, n_rows: int) -> Float[Tensor, "row vocab"]:
        """Logits after the last position, the prompt in each row, whatever hooks are there."""
        ids = self._rows(n_rows)
        return self.model.hf(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1]

    def run_layers(self, n_rows: int) -> None:
        """The same up to the final norm, for hooks alone: in forward mode the unembedding would be
        held a second time, a gigabyte of a small model."""
        self.model.decoder.model(input_ids=self._rows(n_rows), use_cache=False)

    def _rows(self, n_rows: int) -> Int64[Tensor, "row pos"]:
        return self.ids.to(self.model.device).expand(n_rows, -1)
