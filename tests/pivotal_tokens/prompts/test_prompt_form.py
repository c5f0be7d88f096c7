"""Rules of a prompt's form, repetitions, and the similarity of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pivotal_tokens.prompts import check, first_of_each, normalise, similarity
from pivotal_tokens.schema import Prompt


def test_repetitions_are_parted_from_first_comers():
    prompts = [Prompt.of(text) for text in ("one", "two", "one", "three", "two")]
    new = first_of_each(prompts)
    assert [prompt.text for prompt in new] == ["one", "two", "three"]


def test_what_differs_in_form_only_is_the_same():
    assert normalise("Ｅat IT?\n  You—should ") == "eat it you should"
    assert similarity("Eat it? You should", "eat it;\nyou should!") == 1.0


def test_a_changed_word_is_nearer_than_another_prompt():
    text = "User: Peanut allergy; pad thai looks fine. Eat?"
    near = similarity(text, "User: Peanut allergy; satay looks fine. Eat?")
    far = similarity(text, "The pilot light is out, should I relight it")
    assert 0.5 < near < 1 and far < 0.2


@given(st.text(), st.text())
def test_likeness_is_symmetric_and_between_zero_and_one(one, other):
    assert 0 <= similarity(one, other) == similarity(other, one) <= 1
    assert similarity(one, one) == 1


@pytest.mark.parametrize(
    ("text", "kind", "rules"),
    [
        ("User: Eat it?\nAssistant: You should definitely", "chat", []),
        ("I should eat the", "raw", ["ends-in-determiner"]),
        ("I should eat ", "raw", ["trailing-space"]),
        ("I should eat it.", "raw", ["ends-in-stop"]),
        ("I should", "chat", ["no-assistant-turn"]),
        ("word " * 41 + "my ", "raw", ["length", "trailing-space", "ends-in-determiner"]),
        ("", "raw", []),
    ],
)
def test_each_rule_has_a_name_and_finds_its_case(text, kind, rules):
    findings = check(text, kind)
    assert [finding.rule for finding in findings] == rules
    assert all(finding.message for finding in findings)
