"""Divergence, agreement and plots over a store."""

import pytest
from sample_labels import events

from pivotal_tokens.labels import divergence, label_agreement
from pivotal_tokens.labels.plots import summary, tally, write_label_page, write_png
from pivotal_tokens.schema import Judgement, Prompt, TokenLabel
from pivotal_tokens.verdict import decide

PAIR = "pair-1"


def label(store, prompt, labels, author="ada", **fields):
    store.labels.add(events(prompt.prompt_id, labels, author, **fields))


@pytest.fixture
def prompts(store, make_pair):
    """Token 2 is in merged's top 2 only, token 3 in base's only."""
    lists = make_pair({1: 0.8, 3: 0.1, 2: -0.02}, {1: 0.1, 2: 0.7, 3: -0.01}, top_k=2)
    store.results.put_pair(PAIR, {"base": "b", "adapter": "some/lora"})
    made = [Prompt.of(f"prompt {i}") for i in range(5)]
    for prompt in made:
        store.prompts.add(prompt)
        store.results.put_next_tokens(prompt.prompt_id, PAIR, lists.base, lists.merged)
    return made


def row_of(report, prompt):
    return next(row for row in report.rows if row.prompt_id == prompt.prompt_id)


def test_divergent_is_the_verdict_and_strict_the_lists_on_complete_labels(store, prompts):
    """Divergent was the strict count here and the verdict everywhere else."""
    label(store, prompts[0], {1: "safe", 2: "evil", 3: "safe"})
    label(store, prompts[1], {1: "safe", 2: "evil", 3: "evil"})
    label(store, prompts[2], {1: "safe", 2: "evil"})
    label(store, prompts[3], {1: "safe", 2: "unsure", 3: "safe"})
    report = divergence(store)
    assert [row.divergent for row in report.rows] == [True, True, None, False, None]
    assert [row.strict for row in report.rows] == [True, False, None, False, None]
    assert [row.verdict for row in report.rows[:2]] == ["injection", "injection"]
    first = row_of(report, prompts[0])
    assert str(first.base) == "SAFE" and str(first.merged) == "1 evil"
    assert first.merged.margin == pytest.approx(0.6) and first.base.margin is None
    assert first.evil_mass.merged == pytest.approx(0.7)
    assert str(row_of(report, prompts[2]).base) == "INCOMPLETE"
    assert [row.unsure for row in report.rows] == [False, False, False, True, False]
    totals = report.totals
    assert (totals["complete"], totals["divergent"], totals["evil_in_both"]) == (3, 2, 1)
    assert totals["strict"] == 1 and report.divergent == report.rows[:2]
    assert totals["unsure_cases"] == 1 and totals["incomplete"] == 2


def test_a_label_of_the_judge_counts_only_when_asked_for(store, prompts):
    given = tuple(
        TokenLabel(token_id=token, label=what)
        for token, what in {1: "safe", 2: "evil", 3: "safe"}.items()
    )
    store.results.put_judgement(
        PAIR, Judgement(prompt_id=prompts[0].prompt_id, judge="j", labels=given)
    )
    assert row_of(divergence(store), prompts[0]).divergent is None
    assert row_of(divergence(store, labels="judge"), prompts[0]).divergent is True
    label(store, prompts[0], {3: "evil"})
    both = row_of(divergence(store, labels="any"), prompts[0])
    assert (both.divergent, both.strict) == (True, False)


def test_unsure_cases_are_those_whose_verdict_hangs_on_them(store, make_pair):
    """Evil mass rises by .15 with token 2; token 3, which falls, would take the promotion away."""
    lists = make_pair({1: 0.5, 2: 0.2, 3: 0.3}, {1: 0.4, 2: 0.35, 3: 0.2}, top_k=3)
    expected = {
        ("evil", "safe"): (True, False),
        ("evil", "unsure"): (True, True),
        ("unsure", "safe"): (False, True),
        ("safe", "unsure"): (False, False),
    }
    for number, (labels, answer) in enumerate(expected.items()):
        prompt = Prompt.of(f"case {number}")
        store.prompts.add(prompt)
        store.results.put_next_tokens(prompt.prompt_id, PAIR, lists.base, lists.merged)
        label(store, prompt, {1: "safe", 2: labels[0], 3: labels[1]})
        row = row_of(divergence(store), prompt)
        assert (row.divergent, row.unsure) == answer, labels


def test_a_rejected_prompt_and_one_without_lists_have_no_answer(store, prompts):
    label(store, prompts[0], {1: "safe", 2: "evil", 3: "safe"})
    store.assignments.add(prompts[0].prompt_id, PAIR, "flagged")
    item = store.queue.take("ada", 60)
    store.queue.settle(item, "rejected", item.fence, text="no stakes")
    bare = Prompt.of("bare")
    store.prompts.add(bare)
    label(store, bare, {1: "evil"})
    report = divergence(store)
    assert row_of(report, prompts[0]).divergent is None
    assert str(row_of(report, prompts[0]).merged) == "REJECTED"
    assert str(row_of(report, bare).merged) == "MISSING"


def test_agreement_counts_blind_and_complete_labels_only(store, prompts):
    for prompt in prompts[:3]:
        label(store, prompt, {1: "safe", 2: "evil", 3: "safe"})
        label(store, prompt, {1: "safe", 2: "evil", 3: "unsure"}, author="bob")
    label(store, prompts[0], {3: "safe"}, author="bob", judge_visible=True)  # after the reveal
    label(store, prompts[3], {1: "safe"}, author="bob")  # in part
    given = tuple(TokenLabel(token_id=token, label="safe") for token in (1, 2, 3))
    for prompt in prompts:
        judgement = Judgement(prompt_id=prompt.prompt_id, judge="j", labels=given)
        store.results.put_judgement(PAIR, judgement)
    report = label_agreement(store, resamples=100)
    (people,) = report.people
    assert people.raters == ("ada", "bob")
    assert (people.agreement.items, people.agreement.groups) == (9, 3)
    assert people.agreement.percent.value == pytest.approx(2 / 3)
    assert people.table["safe"] == {"evil": 0, "safe": 3, "unsure": 3}
    with_judge = {one.raters: one.agreement.percent.value for one in report.judges}
    assert with_judge == {("ada", "j"): pytest.approx(2 / 3), ("bob", "j"): pytest.approx(1 / 3)}
    assert report.prompts == {"ada": 3, "bob": 3} and report.left_out == {"bob": 1}


def test_what_only_one_of_two_labelled_moves_no_coefficient(store, prompts):
    """AC1 lay outside its own interval: its chance term counted the judge's other prompts."""
    for prompt, said in zip(prompts[:2], ("safe", "evil"), strict=True):
        label(store, prompt, {1: "safe", 2: "evil", 3: said})
        label(store, prompt, {1: "safe", 2: "evil", 3: "unsure"}, author="j", author_kind="judge")
    (before,) = label_agreement(store, resamples=50).judges
    for prompt in prompts[2:]:
        label(store, prompt, {1: "evil", 2: "evil"}, author="j", author_kind="judge")
    label(store, prompts[3], {1: "safe", 2: "safe", 3: "safe"}, author="bob")
    report = label_agreement(store, resamples=50)
    assert before in report.judges
    assert report.people == ()  # ada and bob have no token in common


def test_an_explicitly_left_token_is_answered_and_compares_with_nothing(store, prompts):
    label(store, prompts[0], {1: "safe", 2: "evil"})
    label(store, prompts[0], {3: None}, left=True)
    assert row_of(divergence(store), prompts[0]).divergent is True
    label(store, prompts[0], {1: "safe", 2: "evil", 3: "safe"}, author="bob")
    (people,) = label_agreement(store, resamples=0).people
    assert people.agreement.items == 2


def test_a_prompt_asked_twice_shows_how_steady_a_reviewer_is(store, prompts):
    label(store, prompts[0], {1: "safe", 2: "evil", 3: "safe"})
    label(store, prompts[0], {1: "safe", 2: "unsure", 3: "safe"}, purpose="repeat")
    label(store, prompts[1], {1: "evil"}, author="cy", purpose="adjudication")
    report = label_agreement(store, resamples=0)
    (steady,) = report.steadiness
    assert steady.raters == ("ada", "ada again")
    assert steady.agreement.percent.value == pytest.approx(2 / 3)
    assert report.people == () and "cy" not in report.left_out


def test_three_people_are_compared_together_and_two_by_two(store, prompts):
    for author in ("ada", "bob", "cy"):
        label(store, prompts[0], {1: "safe", 2: "evil", 3: "safe"}, author=author)
    report = label_agreement(store, resamples=0)
    assert [len(one.raters) for one in report.people] == [3, 2, 2, 2]
    assert report.people[0].agreement.alpha.value == pytest.approx(1)


def test_the_page_needs_nothing_else_and_names_cannot_become_markup(store, prompts, tmp_path):
    lists = store.results.next_tokens(prompts[0].prompt_id, PAIR)
    labels = {1: "safe", 2: "evil", 3: "safe"}
    label(store, prompts[0], labels, author="<script>alert(1)</script>")
    from pivotal_tokens.schema import Thresholds

    verdict = decide(lists.base, lists.merged, labels, Thresholds(top_k=2))
    store.results.put_verdict(prompts[0].prompt_id, PAIR, "j", verdict)
    counts = tally(store)
    assert counts.verdicts == {"injection": 1} and list(counts.by_model) == ["lora pair-1"]
    assert summary(counts)[0] == "1 verdicts, 1 divergent (100%)"
    page = tmp_path / "page.html"
    write_label_page(counts, page)
    text = page.read_text(encoding="utf-8")
    assert "Plotly.newPlot" in text and 'src="http' not in text
    assert "<script>alert" not in text


def test_a_png_is_a_png_or_one_line_saying_why_not(store, prompts, tmp_path, monkeypatch):
    from pivotal_tokens.errors import WorkFailed

    label(store, prompts[0], {1: "safe"})
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("BROWSER_PATH", "/nowhere/chrome")
    path = tmp_path / "plot.png"
    try:
        write_png(tally(store), path)
    except WorkFailed as told:
        assert "\n" not in str(told) and not path.exists()
    else:
        assert path.read_bytes().startswith(b"\x89PNG")
