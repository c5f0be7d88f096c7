"""Directions of the residual stream: a mean difference per layer, what it reads as, what it does.

With x_L the residual stream behind layer L, mean over the tokens of an answer,

    answers   v_L = mean over questions of (mean over misaligned - mean over aligned answers) of x_L
    models    v_L = mean over answers of x_L under merged - x_L under base, on the same tokens

A direction is tried by editing the stream behind every layer while the model runs,

    ablate    x - (x . u) u                    u = v / |v|; each layer its own
    restore   x - (x . u - m) u                m: mean of x . u under the base, on aligned answers
    add       x + dose |x| u                   behind one layer; dose is |added| / |activation|

beside random directions of the same norm (`interventions.hooks.random_direction`), whose projection
is removed, or which are added, likewise.

    direction = mean_difference(pooled, question, misaligned)
    with edited(model, direction.ablation()):
        model.hf(input_ids)
    nearest_nodes(model, direction, layer=2)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import BaseModel
from torch import Tensor

from em_circuits.bases.part import Part
from em_circuits.features.pooled import pool_sites
from em_circuits.features.promoted import Promoted, push_of, strongest
from em_circuits.features.responses import QuestionBlocks
from em_circuits.interventions.hooks import random_direction
from em_circuits.models import Model
from em_circuits.models.family import Decoder
from em_circuits.models.sites import Site, on_site
from em_circuits.models.text import AnsweredText
from em_circuits.progress import Progress, no_progress

Kind = Literal["answers", "models"]
Edit = Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch pos d_model"]]


def residual_sites(decoder: Decoder) -> tuple[Site, ...]:
    """The residual stream behind each layer.

    It is what a layer gives, not what the next norm reads: that is a copy, and the stream itself
    would go past an edit of it.
    """
    return tuple(Site(layer.module, "output") for layer in decoder.layers)


def residual_means(
    model: Model, texts: Sequence[AnsweredText], progress: Progress = no_progress
) -> Float[Tensor, "answer layer d_model"]:
    """Residual stream behind every layer, mean over the tokens of each answer; float32, CPU."""
    found = pool_sites(model, residual_sites(model.decoder), texts, progress)
    return torch.stack([of_site["mean"] for of_site in found], 1)


@dataclass(frozen=True, eq=False)
class ResidualDirection:
    """A vector behind each layer.

    Attributes:
        kind: What was subtracted.
        vectors: Not normalised, float32.
        size: Mean length of the residual stream there, over the same answers.
        aligned: Mean of the base's stream there on aligned answers.
    """

    kind: Kind
    vectors: Float[Tensor, "layer d_model"]
    size: Float[Tensor, " layer"]
    aligned: Float[Tensor, "layer d_model"]

    @property
    def unit(self) -> Float[Tensor, "layer d_model"]:
        """Length 1; 0 where the difference is 0."""
        return self.vectors / self.vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)

    @property
    def relative(self) -> Float[Tensor, " layer"]:
        """Length of the difference over that of the stream."""
        return self.vectors.norm(dim=1) / self.size

    @property
    def strongest(self) -> int:
        """The layer behind which the difference is largest beside the stream."""
        return int(self.relative.argmax())

    def cosine(self, other: ResidualDirection) -> float | None:
        """With another direction, mean over layers; None where no layer has both.

        Behind layers before a fine-tune's first there is no difference of models, so no angle.
        """
        both = (self.vectors.norm(dim=1) > 0) & (other.vectors.norm(dim=1) > 0)
        return float((self.unit * other.unit).sum(1)[both].mean()) if both.any() else None

    def random(self, seed: int) -> ResidualDirection:
        """Random directions of the same length in every layer."""
        each = [random_direction(seed, i, len(v)) for i, v in enumerate(self.vectors)]
        vectors = torch.stack(each) * self.vectors.norm(dim=1, keepdim=True)
        return replace(self, vectors=vectors)

    def ablation(self) -> dict[int, Edit]:
        """Project the direction out behind every layer."""
        return {layer: _onto(u, 0.0) for layer, u in enumerate(self.unit)}

    def restoration(self) -> dict[int, Edit]:
        """Put the projection to the base's mean behind every layer."""
        levels = (self.aligned * self.unit).sum(1).tolist()
        return {layer: _onto(u, levels[layer]) for layer, u in enumerate(self.unit)}

    def addition(self, dose: float, layer: int) -> dict[int, Edit]:
        """Add it behind one layer, as a share of each position's length."""
        unit = self.unit[layer]
        return {layer: lambda x: x + dose * x.norm(dim=-1, keepdim=True) * unit.to(x)}


def _onto(unit: Tensor, level: float) -> Edit:
    def edit(x: Tensor) -> Tensor:
        direction = unit.to(x)
        return x - ((x @ direction) - level)[..., None] * direction

    return edit


def mean_difference(
    merged: Float[Tensor, "answer layer d_model"],
    base: Float[Tensor, "answer layer d_model"],
    question: Int64[Tensor, " answer"],
    misaligned: Bool[Tensor, " answer"],
    *,
    kind: Kind,
) -> ResidualDirection:
    """The direction of a kind, over the questions that have answers of both sides.

    Args:
        merged: Residual means of the answers under the merged model.
        base: Under the base.
        question: Number of the question of each.
        misaligned: Its side.

    Raises:
        RequestError: If no question has both sides (kind ``answers``).
    """
    blocks = QuestionBlocks.of(question, misaligned, QuestionBlocks.paired(question, misaligned))
    if kind == "answers":
        flat = merged.flatten(1).double()
        vectors = blocks.contrast(flat).reshape(merged.shape[1:]).float()
    else:
        vectors = (merged - base)[blocks.rows].mean(0)
    return ResidualDirection(
        kind,
        vectors,
        merged[blocks.rows].norm(dim=2).mean(0),
        base[blocks.rows[~blocks.hit]].mean(0),
    )


@contextlib.contextmanager
def edited(model: Model, edits: dict[int, Edit]) -> Iterator[None]:
    """Edit the residual stream behind some layers in every forward pass of the block."""
    sites = residual_sites(model.decoder)
    with contextlib.ExitStack() as stack:
        for layer, edit in edits.items():
            stack.enter_context(on_site(sites[layer], edit))
        yield


def readout(model: Model, direction: ResidualDirection, layer: int, *, keep: int = 8) -> Promoted:
    """Tokens that the direction promotes and suppresses most, through the unembedding."""
    push = push_of(model, direction.vectors[layer].to(model.device))
    return strongest(push, model.tokenizer, keep=keep)


class AlignedNode(BaseModel, frozen=True):
    """A node whose writes point along (or against) a direction."""

    node: str
    cosine: float
    chance: float
    """|cosine| that one in a thousand random vectors of this dimension exceeds."""


@torch.no_grad()
def nearest_nodes(
    parts: Sequence[Part], direction: ResidualDirection, layer: int, *, keep: int = 10
) -> tuple[AlignedNode, ...]:
    """Nodes of a layer by the cosine of what they write with the direction behind it.

    Args:
        parts: Of any basis; those of other layers, or that write elsewhere, are left out.
        keep: How many, the largest by magnitude.
    """
    unit = direction.unit[layer]
    chance = 3.29 / len(unit) ** 0.5  # cosines of random vectors have a standard deviation d^-1/2
    found: list[AlignedNode] = []
    for part in parts:
        if part.layer != layer:
            continue
        ids = torch.arange(part.n_nodes)
        written = part.written(ids).float().cpu()
        if written.shape[1] != len(unit):
            continue
        cosines = torch.nn.functional.cosine_similarity(written, unit[None])
        prefix = f"{part.module}:" if part.module else ""
        found += [
            AlignedNode(node=f"{prefix}{layer}/{i}", cosine=float(cosines[i]), chance=chance)
            for i in cosines.abs().topk(min(keep, len(ids))).indices.tolist()
        ]
    return tuple(sorted(found, key=lambda one: -abs(one.cosine))[:keep])
