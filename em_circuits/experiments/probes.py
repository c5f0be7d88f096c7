"""Probes of every component, layer and position, as detectors and as levers.

A detector tells misaligned from aligned answers; a lever moves them. For the best places of every
component both are measured on the same held-out questions:

    detector   area under the ROC curve of the probe
    lever      share of the shift (`experiments.directions`) that goes when the merged model's
               activations there are put, along the probe, to their mean over aligned answers

beside a random direction of the same place. Nodes are put to their means one with another: the few
of largest weight.

    table = probe_answers(work, imported, ProbeRequest())
    ProbeRecord.model_validate(table.record).levers[0].share
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from em_circuits.bases import Part, own_parts
from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.directions import JudgedAnswers, share_of
from em_circuits.experiments.responses import distinct_responses
from em_circuits.features.directions import residual_sites
from em_circuits.features.pooled import PLACES, only, pool_answers, pool_sites
from em_circuits.features.probes import LinearProbe, ProbeScores, probe, question_folds
from em_circuits.interventions.adapter_writes import Readers
from em_circuits.interventions.hooks import random_direction
from em_circuits.models import Model
from em_circuits.models.sites import WRITES, Site, on_site
from em_circuits.pieces import in_memory
from em_circuits.statistics import auroc
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen, ModelName

Component = Literal["residual", "attention", "mlp", "head", "nodes"]
COMPONENTS: tuple[Component, ...] = ("residual", "attention", "mlp", "head", "nodes")
NODES = 10
"""Nodes that are put to their means together."""


class ProbeRequest(Frozen, use_attribute_docstrings=True):
    """Where activations are probed, and how."""

    model: ModelName = "merged"
    """Which model reads the answers."""
    folds: int = Field(default=4, ge=2)
    """Blocks of questions of the cross-validation."""
    levers: int = Field(default=2, ge=0)
    """Places of each component that are tried as levers: those of the best detectors."""
    seed: int = 0


class ProbeLine(Frozen):
    """One place."""

    component: Component
    layer: int
    head: int | None
    """Of an attention head."""
    position: str
    """``mean`` over the answer's tokens, ``last`` or ``second_last`` of them."""
    auroc: float
    """Mean over folds."""
    low: float
    """Least and largest of a fold."""
    high: float
    control: float
    """Of labels shuffled within questions."""


class LeverLine(Frozen):
    """A place as detector and as lever, on the same held-out questions."""

    component: Component
    layer: int
    head: int | None
    detector: float
    """Area under the ROC curve."""
    share: float | None
    """Of the shift that goes; None without a shift."""
    random: float | None
    """The same along a random direction there (for nodes: other active nodes)."""


class ProbeRecord(Frozen):
    """All probes and the levers tried."""

    answers_from: str
    answers_key: str
    pair: str
    request: ProbeRequest
    answers: int
    questions: int
    length_auroc: float
    """Of the answer's length alone."""
    best: tuple[ProbeLine, ...]
    """The best place of every component."""
    levers: tuple[LeverLine, ...]
    held_out_questions: int


class ProbeOutput(ProbeRecord, TableHead):
    """The object of `probe --json`."""


@dataclass(frozen=True, eq=False)
class _Place:
    """Where activations are read, and by what they are edited."""

    component: Component
    layer: int
    head: int | None
    values: Mapping[str, Float[Tensor, "answer d"]]
    """By position."""
    site: Site | None
    part: Part | None = None
    ids: Tensor | None = None
    """Of the nodes that are columns."""


def probe_answers(work: Workspace, imported: CachedTable, request: ProbeRequest) -> CachedTable:
    """Probe imported answers.

    Raises:
        RequestError: If there are fewer questions with answers of both sides than folds.
    """
    inputs = {
        "formula": 1,
        "answers": imported.key,
        "pair": work.pair.key,
        "request": request.model_dump(mode="json"),
    }

    def compute() -> tuple[Mapping[str, Any], pd.DataFrame]:
        record, lines = _measure(work, imported, request)
        frame = pd.DataFrame([line.model_dump() for line in lines])
        frame["head"] = frame["head"].astype("Int64")
        return record.model_dump(mode="json"), frame

    return cached_table(work.results / "features", "probes", inputs, compute)


def probe_lines(table: CachedTable) -> tuple[ProbeLine, ...]:
    """Every place of a table of `probe_answers`."""
    return tuple(ProbeLine.model_validate(row) for row in table.rows())


def _measure(
    work: Workspace, imported: CachedTable, request: ProbeRequest
) -> tuple[ProbeRecord, list[ProbeLine]]:
    given = JudgedAnswers.of(work.pair, distinct_responses(imported), work.progress).paired()
    questions = given.question.unique().tolist()
    if len(questions) < request.folds:
        raise RequestError(
            f"{len(questions)} questions have answers of both sides, fewer than --folds "
            f"{request.folds}; give fewer folds, or more questions"
        )
    model = work.pair.model(request.model)
    places = list(_places(model, given, work.progress))
    lines = [
        _line(place, position, _probed(place.values[position], given, request))
        for place in places
        for position in PLACES
    ]
    length = torch.tensor([float(len(text.answer)) for text in given.texts])
    of_length = auroc(length[given.misaligned], length[~given.misaligned])
    out = question_folds(given.question, request.folds, request.seed) == 0
    aside = given.question[out].unique().tolist()
    by_mean = {
        (line.component, line.layer, line.head): line.auroc
        for line in lines
        if line.position == "mean"
    }
    tried = [
        place
        for component in COMPONENTS
        for place in sorted(
            (p for p in places if p.component == component),
            key=lambda p: -by_mean[p.component, p.layer, p.head],
        )[: request.levers]
    ]
    before = given.margins(work.pair.merged, aside)
    shift = before - given.margins(work.pair.base, aside)
    lever = _Lever(given, work.pair.merged, out, aside, before, shift, request.seed)
    record = ProbeRecord(
        answers_from=imported.record["name"],
        answers_key=imported.key,
        pair=work.pair.key,
        request=request,
        answers=len(given.rows),
        questions=len(questions),
        length_auroc=max(of_length, 1 - of_length),
        best=tuple(
            max((line for line in lines if line.component == component), key=lambda x: x.auroc)
            for component in COMPONENTS
        ),
        levers=tuple(map(lever.line, tried)) if request.model == "merged" else (),
        held_out_questions=len(aside),
    )
    return record, lines


def _probed(values: Tensor, given: JudgedAnswers, request: ProbeRequest) -> ProbeScores:
    return probe(values, given.question, given.misaligned, folds=request.folds, seed=request.seed)


def _line(place: _Place, position: str, scores: ProbeScores) -> ProbeLine:
    return ProbeLine(
        component=place.component,
        layer=place.layer,
        head=place.head,
        position=position,
        **scores._asdict(),
    )


def _places(model: Model, given: JudgedAnswers, progress: Any) -> Iterator[_Place]:
    layers = model.decoder.layers
    dense: dict[Component, tuple[Site, ...]] = {
        "residual": residual_sites(model.decoder),
        "attention": tuple(Site(layer.output, "output") for layer in layers),
        "mlp": tuple(WRITES["mlp.hook_out"](layer) for layer in layers),
    }
    readers = Readers.of(model)
    inputs = tuple(Site(layer.output, "input") for layer in layers)
    sites = [*(site for several in dense.values() for site in several), *inputs]
    found = iter(pool_sites(model, sites, given.texts, progress))
    for component, several in dense.items():
        for layer, site in enumerate(several):
            yield _Place(component, layer, None, next(found), site)
    for layer, site in enumerate(inputs):
        by_head = {place: readers.by_head(x) for place, x in next(found).items()}
        for head in range(readers.n_heads):
            values = {place: x[:, head] for place, x in by_head.items()}
            yield _Place("head", layer, head, values, site)
    parts = own_parts(model)
    keep = partial(in_memory, progress=progress)
    pooled = {place: pool_answers(model, parts, only(given.texts, place), keep) for place in PLACES}
    for number, part in enumerate(parts):
        ids, _ = pooled["mean"].dense(number, "mean", least=5)
        if not len(ids):
            continue
        values = {place: one.of_nodes(number, "mean", ids).float() for place, one in pooled.items()}
        yield _Place("nodes", part.layer, None, values, None, part, ids)


@dataclass(frozen=True, eq=False)
class _Lever:
    """Edits of the merged model along probes that were fitted without some questions."""

    given: JudgedAnswers
    model: Model
    out: Tensor
    questions: list[int]
    before: Tensor
    shift: Tensor
    seed: int

    def line(self, place: _Place) -> LeverLine:
        values, labels = place.values["mean"], self.given.misaligned
        fitted = LinearProbe.fit(values[~self.out], labels[~self.out])
        scores, hit = fitted.scores(values[self.out]), labels[self.out]
        aligned = values[~self.out & ~labels].mean(0)
        if place.part is None:
            drawn = random_direction(self.seed, place.layer, values.shape[1])
            edits = [self._along(place, unit, aligned) for unit in (fitted.direction, drawn)]
        else:
            order = fitted.weights.abs().argsort(descending=True)
            generator = torch.Generator().manual_seed(self.seed)
            rest = order[NODES:][torch.randperm(max(len(order) - NODES, 0), generator=generator)]
            edits = [self._nodes(place, some, aligned) for some in (order[:NODES], rest[:NODES])]
        share, random = (self._share(edit) for edit in edits)
        return LeverLine(
            component=place.component,
            layer=place.layer,
            head=place.head,
            detector=auroc(scores[hit], scores[~hit]),
            share=share,
            random=random,
        )

    def _share(self, edit: Callable[[], contextlib.AbstractContextManager[None]]) -> float | None:
        with edit():
            after = self.given.margins(self.model, self.questions)
        return share_of(self.before - after, self.shift)

    def _along(
        self, place: _Place, unit: Tensor, aligned: Tensor
    ) -> Callable[[], contextlib.AbstractContextManager[None]]:
        site, level = place.site, float(aligned.double() @ unit.double())
        assert site is not None

        def edit(x: Tensor) -> Tensor:
            if place.head is None:
                direction = unit.to(x)
                return x - ((x @ direction) - level)[..., None] * direction
            width = len(unit)
            direction = torch.zeros_like(x[0, 0])
            direction[place.head * width : (place.head + 1) * width] = unit.to(x)
            return x - ((x @ direction) - level)[..., None] * direction

        return lambda: on_site(site, edit)

    def _nodes(
        self, place: _Place, chosen: Tensor, aligned: Tensor
    ) -> Callable[[], contextlib.AbstractContextManager[None]]:
        part, ids = place.part, place.ids
        assert part is not None and ids is not None
        some, levels = ids[chosen], aligned[chosen]
        written = [part.written(some, k) for k in range(len(part.writes))]

        @contextlib.contextmanager
        def held() -> Iterator[None]:
            change: list[Tensor] = []

            def read(x: Tensor) -> None:
                now = part.activations(x)[..., some]
                moved = levels.to(now) - now
                moved[:, : part.first_position] = 0
                change[:] = [moved]

            def write(vectors: Tensor) -> Callable[[Tensor], Tensor]:
                return lambda output: output + (change[0].to(output) @ vectors.to(output))

            with contextlib.ExitStack() as stack:
                stack.enter_context(on_site(part.read, read))
                for site, vectors in zip(part.writes, written, strict=True):
                    stack.enter_context(on_site(site, write(vectors)))
                yield

        return held
