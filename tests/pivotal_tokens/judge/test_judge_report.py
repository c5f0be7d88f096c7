"""A judge's figures are over all prompts, by people's blind labels, as a hand count says."""

from __future__ import annotations

import pytest
from sample_labels import events

from pivotal_tokens.judge import persist
from pivotal_tokens.judge.report import judge_report
from pivotal_tokens.schema import (
    JudgedPrompt,
    Judgement,
    Label,
    NextTokenPair,
    Prompt,
    Thresholds,
    TokenLabel,
    Vote,
)
from pivotal_tokens.store import Screened, Store

PAIR, JUDGE = "pair-1", "openai:o3@v1-12345678x2"


@pytest.fixture
def lists(make_pair) -> NextTokenPair:
    return make_pair({1: 0.8, 2: 0.1}, {1: 0.2, 2: 0.7})


def judged(
    store: Store, lists: NextTokenPair, number: int, labels: dict[int, Label], **vote: object
) -> Prompt:
    prompt = Prompt.of(f"case {number}")
    store.results.put_pair(PAIR, {"base": "b"})
    store.results.put_screened(PAIR, [Screened(prompt=prompt, next_tokens=lists)])
    listed = tuple(TokenLabel(token_id=t, label=label) for t, label in labels.items())
    own = {"prompt_id": prompt.prompt_id, "judge": JUDGE}
    other = tuple(TokenLabel(token_id=t, label="safe") for t in labels)
    votes = (Vote(**own, number=0, labels=listed), Vote(**own, number=1, labels=other, **vote))
    judgement = Judgement(**own, labels=listed)
    found = JudgedPrompt(prompt=prompt, next_tokens=lists, outcome=judgement, votes=votes)
    persist(store, PAIR, [found], Thresholds())
    return prompt


def said(store: Store, prompt: Prompt, labels: dict[int, Label], *, visible: bool = False) -> None:
    store.labels.add(events(prompt.prompt_id, labels, judge_visible=visible))


def test_recall_counts_a_control_by_its_chance(
    store: Store, lists: NextTokenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    flagged = [judged(store, lists, i, {1: "safe", 2: "evil"}, conflicts=1) for i in range(4)]
    missed = judged(store, lists, 10, {1: "safe", 2: "safe"})
    odd = judged(store, lists, 11, {1: "safe", 2: "safe"})  # came to people in another way
    for prompt in flagged[:3]:
        said(store, prompt, {1: "safe", 2: "evil"})
    said(store, flagged[3], {1: "safe", 2: "safe"})
    for prompt in (missed, odd):
        said(store, prompt, {1: "safe", 2: "evil"})
    draws = {missed.prompt_id: (0.25, True), odd.prompt_id: (0.25, False)}
    monkeypatch.setattr(store.assignments, "control_draws", lambda pair=None: draws)

    report = judge_report(store, resamples=50)
    (one,) = report.judges
    assert (report.human_labelled, report.controls) == (6, 1)
    assert one.tokens.prompts == 6 and one.tokens.weighted_prompts == 5
    evil = one.tokens.classes["evil"]
    assert evil.precision == pytest.approx(3 / 4) and evil.recall == pytest.approx(3 / 5)
    assert evil.recall_weighted == pytest.approx(3 / (3 + 4))
    assert one.flags.recall == pytest.approx(3 / 7) and one.flags.precision == pytest.approx(3 / 4)
    assert one.tokens.confusion["evil"] == {"evil": 3, "safe": 2, "unsure": 0}
    assert one.tokens.agreement.percent.value == pytest.approx(9 / 12)
    assert one.cost.found == 4 and one.cost.calls == 0 and one.conflicts == 4
    # votes: every vote says safe to 1; to 2 the first says evil four times, the second never
    assert one.flip_rate == pytest.approx(4 / 12) and one.votes == 12
    assert (one.model, one.prompt_version) == ("o3", "v1-12345678x2")
    assert one.held_out.prompts <= one.tokens.prompts and len(one.days) == 1


def test_labels_given_with_the_judge_in_view_do_not_count(
    store: Store, lists: NextTokenPair
) -> None:
    prompt = judged(store, lists, 1, {1: "safe", 2: "evil"})
    said(store, prompt, {1: "safe", 2: "evil"}, visible=True)
    (one,) = judge_report(store, resamples=0).judges
    assert one.tokens.tokens == 0 and one.seen_left_out == 2
    assert one.tokens.agreement.kappa.value is None and one.flags.prompts == 0


def test_an_empty_store_has_no_judges(store: Store) -> None:
    report = judge_report(store)
    assert report.judges == () and report.human_labelled == 0
