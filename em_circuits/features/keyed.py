"""Which feature is the same feature in another prompt?

A key is (layer, feature id), or (layer, feature id, offset) with the offset counted from the last
position (0 = last, -1 = the one before). Without offset, a prompt's score of a key is the sum over
the positions at which the feature fires. In every prompt a key is in one of three states:

    inactive       it fires nowhere: its effect is exactly 0, and counts as 0
    not selected   it fires but is no node of the graph: unknown, left out
    selected       it has a score; `partial` where it fires at further, unselected positions

An index into a graph's nodes is never a key: node i is another feature in every prompt.

    keyed = KeyedScores.of([of_graph(graph, labels, "gradient") for ...])
    values, known = keyed.dense(torch.arange(len(keyed)))   # prompt x key
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from em_circuits.features.rank import GRADIENT, FeatureScores, graph_scores, sides_of
from em_circuits.graphs.graph import AttributionGraph
from pivotal_tokens.schema import Label

_OFFSET_BITS, _FEATURE_BITS = 20, 32


@dataclass(frozen=True, eq=False)
class PromptScores:
    """What one method says about one prompt under one model."""

    scores: FeatureScores
    labels: Mapping[int, Label]
    n_pos: int
    unscored: Int64[Tensor, "unscored 3"]
    """(layer, position, feature id) of features that fire but have no score."""


@dataclass(frozen=True, eq=False)
class Block:
    """One prompt's scores by key.

    Attributes:
        codes: Keys with a score, ascending.
        rows: Their scores on each evil and safe token, summed over positions.
        weights: Of each token: +1/evil, -1/safe; ``weights @ rows`` is the contrast.
        partial: Further positions of the key have no score.
        unknown: Codes of keys that fire and have no score at all.
        n_pos: Positions of the prompt, the first (BOS) included.
    """

    codes: Int64[Tensor, " entry"]
    rows: Float64[Tensor, "row entry"]
    weights: Float64[Tensor, " row"]
    partial: Bool[Tensor, " entry"]
    unknown: Int64[Tensor, " unknown"]
    n_pos: int

    @property
    def contrast(self) -> Float64[Tensor, " entry"]:
        """Evil minus safe of each key, in the method's unit."""
        return self.weights @ self.rows


@dataclass(frozen=True, eq=False)
class KeyedScores:
    """Blocks of several prompts over one list of keys: those with a score in any of them."""

    blocks: tuple[Block, ...]
    codes: Int64[Tensor, " key"]
    by_position: bool

    @classmethod
    def of(cls, blocks: Sequence[Block], *, by_position: bool = False) -> KeyedScores:
        """Line up the blocks of several prompts."""
        empty = torch.empty(0, dtype=torch.int64)
        codes = torch.unique(torch.cat([empty, *(block.codes for block in blocks)]))
        return cls(tuple(blocks), codes, by_position)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def coordinates(self) -> Int64[Tensor, "key 3"]:
        """(layer, feature id, offset); the offset is 0 throughout without positions."""
        return decode(self.codes)

    def place(self, codes: Int64[Tensor, " some"]) -> tuple[Tensor, Tensor]:
        """(which of the codes are keys, the index of each of those)."""
        if not len(self):
            return torch.zeros(len(codes), dtype=torch.bool), codes[:0]
        index = torch.searchsorted(self.codes, codes).clamp(max=len(self) - 1)
        found = self.codes[index] == codes
        return found, index[found]

    def known(self, block: Block) -> Bool[Tensor, " key"]:
        """Keys whose effect in this prompt is known: selected or inactive, and in its length."""
        known = torch.ones(len(self), dtype=torch.bool)
        known[self.place(block.unknown)[1]] = False
        if self.by_position:
            known &= self.coordinates[:, 2] > -(block.n_pos - 1)
        return known

    def values(self, block: Block) -> Float64[Tensor, " key"]:
        """Contrast of every key in this prompt, 0 where it has no score."""
        values = torch.zeros(len(self), dtype=torch.float64)
        values[self.place(block.codes)[1]] = block.contrast
        return values

    def rows(self, chosen: Int64[Tensor, " chosen"]) -> Float64[Tensor, "row chosen"]:
        """Token scores of some keys, all prompts' tokens below one another."""
        column = torch.full((len(self),), -1)
        column[chosen] = torch.arange(len(chosen))
        parts = [torch.zeros(0, len(chosen), dtype=torch.float64)]
        for block in self.blocks:
            target = column[self.place(block.codes)[1]]
            part = torch.zeros(len(block.weights), len(chosen), dtype=torch.float64)
            part[:, target[target >= 0]] = block.rows[:, target >= 0]
            parts.append(part)
        return torch.cat(parts)


def of_graph(graph: AttributionGraph, labels: Mapping[int, Label], method: str) -> PromptScores:
    """Scores of a stored graph's features, and which of its features have none.

    Raises:
        RequestError: See `em_circuits.features.rank.graph_scores`.
    """
    scores = graph_scores(graph, method)
    unscored = torch.full((len(graph.active),), method != GRADIENT)
    unscored[graph.selected] = False
    return PromptScores(scores, labels, len(graph.input_ids), graph.active[unscored])


def block_of(prompt: PromptScores, *, by_position: bool = False) -> Block:
    """One prompt's scores by key, on its evil and safe tokens.

    Raises:
        RequestError: If no target is labelled evil, or none safe: there is no contrast.
    """
    evil, safe = sides_of(prompt.scores.token_ids, prompt.labels)
    order = prompt.scores.token_ids[evil | safe].argsort()
    weights = evil.double() / evil.sum() - safe.double() / safe.sum()
    return make_block(
        prompt.scores.coordinates,
        prompt.scores.scores[evil | safe][order].double(),
        weights[evil | safe][order],
        unscored=prompt.unscored,
        n_pos=prompt.n_pos,
        by_position=by_position,
    )


def make_block(
    coordinates: Int64[Tensor, "feature 3"],
    rows: Float64[Tensor, "row feature"],
    weights: Float64[Tensor, " row"],
    *,
    unscored: Int64[Tensor, "unscored 3"],
    n_pos: int,
    by_position: bool,
) -> Block:
    """Sum scores over positions where these are no part of the key."""
    n_pos_of_key = n_pos if by_position else None
    codes, inverse = torch.unique(encode(coordinates, n_pos_of_key), return_inverse=True)
    summed = torch.zeros(len(rows), len(codes), dtype=torch.float64).index_add_(1, inverse, rows)
    unknown = torch.unique(encode(unscored, n_pos_of_key))
    partial = torch.isin(codes, unknown)
    return Block(codes, summed, weights, partial, unknown[~torch.isin(unknown, codes)], n_pos)


def encode(coordinates: Int64[Tensor, "feature 3"], n_pos: int | None) -> Int64[Tensor, " feature"]:
    """(layer, position, feature id) as one sortable number; the position from the end, if any."""
    layer, position, feature = coordinates.unbind(1)
    code = ((layer << _FEATURE_BITS) | feature) << _OFFSET_BITS
    return code if n_pos is None else code | (n_pos - 1 - position)


def decode(codes: Int64[Tensor, " key"]) -> Int64[Tensor, "key 3"]:
    """(layer, feature id, offset <= 0) of every code."""
    offset = -(codes & ((1 << _OFFSET_BITS) - 1))
    place = codes >> _OFFSET_BITS
    feature = place & ((1 << _FEATURE_BITS) - 1)
    return torch.stack([place >> _FEATURE_BITS, feature, offset], 1)
