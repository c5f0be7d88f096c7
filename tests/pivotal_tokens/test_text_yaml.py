"""YAML whose every scalar is a text."""

import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pivotal_tokens.text_yaml import MAX_DEPTH, text_yaml

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Cn"]))
VALUES = st.recursive(
    WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_it_reads_what_the_loader_reads(value: object) -> None:
    text = yaml.safe_dump(value, allow_unicode=True)
    assert text_yaml(text) == yaml.load(text, Loader=yaml.BaseLoader)


def test_words_stay_words() -> None:
    assert text_yaml("evil: [no, on, 1.10, null, 2026-01-01]") == {
        "evil": ["no", "on", "1.10", "null", "2026-01-01"]
    }
    assert text_yaml("") is None
    assert text_yaml("a: &x [b]\nc: *x") == {"a": ["b"], "c": ["b"]}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "nested more than"),
        ("- " * 100_000, "nested more than"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested more than"),
        ("a: 1\na: 2", "stands there twice"),
        ("? [a]\n: b", "a key is"),
        ("--- a\n--- b", "more than one document"),
        ("a: *b", "alias"),
        ("a: &a [*a]", "alias"),
        (
            "a: &n0 [x]\n" + "".join(f"k{i}: &n{i + 1} [{f'*n{i},' * 9}]\n" for i in range(9)),
            "more",
        ),
    ],
)
def test_what_would_take_the_memory_or_mislead_is_an_error_with_its_line(
    text: str, problem: str
) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=problem) as caught:
        text_yaml(text)
    assert caught.value.problem_mark is not None


def test_two_megabytes_take_seconds() -> None:
    text = "entries:\n" + "  - {when: 'a scenario', evil: [one, two], safe: [three]}\n" * 35_000
    began = time.process_time()
    assert len(text_yaml(text)["entries"]) == 35_000
    assert time.process_time() - began < 20
