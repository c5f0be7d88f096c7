"""Whatever a model says is shown exactly, in its place, and does nothing."""

import random
import re
import sys
import unicodedata
from collections import defaultdict
from dataclasses import replace

import pytest

from pivotal_tokens.review.commands import Place
from pivotal_tokens.review.display import SPACE, visible, width
from pivotal_tokens.review.questions import View
from pivotal_tokens.review.screen import item_lines, plain, prompt_lines, reveal_lines
from pivotal_tokens.review.service import Difference, Question, Reveal
from pivotal_tokens.schema import (
    NextTokenPair,
    NextTokens,
    Prompt,
    ReviewItem,
    TokenScore,
    utc_now,
)
from pivotal_tokens.verdict import error_verdict

STRINGS = 128_000
_ESCAPE = re.compile(
    r"\\(?:(?P<named>[nrt\\])|x(?P<two>[0-9a-f]{2})|u(?P<four>[0-9a-f]{4})|U(?P<eight>[0-9a-f]{8}))"
)
_NAMED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
NASTY = ["[/", "[/]", "[bold]x[/bold]", "[@click=app.quit]q[/]", "\x1b[2J\x1b]0;t\x07", "\x00"]
NASTY += ["\u202eabc\u202c", "\u2066x\u2069", "\r\n\t", "a\u0301\u0301\u0301\u0301", "x" * 10_000]
NASTY += [
    "",
    " ",
    "\\n",
    "\\x1b",
    "␣",
    "\ufeff",
    "\u200b",
    "\U000e0001",
    "👩‍👩‍👧",
    "ﷺ" * 9,
    "日本語" * 9,
]


def read_back(shown: str) -> str:
    """The text that a visible text shows."""

    def character(found: re.Match[str]) -> str:
        if found["named"]:
            return _NAMED[found["named"]]
        return chr(int(found["two"] or found["four"] or found["eight"], 16))

    parts = re.split(r"(\\(?:[nrt\\]|x..|u....|U.{8}))", shown)
    return "".join(
        _ESCAPE.sub(character, part) if i % 2 else part.replace(SPACE, " ")
        for i, part in enumerate(parts)
    )


def item(texts: dict[int, str], prompt: str = "User: Eat it?\nAssistant: You should") -> Question:
    def scores(model):
        return NextTokens(
            model=model,
            fingerprint=model,
            top_k=len(texts),
            tokens=tuple(
                TokenScore(token_id=t, text=text, logit=-rank, probability=0.9 / rank, rank=rank)
                for rank, (t, text) in enumerate(texts.items(), start=1)
            ),
        )

    made = Prompt.of(prompt)
    place = ReviewItem(
        item_id=1,
        prompt_id=made.prompt_id,
        pair="p",
        reason="flagged",
        state="leased",
        reviewer="ada",
        session=None,
        fence=1,
        lease_until=None,
        revealed=False,
        enqueued_at=utc_now(),
        updated_at=utc_now(),
    )
    lists = NextTokenPair(base=scores("base"), merged=scores("merged"))
    return Question(item=place, prompt=made, lists=lists, labels={})


def check(lines: list[str], columns: int, rows: int) -> None:
    assert len(lines) <= rows
    for line in lines:
        assert line.isprintable() and width(line) <= columns, repr(line)


def generated(number: int):
    """Strings over all Unicode categories, and of bytes that are no UTF-8."""
    choose = random.Random(5)
    by_category = defaultdict(list)
    for code in range(sys.maxunicode + 1):
        by_category[unicodedata.category(chr(code))].append(chr(code))
    categories = sorted(by_category)
    assert len(categories) == 30
    for i in range(number):
        if i % 4 == 3:
            raw = choose.randbytes(choose.randrange(1, 12))
            yield raw.decode("utf-8", choose.choice(["replace", "backslashreplace", "ignore"]))
        else:
            picked = choose.choices(categories, k=choose.randrange(1, 10))
            yield "".join(choose.choice(by_category[name]) for name in picked)


@pytest.mark.slow
def test_128000_strings_are_shown_without_a_loss_a_crash_or_a_raw_escape():
    batch: dict[int, str] = {}
    rendered = 0
    for number, text in enumerate([*NASTY, *generated(STRINGS - len(NASTY))]):
        shown = visible(text)
        assert shown.isprintable() and read_back(shown) == text, repr(text)
        # A pydantic text holds no half of a surrogate pair, and no tokenizer makes one.
        batch[number] = text.encode("utf-8", "replace").decode()
        if len(batch) == 20 or number == STRINGS - 1:
            wanted = item(batch, prompt="".join(batch.values())[-300:] or "x")
            view = View(wanted, Place("base", 1 + number % len(batch)))
            check(plain(item_lines(view, 80, 40)), 80, 40)
            rendered += len(batch)
            batch = {}
    assert rendered == STRINGS


@pytest.mark.parametrize("rows", [8, 12, 20, 40])
@pytest.mark.parametrize("columns", [60, 80, 133])
def test_an_item_fits_every_window_with_the_cursor_in_it(columns, rows):
    texts = dict(enumerate(NASTY))
    for rank in range(1, len(texts) + 1):
        view = View(item(texts, prompt="\n".join(NASTY)), Place("merged", rank))
        lines = plain(item_lines(view, columns, rows))
        check(lines, columns, rows)
        assert sum(f">T{rank} " in line for line in lines) == 1


def test_place_probability_bar_text_and_id_of_both_lists_stand_side_by_side():
    view = View(item({17: " eat", 4: "\n"}), Place("merged", 2))
    lines = plain(item_lines(view, 80, 20))
    row = next(line for line in lines if "B1" in line)
    assert row.count("90.0%") == 2 and row.count("␣eat") == 2 and row.count("    17") == 2
    assert "████▌" in row
    assert any("B2" in line and ">T2" in line and line.count("\\n") == 2 for line in lines)
    assert lines[-1].startswith("> \\n id 4  p 0.4500  base: rank 2 p 0.4500")


def test_a_narrow_window_gives_up_ids_and_bars_before_the_tokens():
    """Of each token there was nothing but the dots of what was cut."""
    view = View(item({17: " disinfect", 4: " eat"}), Place("merged", 2))
    for columns, bar, token in (
        (60, True, "␣disinf"),
        (50, False, "␣disinf"),
        (80, True, "␣disinfect"),
    ):
        row = next(one for one in plain(item_lines(view, columns, 20)) if "B1" in one)
        assert row.count(token) == 2 and ("█" in row) == bar and ("17" in row) == (columns == 80)


def test_a_long_prompt_shows_its_end_and_says_what_is_above():
    view = View(item({1: "a"}, prompt="line\n" * 50 + "the end"), Place("merged", 1))
    lines = plain(item_lines(view, 80, 20))
    assert "lines above" in lines[0] and any("| the end" in line for line in lines)
    assert len(prompt_lines(view, 80)) == 51


def test_tokens_under_p_001_can_be_hidden_and_the_heading_says_so():
    question = item({i: f"w{i}" for i in range(1, 4)})
    low = replace(question.lists.merged.tokens[2], probability=0.0001)
    merged = question.lists.merged.model_copy(
        update={"tokens": (*question.lists.merged.tokens[:2], low)}
    )
    lists = question.lists.model_copy(update={"merged": merged})

    view = View(replace(question, lists=lists), Place("merged", 1), show_low=False)
    shown = "\n".join(plain(item_lines(view, 80, 20)))
    assert "T2" in shown and "T3" not in shown and "(1 under p .001 hidden)" in shown


def test_what_the_judge_said_is_shown_only_in_the_reveal():
    question = item({1: "[/red]", 2: "b"})
    labels = {1: "evil", 2: "safe"}
    told = Reveal(
        prompt_id=question.prompt.prompt_id,
        item=question.item,
        labels=labels,
        verdict=error_verdict(),
        judge_labels={1: "safe", 2: "safe"},
        differences=(Difference(1, "[/red]", "evil", "safe"),),
    )

    answered = replace(question, labels=labels)
    before = plain(item_lines(View(answered, Place("merged", 1)), 80, 20))
    assert not any("E/" in line for line in before)
    after = plain(item_lines(View(answered, Place("merged", 1), reveal=told), 80, 20))
    assert any("E/s" in line for line in after) and any("s/s" in line for line in after)
    assert plain(reveal_lines(told, 80, 5))[1] == "  [/red]   you evil, judge safe"
    many = replace(told, differences=told.differences * 9)
    assert "and 6 more" in plain(reveal_lines(many, 80, 5))[-1]
    why = replace(told, quotes=("gas\x1b", " leave"))
    assert plain(reveal_lines(why, 80, 5))[-1].rstrip() == "  because of “gas\\x1b”, “ leave”"
    assert len(plain(reveal_lines(why, 30, 2))) == 2  # differences go before quotes


def test_continuations_of_the_token_under_the_cursor_are_shown():
    going_on = {1: [("base", " it\n[/]"), ("merged", " now")]}
    view = View(item({1: "a", 2: "b"}), Place("merged", 1), continuations=going_on)
    lines = plain(item_lines(view, 80, 20))
    assert "B goes on: ␣it\\n[/]" in lines[-2] and "T goes on" in lines[-1]
