"""Judges measured against people: agreement, precision and recall, flips, cost.

Tokens that both labelled are compared. People see what a judge flagged, and of the rest a random
few, the controls: a prompt that came up with probability s counts 1 / s, so that recall is
estimated over all prompts and not over those that the judge picked itself. A prompt that came to
people in another way has no such weight and is left out of the weighted figures. Labels that a
person gave with a judge's in view are left out altogether.

    precision(c) = both say c / judge says c        recall(c) = both say c / person says c

    report = judge_report(store)
    report.judges[0].tokens.agreement.kappa.value
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from pivotal_tokens.agreement import RaterAgreement, rater_agreement
from pivotal_tokens.judge.answers import flips
from pivotal_tokens.judge.examples import is_for_evaluation
from pivotal_tokens.schema import Frozen, Judgement, Label, NextTokenPair, Thresholds, Vote
from pivotal_tokens.store import LabelledPrompt, Store
from pivotal_tokens.verdict import decide

LABELS: tuple[Label, ...] = get_args(Label)
Confusion = dict[str, dict[str, float]]  # person's label -> judge's label -> tokens or weight


class ClassFigures(Frozen):
    """One label, judge against people; None where nothing was said or given."""

    precision: float | None
    recall: float | None
    recall_weighted: float | None
    precision_weighted: float | None


class TokenFigures(Frozen):
    """Labels of tokens, judge against people."""

    prompts: int
    tokens: int
    agreement: RaterAgreement
    confusion: Confusion
    weighted_confusion: Confusion
    weighted_prompts: int  # with a known chance of having come to people
    classes: dict[str, ClassFigures]


class FlagFigures(Frozen):
    """Prompts flagged, judge against the same rule under people's labels, weighted."""

    prompts: int
    both: float
    judge_only: float
    person_only: float
    neither: float
    precision: float | None
    recall: float | None


class DayFigures(Frozen):
    """One day's judgements (UTC)."""

    day: str
    tokens: int
    percent: float | None
    kappa: float | None


class CostFigures(Frozen):
    """What a judge cost, and what it found for it."""

    calls: int
    tokens: int
    usd: float
    unpriced: int  # calls without a known price
    found: int  # prompts with a divergent verdict
    usd_per_found: float | None


class JudgeFigures(Frozen):
    """Everything about one judge; another judge prompt or model is another judge."""

    judge: str
    model: str
    prompt_version: str | None
    judged: int
    unparsed: int
    filtered: int  # prompts that a filter of its endpoint refused
    seen_left_out: int  # tokens whose person's label was given with a judge's in view
    tokens: TokenFigures
    held_out: TokenFigures  # prompts that are never among the examples
    flags: FlagFigures
    days: tuple[DayFigures, ...]
    votes: int  # kept, over all prompts
    flip_rate: float | None
    conflicts: int  # tokens answered differently in the two lists
    quotes: int  # spans that judgements quote
    quotes_dropped: int  # and those that stood nowhere in prompt or token
    cost: CostFigures


class JudgeReport(Frozen):
    """Every judge of a store."""

    human_labelled: int  # prompts
    controls: int  # of them drawn at random from the unflagged
    judges: tuple[JudgeFigures, ...]


@dataclass(frozen=True)
class _Compared:
    """One prompt that a judge and people labelled."""

    found: LabelledPrompt
    judgement: Judgement
    weight: float | None

    @property
    def pairs(self) -> list[tuple[Label, Label]]:
        """(person's, judge's) label of each token that counts."""
        said = self.judgement.by_token
        return [
            (label, said[token])
            for token, label in self.found.human.items()
            if token in said and token not in self.found.seen
        ]


def judge_report(
    store: Store, *, pair: str | None = None, judge: str | None = None, resamples: int = 2000
) -> JudgeReport:
    """Measure every judge of a store against the people in it.

    Args:
        judge: Of one judge only: its id or a beginning of it.
    """
    figures: list[JudgeFigures] = []
    labelled = controls = 0
    pairs = [pair] if pair is not None else list(store.results.pairs())
    compared: dict[str, list[_Compared]] = {}
    judged: dict[str, list[Judgement]] = {}
    for each in pairs:
        people = {found.prompt.prompt_id: found for found in store.queries.human_labelled(each)}
        draws = store.assignments.control_draws(each)
        labelled += len(people)
        controls += sum(draws.get(prompt_id, (0, False))[1] for prompt_id in people)
        for said in store.results.judgements(each):
            if judge is None or said.judge.startswith(judge):
                judged.setdefault(said.judge, []).append(said)
                if found := people.get(said.prompt_id):
                    weight = _weight(found, said, draws)
                    compared.setdefault(said.judge, []).append(_Compared(found, said, weight))
    for name, judgements in sorted(judged.items()):
        figures.append(_figures(store, name, judgements, compared.get(name, []), pair, resamples))
    return JudgeReport(human_labelled=labelled, controls=controls, judges=tuple(figures))


def _weight(
    found: LabelledPrompt, said: Judgement, draws: dict[str, tuple[float, bool]]
) -> float | None:
    """1 / probability with which a prompt was sampled for people; None if it was not sampled."""
    if _flagged(found.lists, said.by_token):
        return 1.0
    probability, drawn = draws.get(said.prompt_id, (0.0, False))
    return 1 / probability if drawn and probability > 0 else None


def _figures(
    store: Store,
    name: str,
    judgements: Sequence[Judgement],
    compared: Sequence[_Compared],
    pair: str | None,
    resamples: int,
) -> JudgeFigures:
    votes = store.results.votes(pair=pair, judge=name)
    differ, of = _flips(votes)
    held = [one for one in compared if is_for_evaluation(one.found.prompt.prompt_id)]
    _, _, rest = name.partition(":")
    model, _, version = rest.rpartition("@")
    return JudgeFigures(
        judge=name,
        model=model or rest,
        prompt_version=version if name.startswith("openai:") and version else None,
        judged=len(judgements),
        unparsed=sum(one.judge == name for one in store.results.unparsed(pair)),
        filtered=sum(one.judge == name for one in store.results.unparsed(pair, filtered=True)),
        seen_left_out=sum(
            len(one.found.seen & one.judgement.by_token.keys() & one.found.human.keys())
            for one in compared
        ),
        tokens=_tokens(compared, resamples),
        held_out=_tokens(held, resamples),
        flags=_flags(compared),
        days=_days(compared),
        votes=len(votes),
        flip_rate=differ / of if of else None,
        conflicts=sum(vote.conflicts for vote in votes),
        quotes=sum(len(one.quotes) for one in judgements),
        quotes_dropped=sum(one.quotes_dropped for one in judgements),
        cost=_cost(store, name, pair),
    )


def _tokens(compared: Sequence[_Compared], resamples: int) -> TokenFigures:
    rows = [(pair, one) for one in compared for pair in one.pairs]
    plain = _confusion((pair, 1.0) for pair, _ in rows)
    weighted = _confusion((pair, one.weight) for pair, one in rows if one.weight is not None)
    return TokenFigures(
        prompts=sum(bool(one.pairs) for one in compared),
        tokens=len(rows),
        agreement=rater_agreement(
            [pair for pair, _ in rows],
            LABELS,
            groups=[one.found.prompt.prompt_id for _, one in rows],
            resamples=resamples,
        ),
        confusion=plain,
        weighted_confusion=weighted,
        weighted_prompts=sum(bool(one.pairs) and one.weight is not None for one in compared),
        classes={
            label: ClassFigures(
                precision=_precision(plain, label),
                recall=_recall(plain, label),
                recall_weighted=_recall(weighted, label),
                precision_weighted=_precision(weighted, label),
            )
            for label in LABELS
        },
    )


def _confusion(pairs: Iterable[tuple[tuple[Label, Label], float]]) -> Confusion:
    table: Confusion = {person: dict.fromkeys(LABELS, 0.0) for person in LABELS}
    for (person, judge), weight in pairs:
        table[person][judge] += weight
    return table


def _precision(table: Confusion, label: str) -> float | None:
    return _share(table[label][label], sum(row[label] for row in table.values()))


def _recall(table: Confusion, label: str) -> float | None:
    return _share(table[label][label], sum(table[label].values()))


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _flags(compared: Sequence[_Compared]) -> FlagFigures:
    """Over prompts that people labelled whole and that have a weight."""
    sums = {(person, judge): 0.0 for person in (True, False) for judge in (True, False)}
    prompts = 0
    for one in compared:
        lists = one.found.lists
        whole = one.found.human.keys() >= set(lists.token_ids)
        if one.weight is None or not whole or one.found.seen:
            continue
        prompts += 1
        person = _flagged(lists, one.found.human)
        judge = _flagged(lists, one.judgement.by_token)
        sums[person, judge] += one.weight
    return FlagFigures(
        prompts=prompts,
        both=sums[True, True],
        judge_only=sums[False, True],
        person_only=sums[True, False],
        neither=sums[False, False],
        precision=_share(sums[True, True], sums[True, True] + sums[False, True]),
        recall=_share(sums[True, True], sums[True, True] + sums[True, False]),
    )


def _flagged(lists: NextTokenPair, labels: Mapping[int, Label]) -> bool:
    """Whether these labels flag the prompt, under the default rule."""
    return decide(lists.base, lists.merged, labels, Thresholds(top_k=lists.base.top_k)).flagged


def _days(compared: Sequence[_Compared]) -> tuple[DayFigures, ...]:
    by_day: dict[str, list[tuple[Label, Label]]] = {}
    for one in compared:
        by_day.setdefault(f"{one.judgement.created:%Y-%m-%d}", []).extend(one.pairs)
    days = []
    for day, pairs in sorted(by_day.items()):
        if pairs:
            found = rater_agreement(pairs, LABELS, resamples=0)
            days.append(
                DayFigures(
                    day=day,
                    tokens=len(pairs),
                    percent=found.percent.value,
                    kappa=found.kappa.value,
                )
            )
    return tuple(days)


def _flips(votes: Sequence[Vote]) -> tuple[int, int]:
    """Differing pairs of votes on a token, and all, over the prompts' latest votes."""
    latest: dict[str, dict[int, Vote]] = {}
    for vote in votes:
        latest.setdefault(vote.prompt_id, {})[vote.number] = vote
    counted = [
        flips([vote.by_token for vote in of.values() if vote.error is None])
        for of in latest.values()
    ]
    return sum(differ for differ, _ in counted), sum(pairs for _, pairs in counted)


def _cost(store: Store, name: str, pair: str | None) -> CostFigures:
    counts = store.ledger.counts("judge", subject=name)
    found = store.queries.divergent_count(name, pair)
    return CostFigures(
        calls=counts.calls,
        tokens=counts.tokens,
        usd=counts.usd,
        unpriced=counts.unpriced,
        found=found,
        usd_per_found=counts.usd / found if found and not counts.unpriced else None,
    )
