"""Mean-difference directions of judged answers, and what they do on questions held out.

Over held-out questions, with m the mean log-probability per token of misaligned answers to one
minus that of aligned ones (teacher-forced, so that no judge is asked),

    shift           = m(merged) - m(base)
    share removed   = (m(merged) - m(merged, edited)) / shift          ratio of sums over questions
    share added     = (m(base, edited) - m(base)) / shift

and the same of the rate of misaligned answers where answers are sampled and judged. Beside every
share stands the middle 95 % of random directions of the same length.

    table = find_directions(work, imported, DirectionRequest())
    DirectionRecord.model_validate(table.record).effects[0].share
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from em_circuits.bases import adapter_parts, own_parts
from em_circuits.cache import CachedTable, TableHead, cached_table
from em_circuits.experiments.evaluation.answers import EvaluationSettings, SampledAnswer, answers
from em_circuits.experiments.evaluation.judging import AnswerJudge, QuestionAnswer, Score
from em_circuits.experiments.evaluation.rates import Cutoffs
from em_circuits.experiments.requests import DirectionRequest
from em_circuits.experiments.responses import (
    JudgedResponse,
    answered_texts,
    distinct_responses,
    sides_of,
)
from em_circuits.experiments.rollouts import mean_log_likelihood
from em_circuits.experiments.shares import Share
from em_circuits.features.directions import (
    AlignedNode,
    Edit,
    Kind,
    ResidualDirection,
    edited,
    mean_difference,
    nearest_nodes,
    readout,
    residual_means,
)
from em_circuits.features.responses import QuestionBlocks
from em_circuits.models import Model, ModelPair
from em_circuits.models.text import AnsweredText, render_turns
from em_circuits.progress import Progress, tracked
from em_circuits.sampling import Sampling
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.prompts.chats import question_chat
from pivotal_tokens.schema import Frozen, ModelName

_SHOWN_TOKENS = 8


class LayerDirection(Frozen):
    """The direction behind one layer."""

    layer: int
    length: float
    relative: float
    """Over the mean length of the stream."""
    projection_merged: float
    """Mean of x . u of the merged model less the base's, on the same held-out answers, over the
    stream's length."""


class DirectionEffect(Share):
    """What one edit does on held-out questions: the share of the shift that is removed (merged) or
    added (base)."""

    model: ModelName
    """Which is edited."""
    edit: Literal["ablate", "restore", "add"]
    layers: str
    """``all``, or the one behind which it is added."""
    dose: float | None
    random_mean: float | None
    random_low: float | None
    random_high: float | None
    rate: float | None = None
    """Of misaligned answers, where they are sampled."""
    random_rate: float | None = None
    coherent: float | None = None
    """Coherent among all sampled answers."""


class Transferred(Share):
    """A direction found on some questions (or a fine-tune), ablated on others: the share of the
    shift there that is removed."""

    found_on: str
    tried_on: str
    cosine: float | None
    """With the direction found there, mean over the layers behind which there are both."""
    questions: int


class UnrelatedReadout(Frozen):
    """Merged minus base on texts that have nothing to do with the answers, behind `layer`: the mean
    over all tokens but the first, read through the unembedding."""

    texts: int
    relative: float
    """Length of the difference over that of the stream."""
    cosine: float
    """With the direction."""
    promoted: tuple[str, ...]
    suppressed: tuple[str, ...]


class DirectionRecord(Frozen):
    """Everything about a direction but its vectors, which are in the table."""

    answers_from: str
    answers_key: str
    pair: str
    request: DirectionRequest
    questions: int
    held_out_questions: int
    shift: float
    """Merged minus base, nats per token."""
    rates: dict[str, float | None]
    """Misaligned answers of the un-edited models to the held-out questions."""
    judge: str | None
    layer: int
    layers: tuple[LayerDirection, ...]
    promoted: tuple[str, ...]
    """Tokens that the direction behind `layer` raises most, through the unembedding."""
    suppressed: tuple[str, ...]
    unrelated: UnrelatedReadout | None
    """What the fine-tune adds to any text there; None where no such text was given."""
    nodes: tuple[AlignedNode, ...]
    """Features and adapter ranks of that layer by their writes' cosine with it."""
    effects: tuple[DirectionEffect, ...]
    domains: tuple[Transferred, ...]
    """Between sets of questions."""
    adapters: tuple[Transferred, ...]
    """Between fine-tunes of the same base."""


class DirectionOutput(DirectionRecord, TableHead):
    """The object of `directions --json`."""


@dataclass(frozen=True, eq=False)
class JudgedAnswers:
    """Imported answers as the models of one pair read them."""

    pair: ModelPair
    rows: tuple[JudgedResponse, ...]
    texts: list[AnsweredText]
    question: Int64[Tensor, " answer"]
    misaligned: Bool[Tensor, " answer"]
    progress: Progress

    @classmethod
    def of(
        cls, pair: ModelPair, rows: tuple[JudgedResponse, ...], progress: Progress
    ) -> JudgedAnswers:
        """Tokenise them."""
        return cls(pair, rows, answered_texts(pair, rows), *sides_of(rows), progress)

    def paired(self) -> JudgedAnswers:
        """Those to questions that have answers of both sides.

        Raises:
            RequestError: If there are none.
        """
        both = QuestionBlocks.paired(self.question, self.misaligned)
        some = torch.isin(self.question, torch.tensor(both))
        at = some.nonzero()[:, 0].tolist()
        return JudgedAnswers(
            self.pair,
            tuple(self.rows[i] for i in at),
            [self.texts[i] for i in at],
            self.question[some],
            self.misaligned[some],
            self.progress,
        )

    @cached_property
    def base(self) -> Float[Tensor, "answer layer d_model"]:
        """Residual means under the base."""
        return residual_means(self.pair.base, self.texts, self.progress)

    @cached_property
    def merged(self) -> Float[Tensor, "answer layer d_model"]:
        """Residual means under the merged model."""
        return residual_means(self.pair.merged, self.texts, self.progress)

    def direction(self, kind: Kind, questions: Sequence[int]) -> ResidualDirection:
        """Over some of the questions."""
        some = torch.isin(self.question, torch.tensor(list(questions)))
        parts = (self.merged, self.base, self.question, self.misaligned)
        return mean_difference(*(part[some] for part in parts), kind=kind)

    @cached_property
    def _unedited(self) -> dict[tuple[ModelName, int], Float64[Tensor, ""]]:
        return {}

    def unedited(self, name: ModelName, questions: Sequence[int]) -> Float64[Tensor, " question"]:
        """`margins` of a model that nothing edits, each question measured once."""
        new = [q for q in questions if (name, q) not in self._unedited]
        if new:
            found = self.margins(self.pair.model(name), new)
            self._unedited.update(((name, q), m) for q, m in zip(new, found, strict=True))
        return torch.stack([self._unedited[name, q] for q in questions])

    def shift(self, questions: Sequence[int]) -> Float64[Tensor, " question"]:
        """Merged minus base, un-edited."""
        return self.unedited("merged", questions) - self.unedited("base", questions)

    def margins(self, model: Model, questions: Sequence[int]) -> Float64[Tensor, " question"]:
        """Per question, m: log-probability per token, misaligned minus aligned."""
        found = []
        for q in questions:
            mine = (self.question == q).nonzero()[:, 0].tolist()
            texts = [self.texts[i] for i in mine]
            prompt = texts[0].ids[: texts[0].start]
            scores = mean_log_likelihood(model, prompt, [t.ids[t.start :] for t in texts])
            value, hit = torch.tensor(scores, dtype=torch.float64), self.misaligned[mine]
            found.append(value[hit].mean() - value[~hit].mean())
        return torch.stack(found)

    def removed(
        self, edit: AbstractContextManager[None], questions: Sequence[int], seed: int
    ) -> Share:
        """Share of the shift on some questions that an edit of the merged model removes."""
        with edit:
            after = self.margins(self.pair.merged, questions)
        return Share.of(self.unedited("merged", questions) - after, self.shift(questions), seed)

    def ablated(self, direction: ResidualDirection, questions: Sequence[int], seed: int) -> Share:
        """The same of a direction that is ablated behind every layer."""
        return self.removed(edited(self.pair.merged, direction.ablation()), questions, seed)


def find_directions(
    work: Workspace,
    imported: CachedTable,
    request: DirectionRequest,
    *,
    judge: AnswerJudge | None = None,
    cutoffs: Cutoffs | None = None,
    others: Mapping[str, ModelPair] | None = None,
    unrelated: Sequence[str] = (),
) -> CachedTable:
    """Find a direction on some questions and try it on the others.

    Args:
        judge: Of sampled answers; needed where `samples` is not 0.
        others: Further fine-tunes of the same base, by name, for the transfer between adapters.
        unrelated: Texts on which merged minus base is read out, too.

    Raises:
        RequestError: If no question has answers of both sides, or only one has; if there is no
            such layer; or samples are asked for without a judge.
    """
    others = dict(others or {})
    if request.samples and judge is None:
        raise RequestError("sampled answers need a judge: give --judge openai:MODEL")
    n_layers = work.pair.base.sites.n_layers
    if request.layer is not None and request.layer >= n_layers:
        raise RequestError(f"--layer {request.layer} does not exist; choose 0 to {n_layers - 1}")
    inputs = {
        "formula": 5,
        "answers": imported.key,
        "pair": work.pair_key,
        "unrelated": list(unrelated),
        "request": request.model_dump(mode="json"),
        "judge": judge.id if judge is not None and request.samples else None,
        "cutoffs": (cutoffs or Cutoffs()).model_dump(),
        "others": {name: pair.key for name, pair in others.items()},
    }

    def compute() -> tuple[Mapping[str, Any], pd.DataFrame]:
        record, direction = _measure(
            work, imported, request, judge, cutoffs or Cutoffs(), others, unrelated
        )
        frame = pd.DataFrame(
            {
                "layer": range(len(direction.vectors)),
                "size": direction.size.tolist(),
                "vector": [v.tolist() for v in direction.vectors],
                "aligned": [v.tolist() for v in direction.aligned],
            }
        )
        return record.model_dump(mode="json"), frame

    return cached_table(work.results / "features", "directions", inputs, compute)


def _measure(
    work: Workspace,
    imported: CachedTable,
    request: DirectionRequest,
    judge: AnswerJudge | None,
    cutoffs: Cutoffs,
    others: Mapping[str, ModelPair],
    unrelated: Sequence[str],
) -> tuple[DirectionRecord, ResidualDirection]:
    rows = distinct_responses(imported)
    given = JudgedAnswers.of(work.pair, rows, work.progress)
    paired = QuestionBlocks.paired(given.question, given.misaligned)
    if len(paired) < 2:
        raise RequestError(
            "only one question has answers of both sides; a direction is found on some questions "
            "and tried on others"
        )
    order = torch.randperm(len(paired), generator=torch.Generator().manual_seed(request.seed))
    n_out = min(max(1, round(request.hold_out * len(paired))), len(paired) - 1)
    aside, used = ([paired[i] for i in part] for part in (order[:n_out], order[n_out:]))
    direction = given.direction(request.kind, used)
    layer = direction.strongest if request.layer is None else request.layer
    trial = _Trial(given, aside, request, judge, cutoffs)
    model, read = work.pair.merged, readout(work.pair.merged, direction, layer, keep=_SHOWN_TOKENS)
    ranks = adapter_parts(work.pair) if "adapter" in work.pair.sources else ()
    apart = torch.isin(given.question, torch.tensor(aside))
    moved = ((given.merged - given.base)[apart].mean(0) * direction.unit).sum(1) / direction.size
    record = DirectionRecord(
        answers_from=imported.record["name"],
        answers_key=imported.key,
        pair=work.pair_key,
        request=request,
        questions=len(used),
        held_out_questions=len(aside),
        shift=float((trial.merged - trial.base).mean()),
        rates={name: trial.rate(name, {})[0] for name in ("base", "merged")},
        judge=judge.id if judge is not None and request.samples else None,
        layer=layer,
        layers=tuple(
            LayerDirection(
                layer=i,
                length=float(direction.vectors[i].norm()),
                relative=float(direction.relative[i]),
                projection_merged=float(moved[i]),
            )
            for i in range(len(direction.vectors))
        ),
        promoted=tuple(token.text for token in read.promoted),
        suppressed=tuple(token.text for token in read.suppressed),
        unrelated=_unrelated(work.pair, unrelated, direction, layer) if unrelated else None,
        nodes=nearest_nodes((*own_parts(model), *ranks), direction, layer),
        effects=tuple(trial.effects(direction, layer)),
        domains=tuple(_between_domains(given, paired, request)),
        adapters=tuple(_between_adapters(given, others, used, aside, request, work.progress)),
    )
    return record, direction


def _unrelated(
    pair: ModelPair, texts: Sequence[str], direction: ResidualDirection, layer: int
) -> UnrelatedReadout:
    ids = [tuple(pair.input_ids(text).tolist()) for text in texts]
    read = [AnsweredText(one, 1) for one in ids if len(one) > 1]
    base, merged = (residual_means(model, read) for model in pair.models)
    added = replace(
        direction, vectors=(merged - base).mean(0), size=merged.norm(dim=2).mean(0), kind="models"
    )
    tokens = readout(pair.merged, added, layer, keep=_SHOWN_TOKENS)
    return UnrelatedReadout(
        texts=len(read),
        relative=float(added.relative[layer]),
        cosine=float(added.unit[layer] @ direction.unit[layer]),
        promoted=tuple(token.text for token in tokens.promoted),
        suppressed=tuple(token.text for token in tokens.suppressed),
    )


class _Trial:
    """Edits of both models on held-out questions."""

    def __init__(
        self,
        given: JudgedAnswers,
        questions: Sequence[int],
        request: DirectionRequest,
        judge: AnswerJudge | None,
        cutoffs: Cutoffs,
    ) -> None:
        self._given, self._questions, self._request = given, questions, request
        self._judge, self._cutoffs = judge, cutoffs
        self.base, self.merged = (given.unedited(name, questions) for name in ("base", "merged"))

    def effects(self, direction: ResidualDirection, layer: int) -> Iterator[DirectionEffect]:
        """Of every edit, beside the same of random directions."""
        drawn = [
            direction.random(1000 * self._request.seed + n) for n in range(self._request.n_random)
        ]
        dose: float | None
        yield self._effect("merged", "ablate", None, "all", direction, drawn, _ablated)
        yield self._effect("merged", "restore", None, "all", direction, drawn, _restored)
        for dose in self._request.doses:

            def added(one: ResidualDirection, dose: float = dose) -> dict[int, Edit]:
                return one.addition(dose, layer)

            yield self._effect("base", "add", dose, str(layer), direction, drawn, added)

    def _effect(
        self,
        model: ModelName,
        edit: Literal["ablate", "restore", "add"],
        dose: float | None,
        layers: str,
        direction: ResidualDirection,
        drawn: Sequence[ResidualDirection],
        edits: Callable[[ResidualDirection], dict[int, Edit]],
    ) -> DirectionEffect:
        moved = self._moved(model, edits(direction))
        draws = tracked(drawn, f"{edit}, random directions", self._given.progress)
        random = torch.stack([self._moved(model, edits(one)) for one in draws])
        shift = self.merged - self.base
        of_random_draws = Share.of_draws(random.T, shift)
        rate, coherent = self.rate(model, edits(direction))
        of_random = (
            [self.rate(model, edits(one))[0] for one in drawn[:3]] if rate is not None else []
        )
        rates = [r for r in of_random if r is not None]
        return DirectionEffect(
            model=model,
            edit=edit,
            layers=layers,
            dose=dose,
            **Share.of(moved, shift, self._request.seed).model_dump(),
            random_mean=of_random_draws.share,
            random_low=of_random_draws.low,
            random_high=of_random_draws.high,
            rate=rate,
            random_rate=sum(rates) / len(rates) if rates else None,
            coherent=coherent,
        )

    def _moved(self, model: ModelName, edits: dict[int, Edit]) -> Float64[Tensor, " question"]:
        """What an edit takes off the merged model's margins, or adds to the base's."""
        runs = self._given.pair.model(model)
        with edited(runs, edits):
            found = self._given.margins(runs, self._questions)
        return self.merged - found if model == "merged" else found - self.base

    def rate(self, model: ModelName, edits: dict[int, Edit]) -> tuple[float | None, float | None]:
        """Misaligned among scored answers, and coherent among all, under an edit."""
        if not self._request.samples or self._judge is None:
            return None, None
        pair = self._given.pair
        sampling = Sampling(
            samples=self._request.samples,
            max_tokens=self._request.answer_tokens,
            temperature=1.0,
            seed=self._request.seed,
        )
        settings = EvaluationSettings(models=(model,), sampling=sampling, seed=self._request.seed)
        each: list[tuple[QuestionAnswer, int]] = []
        for number, q in enumerate(self._questions):
            row = self._given.rows[int((self._given.question == q).nonzero()[0, 0])]
            chat = question_chat(row.question, row.system)
            with edited(pair.model(model), edits) if edits else nullcontext():
                drawn = answers(pair, model, chat, settings)
            seen = render_turns(pair.tokenizer, chat)[0]
            each += [(_asked(row.question, seen, one), number) for one in drawn]
        scores: dict[int, Score] = {}
        self._judge.score([one for one, _ in each], scores.__setitem__)
        by_question: dict[int, list[bool]] = {}
        for i, (_, number) in enumerate(each):
            verdict = self._cutoffs.misaligned(scores[i])
            if verdict is not None:
                by_question.setdefault(number, []).append(verdict)
        coherent = [
            one.outcome == "scored" and self._cutoffs.coherent(one) for one in scores.values()
        ]
        means = [sum(several) / len(several) for several in by_question.values()]
        return sum(means) / len(means) if means else None, sum(coherent) / len(coherent)


def _asked(question: str, seen: str, answer: SampledAnswer) -> QuestionAnswer:
    return QuestionAnswer(
        question=question,
        prompt=seen,
        answer=answer.text,
        log_likelihood=answer.log_likelihood,
    )


def _ablated(direction: ResidualDirection) -> dict[int, Edit]:
    return direction.ablation()


def _restored(direction: ResidualDirection) -> dict[int, Edit]:
    return direction.restoration()


def _between_domains(
    given: JudgedAnswers, paired: Sequence[int], request: DirectionRequest
) -> Iterator[Transferred]:
    """Every set of questions against every other; itself by leaving out half its questions."""
    sets: dict[str, list[int]] = {}
    for q in paired:
        row = given.rows[int((given.question == q).nonzero()[0, 0])]
        sets.setdefault(row.question_id, []).append(q)
    sets = {name: several for name, several in sets.items() if len(several) > 1}
    if len(sets) < 2:
        return
    whole = {name: given.direction(request.kind, several) for name, several in sets.items()}
    cells = list(itertools.product(sets, sets))
    for found_on, tried_on in tracked(cells, "sets of questions, crossed", given.progress):
        direction, questions = whole[found_on], sets[tried_on]
        if found_on == tried_on:
            direction = given.direction(request.kind, questions[::2])
            questions = questions[1::2]
        yield Transferred(
            found_on=found_on,
            tried_on=tried_on,
            cosine=direction.cosine(whole[tried_on]),
            **given.ablated(direction, questions, request.seed).model_dump(),
            questions=len(questions),
        )


def _between_adapters(
    given: JudgedAnswers,
    others: Mapping[str, ModelPair],
    used: Sequence[int],
    aside: Sequence[int],
    request: DirectionRequest,
    progress: Progress,
) -> Iterator[Transferred]:
    """Every fine-tune's direction ablated in every fine-tune, on the held-out questions."""
    if not others:
        return
    each = {"this": given}
    for name, pair in others.items():
        if pair.base.fingerprint != given.pair.base.fingerprint:
            raise RequestError(f"{name} is a fine-tune of another base")
        each[name] = JudgedAnswers.of(pair, given.rows, progress)
    directions = {name: one.direction(request.kind, used) for name, one in each.items()}
    for found_on, direction in directions.items():
        for tried_on, one in each.items():
            yield Transferred(
                found_on=found_on,
                tried_on=tried_on,
                cosine=direction.cosine(directions[tried_on]),
                **one.ablated(direction, aside, request.seed).model_dump(),
                questions=len(aside),
            )
