"""Probes of every component, layer and position, as detectors and as levers.

A detector tells misaligned from aligned answers; a lever moves them. For the best places of every
component both are measured on the same held-out questions:

    detector   area under the ROC curve of the probe
    lever      share of the shift (`experiments.directions`) that goes when the merged model's
               activations there are put, along the probe, to their mean over aligned answers

beside a random direction of the same place. Features and neurons are put to their means one with
another: the few of largest weight. `direction` is the difference of the sides' means of the
stream, and without a layer that of merged and base, taken out behind every layer.

    table = probe_answers(work, imported, ProbeRequest())
    ProbeRecord.model_validate(table.record).levers[0].share
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from em_circuits.bases import Part, neuron_parts, transcoder_parts
from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.directions import JudgedAnswers
from em_circuits.experiments.requests import ProbeRequest
from em_circuits.experiments.responses import answered_texts, distinct_responses
from em_circuits.experiments.shares import Share
from em_circuits.features.directions import residual_sites
from em_circuits.features.pooled import PLACES, only, pool_answers, pool_sites
from em_circuits.features.probes import Fit, LinearProbe, probe, question_folds
from em_circuits.interventions.adapter_writes import Readers
from em_circuits.interventions.hooks import random_direction
from em_circuits.models import Model
from em_circuits.models.sites import WRITES, Site, on_site
from em_circuits.pieces import in_memory
from em_circuits.progress import Progress
from em_circuits.statistics import auroc
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen

Component = Literal["residual", "direction", "attention", "mlp", "head", "feature", "neuron"]
COMPONENTS: tuple[Component, ...] = get_args(Component)
NODES = 10
"""Nodes that are put to their means together."""


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
    style: float
    """Of the same answers in lower case and without punctuation, by the probe of the plain ones."""


class LeverLine(Share):
    """A place as detector and as lever (the share of the shift that goes), on the same held-out
    questions."""

    component: Component
    layer: int | None
    """None: every layer, of the direction merged minus base."""
    head: int | None
    detector: float
    """Area under the ROC curve."""
    random: float | None
    """The same along a random direction there (of features and neurons: others that fire)."""


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
    restyled: Mapping[str, Float[Tensor, "answer d"]]
    """Of the restyled answers."""
    site: Site | None
    part: Part | None = None
    ids: Tensor | None = None
    """Of the nodes that are columns."""

    @property
    def fit(self) -> Fit:
        direction = self.component == "direction"
        return LinearProbe.between_means if direction else LinearProbe.fit


_PUNCTUATION = re.compile(r"[^\w\s']+")


def restyled(answer: str) -> str:
    """An answer in lower case, without punctuation; as it is where nothing would be left."""
    return _PUNCTUATION.sub("", answer).lower().strip() or answer


def probe_answers(work: Workspace, imported: CachedTable, request: ProbeRequest) -> CachedTable:
    """Probe imported answers.

    Raises:
        RequestError: If there are fewer questions with answers of both sides than folds.
    """
    inputs = {
        "formula": 4,
        "answers": imported.key,
        "pair": work.pair_key,
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
        ProbeLine(
            component=place.component,
            layer=place.layer,
            head=place.head,
            position=position,
            **probe(
                place.values[position],
                given.question,
                given.misaligned,
                folds=request.folds,
                seed=request.seed,
                restyled=place.restyled[position],
                fit=place.fit,
            )._asdict(),
        )
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
    lever = _Lever(given, out, aside, request.seed)
    of_models = (lever.of_models(),) if request.levers and request.model == "merged" else ()
    record = ProbeRecord(
        answers_from=imported.record["name"],
        answers_key=imported.key,
        pair=work.pair_key,
        request=request,
        answers=len(given.rows),
        questions=len(questions),
        length_auroc=max(of_length, 1 - of_length),
        best=tuple(
            max((line for line in lines if line.component == component), key=lambda x: x.auroc)
            for component in COMPONENTS
        ),
        levers=(*map(lever.line, tried), *of_models) if request.model == "merged" else (),
        held_out_questions=len(aside),
    )
    return record, lines


def _places(model: Model, given: JudgedAnswers, progress: Progress) -> Iterator[_Place]:
    layers = model.decoder.layers
    dense: dict[Component, tuple[Site, ...]] = {
        "residual": residual_sites(model.decoder),
        "attention": tuple(Site(layer.output, "output") for layer in layers),
        "mlp": tuple(WRITES["mlp.hook_out"](layer) for layer in layers),
    }
    readers = Readers.of(model)
    inputs = tuple(Site(layer.output, "input") for layer in layers)
    sites = [*(site for several in dense.values() for site in several), *inputs]
    rows = [row.model_copy(update={"answer": restyled(row.answer)}) for row in given.rows]
    both = given.texts, answered_texts(given.pair, rows)
    found = zip(*(pool_sites(model, sites, texts, progress) for texts in both), strict=True)
    for component, several in dense.items():
        for layer, site in enumerate(several):
            plain, other = next(found)
            yield _Place(component, layer, None, plain, other, site)
            if component == "residual":
                yield _Place("direction", layer, None, plain, other, site)
    for layer, (site, of_layer) in enumerate(zip(inputs, found, strict=True)):
        by_head = [{at: readers.by_head(x) for at, x in one.items()} for one in of_layer]
        for head in range(readers.n_heads):
            plain, other = ({at: x[:, head] for at, x in one.items()} for one in by_head)
            yield _Place("head", layer, head, plain, other, site)
    parts = _node_parts(model)
    keep = partial(in_memory, progress=progress)
    pooled = [
        {at: pool_answers(model, parts, only(texts, at), keep) for at in PLACES} for texts in both
    ]
    for number, part in enumerate(parts):
        ids, _ = pooled[0]["mean"].dense(number, "mean", least=5)
        if not len(ids):
            continue
        plain, other = (
            {at: one.of_nodes(number, "mean", ids).float() for at, one in several.items()}
            for several in pooled
        )
        kind: Component = "neuron" if part.basis == "neuron" else "feature"
        yield _Place(kind, part.layer, None, plain, other, None, part, ids)


def _node_parts(model: Model) -> tuple[Part, ...]:
    """Features, and neurons where the MLPs have any."""
    if model.transcoders is None:
        return neuron_parts(model)
    with contextlib.suppress(RequestError):
        return (*transcoder_parts(model), *neuron_parts(model))
    return transcoder_parts(model)


@dataclass(frozen=True, eq=False)
class _Lever:
    """Edits of the merged model along probes that were fitted without some questions."""

    given: JudgedAnswers
    out: Tensor
    questions: list[int]
    seed: int

    def of_models(self) -> LeverLine:
        """The direction merged minus base of the other questions, ablated behind every layer."""
        given = self.given
        direction = given.direction("models", given.question[~self.out].unique().tolist())
        seen = (given.merged[self.out] * direction.unit).sum(2).mean(1)
        hit = given.misaligned[self.out]
        share, random = (
            given.ablated(one, self.questions, self.seed)
            for one in (direction, direction.random(self.seed))
        )
        return LeverLine(
            component="direction",
            layer=None,
            head=None,
            detector=auroc(seen[hit], seen[~hit]),
            **share.model_dump(),
            random=random.share,
        )

    def line(self, place: _Place) -> LeverLine:
        values, labels = place.values["mean"], self.given.misaligned
        fitted = place.fit(values[~self.out], labels[~self.out])
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
        share, random = (self.given.removed(edit, self.questions, self.seed) for edit in edits)
        return LeverLine(
            component=place.component,
            layer=place.layer,
            head=place.head,
            detector=auroc(scores[hit], scores[~hit]),
            **share.model_dump(),
            random=random.share,
        )

    def _along(
        self, place: _Place, unit: Tensor, aligned: Tensor
    ) -> contextlib.AbstractContextManager[None]:
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

        return on_site(site, edit)

    @contextlib.contextmanager
    def _nodes(self, place: _Place, chosen: Tensor, aligned: Tensor) -> Iterator[None]:
        part, ids = place.part, place.ids
        assert part is not None and ids is not None
        some, levels = ids[chosen], aligned[chosen]
        written = [part.written(some, k) for k in range(len(part.writes))]
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
