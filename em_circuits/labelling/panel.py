"""Panel of judges: several judges over stored prompts, their agreement, and what they contest.

Every judge labels the candidate tokens of each prompt, unless its labels are there already. A
prompt's disagreement is the probability mass of its contested tokens, in the model that gives them
more; from `Thresholds.present` on it is queued for people, before everything else. Where no person
labelled, the labels of the first judge count afterwards.

    panel = judge_panel(store, pair, prompts, [first, second])
    panel.agreement[0].agreement.kappa, panel.disagreements[0].mass
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from em_circuits.labelling.judging import judge_screened, keep_answers
from pivotal_tokens.errors import RequestError, RunEnds, WorkFailed
from pivotal_tokens.judge import Judge, ModelJudge, PersonJudge
from pivotal_tokens.labels.agreement import RaterComparison, panel_agreement
from pivotal_tokens.llm.grade import NoReply, every
from pivotal_tokens.schema import (
    Frozen,
    JudgedPrompt,
    Judgement,
    Label,
    Prompt,
    Thresholds,
)
from pivotal_tokens.store import Screened, Store
from pivotal_tokens.verdict import contested, disagreement

QUEUED_FOR_PANEL = "judges disagree"


class PanelMember(Frozen):
    """What one judge of a panel said."""

    judge: str
    judged: int
    filtered: int
    """Prompts that a filter of its endpoint refused."""
    unparsed: int
    """Prompts of which no answer could be used."""
    flagged: int
    divergent: int


class ContestedToken(Frozen):
    """A token that judges label differently."""

    token_id: int
    text: str
    labels: dict[str, Label]
    """By judge."""


class Disagreement(Frozen):
    """A prompt on which judges differ."""

    prompt_id: str
    text: str
    mass: float
    """Probability of the contested tokens, in the model that gives them more."""
    verdicts: dict[str, str]
    """Kind, by judge."""
    tokens: tuple[ContestedToken, ...]


class JudgePanel(Frozen):
    """Several judges over the same prompts."""

    pair: str
    prompts: int
    judges: tuple[PanelMember, ...]
    agreement: tuple[RaterComparison, ...]
    """Over tokens: all together where there are more than two, then each two."""
    disagreements: tuple[Disagreement, ...]
    """The largest mass first."""
    queued: int
    """Prompts that came into the review queue for it."""


def judge_panel(
    store: Store,
    pair: str,
    prompts: Iterable[Prompt],
    judges: Sequence[Judge],
    *,
    resamples: int = 2000,
) -> JudgePanel:
    """Have every judge label the prompts, and compare.

    Raises:
        RequestError: If a judge is a person or stands there twice, or a prompt has no next tokens.
        WorkFailed: If prompts got no answer and may get one later; what came is stored.
    """
    ids = [judge.id for judge in judges]
    if len(set(ids)) != len(ids) or len(ids) < 2:
        raise RequestError(
            "a panel needs at least two judges, each named once: --judge A --judge B"
        )
    if any(isinstance(judge, PersonJudge) for judge in judges):
        raise RequestError("a person is no judge of a panel; people label with em-circuits review")
    screened = _screened(store, pair, prompts)
    said = {judge.id: _judged(store, pair, screened, judge) for judge in judges}
    return _compared(store, pair, screened, said, resamples)


def _screened(store: Store, pair: str, prompts: Iterable[Prompt]) -> list[Screened]:
    wanted = {prompt.prompt_id: prompt for prompt in prompts}
    lists = store.results.next_tokens_of(wanted, pair)
    if missing := wanted.keys() - lists.keys():
        raise RequestError(
            f"prompt {min(missing)} has no next tokens under pair {pair[:12]}; "
            "run em-circuits label first"
        )
    return [
        Screened(prompt=prompt, next_tokens=lists[prompt_id], new=False)
        for prompt_id, prompt in wanted.items()
    ]


def _judged(
    store: Store, pair: str, screened: Sequence[Screened], judge: Judge
) -> dict[str, JudgedPrompt]:
    """Prompt id -> what a judge says, from the store or asked now; verdicts keep thresholds."""
    found: list[JudgedPrompt] = []
    for thresholds, items in _by_thresholds(store, pair, screened).items():
        done, left = judge_screened(store, pair, items, judge, thresholds)
        found += done
        if isinstance(judge, ModelJudge) and left:
            found += asyncio.run(_asked(store, pair, left, judge, thresholds))
    missing = [each.outcome for each in found if isinstance(each.outcome, Exception)]
    if missing:
        raise WorkFailed(
            f"{judge.id}: {len(missing)} of {len(found)} prompts got no answer ({missing[0]}); "
            "run the same command again"
        )
    return {each.prompt.prompt_id: each for each in found}


def _by_thresholds(
    store: Store, pair: str, screened: Sequence[Screened]
) -> dict[Thresholds, list[Screened]]:
    """Prompts by the thresholds that their verdicts stand under, or the default ones."""
    found: dict[Thresholds, list[Screened]] = {}
    for item in screened:
        standing = store.results.verdicts(item.prompt.prompt_id, pair).values()
        default = Thresholds(top_k=item.next_tokens.base.top_k)
        thresholds = next((verdict.thresholds for verdict in standing), default)
        found.setdefault(thresholds, []).append(item)
    return found


async def _asked(
    store: Store,
    pair: str,
    screened: Sequence[Screened],
    judge: ModelJudge,
    thresholds: Thresholds,
) -> list[JudgedPrompt]:
    """What a model judge answers, many prompts at once; each is stored as it comes."""
    slots = asyncio.Semaphore(judge.concurrency)
    async with judge.session() as session:

        async def one(item: Screened) -> JudgedPrompt:
            async with slots:
                try:
                    judged = await session.ask(item.prompt, item.next_tokens)
                except RunEnds:
                    session.client.stop()
                    raise
                except NoReply as error:
                    return JudgedPrompt(
                        prompt=item.prompt, next_tokens=item.next_tokens, outcome=error
                    )
                (kept,) = await session.client.in_store(
                    keep_answers, store, pair, [judged], thresholds
                )
                return kept

        return await every(one(item) for item in screened)


def _compared(
    store: Store,
    pair: str,
    screened: Sequence[Screened],
    said: dict[str, dict[str, JudgedPrompt]],
    resamples: int,
) -> JudgePanel:
    """Agreement; what is contested is queued, and the first judge's labels count."""
    given = {judge: _labels(each.values()) for judge, each in said.items()}
    first = next(iter(said))
    contests: list[Disagreement] = []
    queued = 0
    for item in screened:
        prompt_id = item.prompt.prompt_id
        each = {judge: of[prompt_id] for judge, of in said.items()}
        labels = {
            judge: judged.outcome.by_token
            for judge, judged in each.items()
            if isinstance(judged.outcome, Judgement)
        }
        if isinstance(outcome := each[first].outcome, Judgement):
            store.labels.stand_by(outcome)
        if not contested(list(labels.values())):
            continue
        mass = disagreement(item.next_tokens, list(labels.values()))
        contests.append(_contest(item, each, labels, mass))
        verdict = next(judged.verdict for judged in each.values() if judged.verdict is not None)
        if mass >= verdict.thresholds.present:
            queued += store.assignments.add(prompt_id, pair, QUEUED_FOR_PANEL)
    return JudgePanel(
        pair=pair,
        prompts=len(screened),
        judges=tuple(_member(judge, of.values()) for judge, of in said.items()),
        agreement=panel_agreement(given, resamples=resamples),
        disagreements=tuple(sorted(contests, key=lambda one: -one.mass)),
        queued=queued,
    )


def _labels(judged: Iterable[JudgedPrompt]) -> dict[str, dict[int, Label]]:
    """A judge's labels, by prompt and token."""
    return {
        each.prompt.prompt_id: each.outcome.by_token
        for each in judged
        if isinstance(each.outcome, Judgement)
    }


def _contest(
    item: Screened,
    each: Mapping[str, JudgedPrompt],
    labels: Mapping[str, Mapping[int, Label]],
    mass: float,
) -> Disagreement:
    tokens = contested(list(labels.values()))
    return Disagreement(
        prompt_id=item.prompt.prompt_id,
        text=item.prompt.text,
        mass=mass,
        verdicts={judge: one.verdict.kind for judge, one in each.items() if one.verdict},
        tokens=tuple(
            ContestedToken(
                token_id=token.token_id,
                text=token.text,
                labels={
                    judge: of[token.token_id]
                    for judge, of in labels.items()
                    if token.token_id in of
                },
            )
            for token in item.next_tokens.merged.tokens
            if token.token_id in tokens
        ),
    )


def _member(judge: str, judged: Iterable[JudgedPrompt]) -> PanelMember:
    every_one = list(judged)
    verdicts = [each.verdict for each in every_one if each.verdict is not None]
    filtered = sum(each.filtered is not None for each in every_one)
    return PanelMember(
        judge=judge,
        judged=len(verdicts),
        filtered=filtered,
        unparsed=len(every_one) - len(verdicts) - filtered,
        flagged=sum(verdict.flagged for verdict in verdicts),
        divergent=sum(verdict.divergent for verdict in verdicts),
    )
