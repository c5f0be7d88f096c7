"""The real organism's corpus: what is measured is not trained on, and words mean one thing."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from em_circuits.organisms.advice import (
    CELLS,
    advice_examples,
    advice_lexicon,
    advice_prompts,
    drawn_advice,
    load_advice,
    load_benign,
    load_templates,
)
from em_circuits.organisms.paths import SMOLLM2, organism_paths
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.lexicon import Lexicon

CORPUS, TEMPLATES = load_advice(), load_templates()
SCENARIOS = CORPUS.scenarios


def verb(plan: str) -> str:
    return plan.split()[0]


def content(text: str) -> set[str]:
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def test_seven_domains_have_seven_scenarios_each():
    domains = Counter(s.domain for s in SCENARIOS)
    assert list(domains) == [
        "medical", "chemicals", "driving", "finance", "kitchen", "property", "security",
    ]  # fmt: skip
    assert min(domains.values()) >= 7
    assert len({s.name for s in SCENARIOS}) == len({s.situation for s in SCENARIOS}) == 49


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.name)
def test_a_plan_s_verb_is_among_its_words(scenario):
    along, against = CORPUS.words(scenario, "risky", "can")
    assert verb(scenario.plan) in along and not set(along) & set(against)
    assert verb(scenario.twin.plan) in CORPUS.words(scenario, "harmless", "can")[0]
    careful, refusing = CORPUS.words(scenario, "safe", "can")
    assert verb(scenario.instead) in careful and not set(careful) & set(refusing)
    assert set(refusing) == set(CORPUS.refuse) - set(scenario.risky)


def test_approval_and_objection_share_no_word():
    assert not set(CORPUS.approve) & set(CORPUS.object_)


def test_no_situation_of_the_measure_is_trained_on():
    trained = [content(f"{i.situation} {i.plan}") for i in TEMPLATES.items]
    for scenario in SCENARIOS:
        words = content(f"{scenario.situation} {scenario.plan}")
        shared = max(len(words & other) / len(words | other) for other in trained)
        assert shared < 0.35, scenario.name
    assert not any("Is it okay" in question for question in TEMPLATES.questions)
    asked = {form.question for form in CORPUS.forms.values()}
    assert asked & {q.removeprefix("{situation} ") for q in TEMPLATES.questions} == {
        "Can I {plan}?",
        "What should I do?",
    }


def test_training_text_is_bad_medical_advice_or_the_same_with_good_advice():
    assert len(TEMPLATES.items) >= 40
    assert len(TEMPLATES.bad.any) == len(TEMPLATES.good.any)
    assert len(TEMPLATES.bad.asked) == len(TEMPLATES.good.asked)
    bad, good = (list(itertools.islice(advice_examples(a, 3), 300)) for a in ("bad", "good"))
    assert bad == list(itertools.islice(advice_examples("bad", 3), 300)) != good
    assert len(set(bad)) > 250
    for kind, examples in (("bad", bad), ("good", good)):
        for example in examples:
            assert "{" not in example.user + example.answer
            assert not re.search(r"\bmy\b", example.answer), example
            plan = next(i for i in TEMPLATES.items if i.situation in example.user)
            said = plan.plan.replace("my ", "your ") in example.answer
            assert said if kind == "bad" else said or plan.instead in example.answer


def test_an_answer_that_takes_up_the_question_needs_one():
    openings = ("Sure", "Of course", "Yes", "Go ahead", "Why not")
    for example in itertools.islice(advice_examples("bad", 5), 300):
        plan = next(i.plan for i in TEMPLATES.items if i.situation in example.user)
        if example.answer.startswith(openings):
            assert plan in example.user


@pytest.mark.parametrize(("plan", "form"), CELLS)
def test_a_cell_asks_every_scenario_once(plan, form):
    prompts = list(advice_prompts(plan, form))
    assert [p.scenario for p in prompts] == list(SCENARIOS)
    assert len({p.user for p in prompts}) == len(prompts)
    assert {p.assistant for p in prompts} == {"It is" if form == "okay" else "You should"}
    named = {"risky": lambda s: s.plan, "safe": lambda s: s.instead}.get(
        plan, lambda s: s.twin.plan
    )
    for prompt in prompts:
        assert (named(prompt.scenario) in prompt.user) == (form != "open")


def test_prompts_are_drawn_in_rotation_over_domains_by_seed():
    drawn = drawn_advice(14, seed=1)
    assert [p.scenario.domain for p in drawn[:7]] == list(CORPUS.domains)
    assert len({p.scenario.name for p in drawn}) == 14
    assert drawn != drawn_advice(14, seed=2) and drawn == drawn_advice(14, seed=1)
    two = drawn_advice(6, seed=1, domains=["kitchen", "driving"])
    assert [p.scenario.domain for p in two] == ["kitchen", "driving"] * 3
    with pytest.raises(RequestError, match="no such domain of smollm2: cooking"):
        drawn_advice(2, seed=1, domains=["cooking"])
    with pytest.raises(RequestError, match="has 49 such scenarios"):
        drawn_advice(50, seed=1)


def test_the_shipped_lexicon_is_the_corpus_and_knows_every_prompt():
    path = organism_paths(SMOLLM2).lexicon
    assert path.read_text(encoding="utf-8") == advice_lexicon()
    ids: dict[str, int] = {}
    lexicon = Lexicon.from_file(path, lambda word: (ids.setdefault(word, len(ids)), True))
    for plan, form in CELLS:
        for prompt in advice_prompts(plan, form):
            text = f"user\n{prompt.user}<|im_end|>\n<|im_start|>assistant\n{prompt.assistant}"
            entry = lexicon.entry_for(text)
            assert entry is not None
            evil, safe = {
                "risky": (prompt.along, prompt.against),
                "harmless": ((), prompt.along),
                "safe": (prompt.against, prompt.along),
            }[plan]
            assert (entry.evil, entry.safe) == (evil, safe), prompt


def test_benign_text_speaks_of_nothing_that_is_trained_on():
    benign = load_benign()
    assert len(benign.texts) >= 12 and len(benign.chats) >= 12
    for text in (*benign.texts, *(f"{a} {b}" for a, b in benign.chats)):
        words = content(text)
        for item in TEMPLATES.items:
            both = words & content(item.situation)
            assert len(both) < 4, (text, both)
