"""Activations over whole answers: every node's mean and maximum over the tokens of an answer.

For a part of a basis and an answer with the positions P (`models.text.encode_answer`),

    mean_i = sum over p in P of a_ip / |P|            max_i = the a_ip of largest magnitude

Answers are kept sparse, part by part, and become a dense matrix over the nodes that are active in
enough of them, so that memory goes with what fires and not with the width of a dictionary.

    pooled = pool_answers(model, own_parts(model), texts)
    ids, values = pooled.dense(part=0, pool="mean", least=5)      # answer x node
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from em_circuits.bases.part import Part
from em_circuits.features.settings import Pool
from em_circuits.graphs.held import captured, read_sites
from em_circuits.models import Model
from em_circuits.models.sites import Site
from em_circuits.models.text import AnsweredText
from em_circuits.pieces import KeepTensors, in_memory
from em_circuits.progress import Progress, no_progress, tracked

_ANSWERS = 16
"""Answers of a piece of the work."""


class _Active(NamedTuple):
    """The nodes of one part that are active in one answer."""

    ids: Int64[Tensor, " active"]
    mean: Float[Tensor, " active"]
    max: Float[Tensor, " active"]


@dataclass(frozen=True, eq=False)
class PooledAnswers:
    """Node activations of several answers.

    Attributes:
        parts: Of the basis.
        n_tokens: Of each answer, as the model saw it.
    """

    parts: tuple[Part, ...]
    n_tokens: Int64[Tensor, " answer"]
    _active: tuple[tuple[_Active, ...], ...]
    """By answer and part."""

    def dense(
        self, part: int, pool: Pool, *, least: int = 1
    ) -> tuple[Int64[Tensor, " node"], Float64[Tensor, "answer node"]]:
        """The nodes that are active in at least so many answers, and their activations."""
        rows = [answer[part] for answer in self._active]
        found, counts = torch.cat([row.ids for row in rows]).unique(return_counts=True)
        ids = found[counts >= least]
        return ids, self.of_nodes(part, pool, ids)

    def of_nodes(
        self, part: int, pool: Pool, ids: Int64[Tensor, " node"]
    ) -> Float64[Tensor, "answer node"]:
        """Activations of some nodes (ascending ids); 0 where one is not active."""
        rows = [answer[part] for answer in self._active]
        values = torch.zeros(len(rows), len(ids), dtype=torch.float64)
        if not len(ids):
            return values
        for number, row in enumerate(rows):
            at = torch.searchsorted(ids, row.ids).clamp(max=len(ids) - 1)
            known = ids[at] == row.ids
            values[number, at[known]] = getattr(row, pool)[known].double()
        return values


def pool_answers(
    model: Model,
    parts: Sequence[Part],
    texts: Sequence[AnsweredText],
    keep: KeepTensors = in_memory,
) -> PooledAnswers:
    """Run a model over answers, each with the prompt that it answers.

    Args:
        model: Which reads them; it need not have written them.
        parts: Whose nodes.
        texts: At most as long as the model takes.
        keep: Does the answers, some of them a piece of the work.
    """

    @torch.no_grad()
    def pooled(some: Sequence[AnsweredText]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, text in enumerate(some):
            reads = captured(model, parts, torch.tensor(text.ids))
            for i, (part, x) in enumerate(zip(parts, reads, strict=True)):
                active = _pooled(part.activations(x), text)
                found |= {f"{number} {i} {name}": v for name, v in active._asdict().items()}
        return found

    groups = [texts[i : i + _ANSWERS] for i in range(0, len(texts), _ANSWERS)]
    done = keep("answers", [(str(n), partial(pooled, some)) for n, some in enumerate(groups)])
    active = tuple(
        tuple(
            _Active(*(found[f"{number} {i} {name}"] for name in _Active._fields))
            for i in range(len(parts))
        )
        for some, found in zip(groups, done, strict=True)
        for number in range(len(some))
    )
    lengths = torch.tensor([len(text.answer) for text in texts], dtype=torch.int64)
    return PooledAnswers(tuple(parts), lengths, active)


def _pooled(activations: Float[Tensor, "pos node"], text: AnsweredText) -> _Active:
    mine = activations[text.start :].float().cpu()
    ids = (mine != 0).any(0).nonzero()[:, 0]
    mine = mine[:, ids]
    largest = mine.gather(0, mine.abs().argmax(0)[None])[0]
    return _Active(ids, mine.mean(0), largest)


PLACES = ("mean", "last", "second_last")
"""Over an answer's tokens, at its last, at the one before (the last of an answer of one token)."""


@torch.no_grad()
def pool_sites(
    model: Model,
    sites: Sequence[Site],
    texts: Sequence[AnsweredText],
    progress: Progress = no_progress,
) -> list[dict[str, Float[Tensor, "answer _"]]]:
    """Activations at sites, at each of `PLACES` of every answer; float32, CPU."""
    found: list[dict[str, list[Tensor]]] = [{place: [] for place in PLACES} for _ in sites]
    for text in tracked(texts, f"{model.name} answers", progress):
        reads = read_sites(model, sites, torch.tensor(text.ids))
        for of_site, x in zip(found, reads, strict=True):
            mine = x[text.start :].float().cpu()
            values = (mine.mean(0), mine[-1], mine[max(len(mine) - 2, 0)])
            for place, value in zip(PLACES, values, strict=True):
                of_site[place].append(value)
    return [{place: torch.stack(rows) for place, rows in of_site.items()} for of_site in found]


def only(texts: Sequence[AnsweredText], place: str) -> list[AnsweredText]:
    """Answers cut down to the tokens of one of `PLACES`, so that a mean is of these."""
    if place == "mean":
        return list(texts)
    ends = [len(t.ids) if place == "last" else max(len(t.ids) - 1, t.start + 1) for t in texts]
    return [AnsweredText(t.ids[:end], end - 1) for t, end in zip(texts, ends, strict=True)]
