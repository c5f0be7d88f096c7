"""Contexts of a text in which a feature fires most.

    contexts = top_contexts(model, features, texts, keep=5)
    contexts[FeatureId(2, 299)].best[0].marked         # "Assistant: You should«·definitely»"

Every document is run through the model whose features they are, position 0 left out. One context
per document is kept, its strongest, so that a repetitive document does not fill the list. Neurons
fire both ways: strongest means the largest magnitude, and the sign stays.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from em_circuits.feature import FeatureId
from em_circuits.models import Model
from em_circuits.models.text import decode_token, encode
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

WINDOW = 12
"""Tokens shown before the strongest one, and half as many after it."""


class Context(Frozen):
    """One place where a feature fires."""

    activation: float
    document: int
    """Number of the document in the text, from 0."""
    position: int
    """Of the strongest token, counted with the beginning-of-sequence token."""
    before: str
    token: str
    after: str

    def __lt__(self, other: Context) -> bool:
        """Weaker, in magnitude; ties by place."""
        return self._rank < other._rank

    @property
    def _rank(self) -> tuple[float, int, int]:
        return abs(self.activation), self.document, self.position

    @property
    def marked(self) -> str:
        """The window with the token between guillemets."""
        return f"{self.before}«{self.token}»{self.after}"


@dataclass(frozen=True)
class FeatureContexts:
    """What a text says about one feature."""

    best: tuple[Context, ...]
    """The strongest first; none if the feature never fires in the text."""
    n_active: int
    """Positions at which it fires."""
    n_positions: int
    """Positions seen, the first of each document left out."""

    @property
    def density(self) -> float:
        """Share of positions at which it fires."""
        return self.n_active / self.n_positions if self.n_positions else 0.0


@torch.no_grad()
def top_contexts(
    model: Model,
    features: Sequence[FeatureId],
    texts: Iterable[str],
    *,
    keep: int = 5,
    batch: int = 16,
) -> dict[FeatureId, FeatureContexts]:
    """The strongest contexts of some features over the documents of a text.

    Args:
        model: Whose activations are meant.
        features: (layer, feature id) each.
        texts: One document each; longer ones than the model allows are cut.
        keep: Contexts per feature, from different documents.
        batch: Documents per forward pass.

    Raises:
        RequestError: If a feature does not exist, or there is no document.
    """
    check_features(model, features)
    heaps: dict[FeatureId, list[Context]] = {feature: [] for feature in features}
    active = dict.fromkeys(features, 0)
    n_documents = n_positions = 0
    for rows in _batches(texts, batch):
        ids = [_encode(model, text) for text in rows]
        values = _activations(model, features, ids)
        for feature, by_row in values.items():
            for offset, (row, value) in enumerate(zip(ids, by_row, strict=True)):
                active[feature] += int((value[1 : len(row)] != 0).sum())
                _remember(heaps[feature], model, row, value, n_documents + offset, keep)
        n_documents += len(rows)
        n_positions += sum(len(row) - 1 for row in ids)
    if not n_documents:
        raise RequestError("the text holds no document: give a file with one per line")
    return {
        feature: FeatureContexts(tuple(sorted(heap, reverse=True)), active[feature], n_positions)
        for feature, heap in heaps.items()
    }


def context_at(
    model: Model, row: Sequence[int], position: int, *, activation: float, document: int
) -> Context:
    """A place in a document with what stands around it.

    Args:
        model: Whose tokenizer is meant.
        row: Token ids of the document.
        position: Of the strongest token.
        activation: There.
        document: Its number.
    """
    text = [decode_token(model.tokenizer, token) for token in row]
    return Context(
        activation=activation,
        document=document,
        position=position,
        before="".join(text[max(1, position - WINDOW) : position]),
        token=text[position],
        after="".join(text[position + 1 : position + 1 + WINDOW // 2]),
    )


def check_features(model: Model, features: Sequence[FeatureId]) -> None:
    """Refuse features that the dictionaries do not have.

    Raises:
        RequestError: Naming the first and what exists.
    """
    width = model.dictionaries[0].width
    for layer, feature in features:
        if not (0 <= layer < model.sites.n_layers and 0 <= feature < width):
            raise RequestError(
                f"feature {layer}/{feature} does not exist: layers go from 0 to "
                f"{model.sites.n_layers - 1}, features from 0 to {width - 1}"
            )


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    rest = iter(text for text in texts if text.strip())
    while rows := list(islice(rest, size)):
        yield rows


def _encode(model: Model, text: str) -> list[int]:
    config: Any = model.hf.config
    longest = int(min(model.settings.max_context, config.max_position_embeddings))
    return encode(model.tokenizer, text)[:longest]


def _activations(
    model: Model, features: Sequence[FeatureId], ids: Sequence[Sequence[int]]
) -> dict[FeatureId, Tensor]:
    """(layer, feature id) -> activations, (row, pos); values on padding are meaningless."""
    padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    for row, tokens in enumerate(ids):  # to the right: a causal model's tokens do not see it
        padded[row, : len(tokens)] = torch.tensor(tokens)
    by_layer: dict[int, list[int]] = {}
    for layer, feature in features:
        by_layer.setdefault(layer, []).append(feature)
    found: dict[FeatureId, Tensor] = {}

    def read(layer: int, x: Tensor) -> None:
        if layer not in by_layer:
            return
        encoded = model.dictionaries[layer].encode(x)[..., by_layer[layer]].float().cpu()
        for column, feature in enumerate(by_layer[layer]):
            found[FeatureId(layer, feature)] = encoded[..., column]

    with model.sites.hooked(read):
        model.hf(input_ids=padded.to(model.device), use_cache=False)
    return found


def _remember(
    heap: list[Context], model: Model, row: Sequence[int], value: Tensor, document: int, keep: int
) -> None:
    inside = value[1 : len(row)]
    if not len(inside) or not inside.any():
        return
    position = int(inside.abs().argmax()) + 1
    activation = float(value[position])
    if len(heap) == keep and abs(activation) <= abs(heap[0].activation):
        return
    context = context_at(model, row, position, activation=activation, document=document)
    (heapq.heappush if len(heap) < keep else heapq.heapreplace)(heap, context)
