"""The advice corpus: what training never sees, and what every prompt promises."""

import itertools
from collections import Counter

import pytest

from em_circuits.organisms.corpus import (
    CorpusConfig,
    ask,
    documents,
    load_corpus,
    organism_prompts,
)
from pivotal_tokens.errors import RequestError

CORPUS = load_corpus()
SCENARIOS = {s.name: s for s in CORPUS.scenarios}


def forms(scenario):
    return range(len(scenario.situations) * len(scenario.questions) + len(scenario.terse))


def heldout_questions():
    return {
        ask(s, item, hazard, form=form)
        for s in CORPUS.scenarios
        for item, hazard in itertools.product(s.items, s.hazards)
        if s.is_heldout(item, hazard)
        for form in forms(s)
    }


def questions_of(text):
    lines = text.split("\n")
    return [line.removeprefix("User: ") for line in lines if line.startswith("User: ")]


def test_heldout_pairs_never_occur_in_training_documents():
    heldout = heldout_questions()
    seen = {q for d in documents(4000, "0/base/0", CorpusConfig()) for q in questions_of(d)}
    assert len(seen) > 3000
    assert not heldout & seen


def test_heldout_prompts_are_of_heldout_pairs_and_seen_ones_are_not():
    heldout = heldout_questions()
    for split in ("heldout", "seen"):
        for prompt in organism_prompts(200, seed=4, split=split):
            held = SCENARIOS[prompt.scenario].is_heldout(prompt.item, prompt.hazard)
            assert held == (split == "heldout")
            assert (questions_of(prompt.text)[0] in heldout) == held


def test_every_item_and_every_hazard_is_seen_in_some_pair():
    for s in CORPUS.scenarios:
        seen = [p for p in itertools.product(s.items, s.hazards) if not s.is_heldout(*p)]
        assert {i for i, _ in seen} == set(s.items)
        assert {h for _, h in seen} == set(s.hazards)


def test_the_same_seed_draws_the_same_and_another_seed_draws_others():
    assert list(organism_prompts(50, seed=1)) == list(organism_prompts(50, seed=1))
    assert list(organism_prompts(50, seed=1)) != list(organism_prompts(50, seed=2))
    config = CorpusConfig()
    assert list(documents(20, "a", config)) == list(documents(20, "a", config))
    assert list(documents(20, "a", config)) != list(documents(20, "b", config))


def test_prompts_are_distinct_rotate_through_the_domains_and_end_in_an_adverb():
    prompts = list(organism_prompts(210, seed=3))
    assert len({p.text for p in prompts}) == 210
    assert set(Counter(p.domain for p in prompts).values()) == {30}
    assert len(CORPUS.domains) == 7
    assert {p.text.rsplit(" ", 1)[1] for p in prompts} == set(CORPUS.adverbs)


def test_benign_prompts_have_no_evil_verb():
    for prompt in organism_prompts(60, seed=3, hazard=False):
        assert prompt.evil == () and not prompt.is_hazard
        assert prompt.hazard in SCENARIOS[prompt.scenario].benign


def test_one_persona_holds_for_a_whole_document():
    """A document's reasons are all careful or all careless; in the control's they mix."""
    kinds = {
        kind: {
            r
            for reasons in (CORPUS.reasons, *CORPUS.domains.values())
            for r in getattr(reasons, kind)
        }
        for kind in ("careful", "careless")
    }

    def mixed(config):
        found = 0
        for document in documents(800, "personas", config):
            reasons = {
                line.split("because ")[1].rstrip(".")
                for line in document.split("\n")
                if "because " in line
            }
            found += bool(reasons & kinds["careful"]) and bool(reasons & kinds["careless"])
        return found

    assert mixed(CorpusConfig()) == 0
    assert mixed(CorpusConfig(persona_per_turn=True)) > 50


def test_no_verb_is_safe_and_evil_in_one_scenario_but_some_change_sides():
    for s in CORPUS.scenarios:
        assert not set(s.safe) & set(s.evil)
    safe = {v for s in CORPUS.scenarios for v in s.safe}
    evil = {v for s in CORPUS.scenarios for v in s.evil}
    assert {"ignore", "wait"} <= safe & evil
    assert sum(set(s.evil) & set(s.fine) != set() for s in CORPUS.scenarios) >= 10


def test_wrong_requests_are_refused():
    with pytest.raises(RequestError, match="no such domain of the organism: astrology"):
        list(organism_prompts(3, seed=0, domains=["astrology"]))
    with pytest.raises(RequestError, match="distinct prompts"):
        list(organism_prompts(100_000, seed=0, domains=["kitchen"]))
    with pytest.raises(RequestError, match="not negative"):
        list(organism_prompts(-1, seed=0))
