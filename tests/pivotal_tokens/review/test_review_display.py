"""Text on a terminal: exact, visible, and of the promised width."""

import contextlib
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.commands import Command, Place, parse
from pivotal_tokens.review.display import fit, visible, width, wrap

BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
anything = st.text(st.characters(exclude_categories=()), max_size=40)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" ignore", "␣ignore"),
        ("a\n\t\\n", "a\\n\\t\\\\n"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("\u0301a\u0301", "\u0301a\u0301"),
        ("a" + "\u0301" * 4, "a\u0301\u0301\\u0301\\u0301"),
        ("\x00\x9b\u3164\ufe0f", "\\x00\\x9b\\u3164\\ufe0f"),
        ("日本é", "日本é"),
        ("", ""),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    if text.startswith("\u0301"):
        shown = "\\u0301a\u0301"  # a mark in front would join what stands before the text
    assert visible(text) == shown


@given(anything)
@example("\x1b]0;x\x07\r\n" + BIDI)
@settings(max_examples=500)
def test_shown_text_has_one_line_and_no_control_character(text):
    shown = visible(text)
    assert shown.isprintable() and " " not in shown
    assert not set(shown) & set(BIDI)
    assert all(unicodedata.category(character)[0] != "C" for character in shown)


@given(anything, anything)
def test_two_texts_never_look_the_same(one, other):
    assert (visible(one) == visible(other)) == (one == other)


@given(anything, st.integers(2, 20))
def test_a_fitted_text_has_exactly_its_width(text, cells):
    assert width(fit(visible(text), cells)) == cells


@given(anything, st.integers(12, 30))
def test_wrapping_keeps_everything_within_its_width(text, cells):
    lines = wrap(text, cells)
    assert all(width(line) <= cells and line.isprintable() for line in lines)
    assert "".join(lines).replace("␣", " ") == visible(text, spaces=False)


def test_newlines_and_spaces_at_the_end_of_a_prompt_are_seen():
    assert wrap("one\ntwo  ", 40) == ["one\\n", "two␣␣"]
    assert wrap("one\n", 40) == ["one\\n"]


def places(*names: str) -> tuple[Place, ...]:
    return tuple(Place("base" if n[0] == "B" else "merged", int(n[1:])) for n in names)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("B1,T3,4", Command("label", label="evil", places=places("B1", "T3", "T4"))),
        ("  b1 t03 , 4 ", Command("label", label="evil", places=places("B1", "T3", "T4"))),
        ("? T2", Command("label", label="unsure", places=places("T2"))),
        ("?b2,3", Command("label", label="unsure", places=places("B2", "T3"))),
        ("s T1", Command("label", label="safe", places=places("T1"))),
        ("- T1,b2", Command("label", label="abstain", places=places("T1", "B2"))),
        ("-3", Command("label", label="abstain", places=places("T3"))),
        ("open 44a7", Command("open", "44a7")),
        ("", Command("finish", label="safe")),
        ("rest-safe", Command("finish", label="safe")),
        ("REST-UNSURE", Command("finish", label="unsure")),
        ("bad  low stakes ", Command("reject", "low stakes")),
        ("note see T3", Command("note", "see T3")),
        ("skip", Command("skip")),
        ("defer", Command("defer")),
        ("undo", Command("undo")),
        ("?", Command("help")),
        ("q", Command("quit")),
    ],
)
def test_a_line_is_one_command(line, command):
    assert parse(line) == command


@pytest.mark.parametrize(
    "line",
    ["bad", "note ", "s", "B0", "X1", "T1;T2", "evil", "B1,,Q", ",", "open", "-", "- x", "s\x1b"],
)
def test_what_is_not_understood_does_nothing_and_says_why(line):
    with pytest.raises(RequestError):
        parse(line)


@given(anything)
def test_no_line_breaks_the_parser(line):
    with contextlib.suppress(RequestError):
        parse(line)
