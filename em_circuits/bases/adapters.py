"""Ranks of a LoRA adapter as nodes of the merged model.

    a_r = A_r x of one module,  w_r = scaling * B_r, into that module's output

With every rank of a module held, the module responds with the base's weight: the merged weight is
``W + scaling B A``. With DoRA (Liu et al. 2024, arXiv:2402.09353) the merged weight is
``f (W + scaling B A)`` with ``f = m / |W + scaling B A|``, row by row; the factor then multiplies
both the ranks' writes and the base's weight, which is what the module responds with.

A model whose head is tied to its embedding has the adapter of the embedding in its head too (`peft`
merges it into the shared matrix). The nodes write into the embedding alone; what they change in the
head responds like the rest of the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from em_circuits.bases.part import Part, Stage
from em_circuits.models import ModelPair
from em_circuits.models.adapter import LoraAdapter, LoraModule, LoraTensors
from em_circuits.models.family import LinearMap
from em_circuits.models.neurons import matrix
from em_circuits.models.sites import Site
from pivotal_tokens.errors import RequestError

_STAGES: dict[LinearMap, Stage] = {
    "queries": Stage.ATTENTION_INPUT,
    "heads": Stage.ATTENTION_OUTPUT,
    "up": Stage.MLP_INPUT,
    "down": Stage.MLP_HIDDEN,
}


@dataclass(frozen=True)
class MagnitudeNorm:
    """Row norms of ``W + scaling B diag(c) A`` for any factors c on the ranks, without the matrix.

    ``|row|^2 = square + 2 cross c + c (outer product of the row of scaling B) * gram c``
    """

    square: Float[Tensor, " d_write"]
    """``|W_i|^2``."""
    cross: Float[Tensor, "d_write rank"]
    """``scaling B_ir  W_i . A_r``."""
    b: Float[Tensor, "d_write rank"]
    """``scaling B``."""
    gram: Float[Tensor, "rank rank"]
    """``A A^T``."""

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "d_write d_read"],
        b: Float[Tensor, "d_write rank"],
        a: Float[Tensor, "rank d_read"],
    ) -> MagnitudeNorm:
        return cls(weight.square().sum(1), b * (weight @ a.T), b, a @ a.T)

    def norm(self, factors: Float[Tensor, "*batch rank"]) -> Float[Tensor, "*batch d_write"]:
        """Norm of every row under these factors on the ranks."""
        scaled = factors[..., None, :] * self.b
        quadratic = ((scaled @ self.gram) * scaled).sum(-1)
        return (self.square + 2 * factors @ self.cross.T + quadratic).sqrt()


@dataclass(frozen=True)
class AdapterPart(Part):
    """The ranks of one module's LoRA."""

    down: Float[Tensor, "rank d_read"]
    """A; for an embedding, columns are token ids."""
    up: Float[Tensor, "rank d_write"]
    """``scaling * B`` by rank, with DoRA's factor."""
    embedding: bool = False
    dora: MagnitudeNorm | None = field(default=None, kw_only=True)
    tied_head: nn.Module | None = field(default=None, kw_only=True)
    """Of an embedding: the head that shares its matrix, and so has the adapter too."""

    def responses(self, x: Tensor) -> Float[Tensor, "*batch node"]:
        """Every rank's activation, differentiable in what the module reads."""
        return self.down.T[x] if self.embedding else x @ self.down.T.to(x)

    def activations(self, x: Tensor) -> Float[Tensor, "*batch node"]:
        return self.responses(x.detach())

    def live(self, x: Tensor, ids: Int64[Tensor, " op"]) -> Float[Tensor, "*batch op"]:
        if self.embedding:  # token ids are no activation: nothing to differentiate
            return self.down[ids, x]
        return (x * self.down[ids].to(x)).sum(-1)

    def written(self, ids: Int64[Tensor, " op"], write: int = 0) -> Float[Tensor, "op d_write"]:
        return self.up[ids]

    def explained(self, x: Tensor) -> Float[Tensor, "pos d_write"]:
        """What the adapter adds to the module's output."""
        return self.activations(x) @ self.up.to(self.activations(x))


def adapter_parts(pair: ModelPair) -> tuple[AdapterPart, ...]:
    """One part per module that the pair's LoRA changes; nodes of the merged model.

    Raises:
        RequestError: If the adapter is no LoRA, or changes what has no place in the model.
    """
    adapter, decoder = adapter_of(pair), pair.merged.decoder
    modules = [one for one in adapter.modules if not decoder.is_elsewhere(one.name)]
    return tuple(_part(pair, module, adapter.tensors(module)) for module in modules)


def adapter_of(pair: ModelPair) -> LoraAdapter:
    """The adapter that a pair's fine-tune was given as.

    Raises:
        RequestError: If it was given as a full model, or is no LoRA.
    """
    source = pair.sources.get("adapter")
    if source is None:
        raise RequestError("the fine-tune was given as --merged; only an --adapter has ranks")
    return LoraAdapter.read(source.path)


def _part(pair: ModelPair, lora: LoraModule, tensors: LoraTensors) -> AdapterPart:
    decoder = pair.merged.decoder
    place = decoder.map_at(lora.name)
    if place is None and not lora.embedding:
        raise RequestError(f"the adapter changes {lora.name}, whose ranks cannot be nodes")
    try:
        module: Any = pair.merged.hf.get_submodule(lora.name)
        base: Any = pair.base.hf.get_submodule(lora.name)
    except AttributeError as error:
        raise RequestError(
            f"the adapter changes {lora.name}, which the model does not have"
        ) from error
    a = tensors.a.to(pair.device, torch.float32)
    b = lora.scaling * tensors.b.to(pair.device, torch.float32)
    up, dora = b, None
    if tensors.magnitude is not None:
        weight = base.weight.T if lora.embedding else matrix(base)
        dora = MagnitudeNorm.of(weight.float(), b, a)
        factor = tensors.magnitude.to(b) / dora.norm(torch.ones_like(a[:, 0]))
        up = b * factor[:, None]
    head: Any = pair.merged.hf.get_output_embeddings()  # type: ignore[operator]
    tied = lora.embedding and head is not None and head.weight is module.weight
    shared = decoder.family.output == decoder.family.down == lora.leaf
    return AdapterPart(
        basis="adapter",
        name=lora.name,
        module="_".join(lora.name.split(".")[-2:]) if shared else lora.leaf,
        layer=0 if place is None else place[0],
        stage=Stage.EMBEDDING if place is None else _STAGES[place[1]],
        read=Site(module, "input"),
        writes=(Site(module, "output"),),
        n_nodes=lora.rank,
        down=a,
        # Gemma's embedding multiplies what it looks up, the adapter's part too.
        up=up.T.contiguous() * getattr(module, "embed_scale", 1.0),
        embedding=lora.embedding,
        dora=dora,
        tied_head=head if tied else None,
    )
