"""Verdicts of screened prompts: from stored labels, an immediate judge, or a person.

A judge that asks an endpoint takes long, and is asked by the run (`run.py`); here that is left to
the caller. Labels of a judge that are in the store and cover the lists are not asked for again, nor
is a prompt asked about that a filter of its endpoint refused. A flagged prompt stands in the review
queue in the moment its verdict is written.

    judged, unjudged = judge_screened(store, pair, screened, judge, Thresholds())
    judge_one(store, pair, screened[0], judge, Thresholds()).verdict
"""

from __future__ import annotations

from collections.abc import Sequence

from em_circuits.labelling.result import StageFailed, stage
from pivotal_tokens.judge import Judge, ModelJudge, PersonJudge, persist
from pivotal_tokens.judge.persist import decided, refresh_verdicts
from pivotal_tokens.judge.protocol import QUEUED_FOR
from pivotal_tokens.schema import HUMAN, JudgedPrompt, Thresholds
from pivotal_tokens.store import Screened, Store


def judge_screened(
    store: Store, pair: str, screened: Sequence[Screened], judge: Judge, thresholds: Thresholds
) -> tuple[list[JudgedPrompt], list[Screened]]:
    """Verdicts available at once, and the prompts left for a model judge."""
    if isinstance(judge, PersonJudge):
        return [_for_a_person(store, pair, item) for item in screened], []
    ids = [item.prompt.prompt_id for item in screened]
    known = store.results.judgements_of(ids, pair, judge.id)
    refused = store.results.filtered_of(ids, pair, judge.id)
    judged: list[JudgedPrompt] = []
    unjudged: list[Screened] = []
    answered: list[JudgedPrompt] = []
    for item in screened:
        judgement = known.get(item.prompt.prompt_id)
        if judgement is not None and judgement.by_token.keys() >= set(item.next_tokens.token_ids):
            found = JudgedPrompt(
                prompt=item.prompt,
                next_tokens=item.next_tokens,
                outcome=judgement,
                new=item.new,
            )
            judged.append(_decided_anew(store, pair, found, judge.id, thresholds))
        elif (filtered := refused.get(item.prompt.prompt_id)) is not None:
            judged.append(
                JudgedPrompt(
                    prompt=item.prompt,
                    next_tokens=item.next_tokens,
                    outcome=filtered,
                    new=item.new,
                )
            )
        elif isinstance(judge, ModelJudge):
            unjudged.append(item)
        else:
            answered.append(_answer(judge, item))
    return judged + keep_answers(store, pair, answered, thresholds), unjudged


def judge_one(
    store: Store, pair: str, screened: Screened, judge: Judge, thresholds: Thresholds
) -> JudgedPrompt:
    """The verdict on one prompt, from any kind of judge."""
    judged, unjudged = judge_screened(store, pair, [screened], judge, thresholds)
    answered = [_answer(judge, item) for item in unjudged]
    return (judged + keep_answers(store, pair, answered, thresholds))[0]


def keep_answers(
    store: Store, pair: str, answered: Sequence[JudgedPrompt], thresholds: Thresholds
) -> list[JudgedPrompt]:
    """Write what several prompts came to at once; people's verdicts follow the lists too."""
    if not answered:
        return []
    judged = persist(store, pair, answered, thresholds)
    for prompt_id in store.results.verdicts_of((i.prompt.prompt_id for i in judged), pair, HUMAN):
        refresh_verdicts(store, prompt_id, pair, judge=HUMAN)
    return judged


def raise_for_judge(judged: JudgedPrompt) -> None:
    """Raise `StageFailed` where a judge gave no labels that can be used."""
    if isinstance(judged.error, StageFailed):
        raise judged.error
    if judged.error is not None:
        raise StageFailed("judge", judged.error)


def _answer(judge: Judge, item: Screened) -> JudgedPrompt:
    """What a judge says, in this thread."""
    prompt, lists = item.prompt, item.next_tokens
    try:
        with stage("judge"):
            if isinstance(judge, ModelJudge):
                return judge.judge_prompt(prompt, lists)
            outcome = judge.judge(prompt, lists.base, lists.merged)
    except StageFailed as failure:
        return JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=failure)
    return JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=outcome)


def _decided_anew(
    store: Store, pair: str, judged: JudgedPrompt, judge_id: str, thresholds: Thresholds
) -> JudgedPrompt:
    """Decide by labels that are in the store; written only where the verdict is another."""
    prompt_id = judged.prompt.prompt_id
    judged = decided(judged, thresholds)
    if store.results.verdict(prompt_id, pair, judge_id) != judged.verdict:
        store.results.put_judged(pair, [judged])
    refresh_verdicts(store, prompt_id, pair, judge=HUMAN)
    return judged


def _for_a_person(store: Store, pair: str, item: Screened) -> JudgedPrompt:
    """The verdict of a person's labels; a prompt that has none yet waits in the queue."""
    prompt_id, new = item.prompt.prompt_id, item.new
    refresh_verdicts(store, prompt_id, pair, judge=HUMAN)
    verdict = store.results.verdict(prompt_id, pair, HUMAN)
    if verdict is None:
        new = store.assignments.add(prompt_id, pair, QUEUED_FOR) or new
    return JudgedPrompt(
        prompt=item.prompt, next_tokens=item.next_tokens, outcome=None, verdict=verdict, new=new
    )
