"""Line-by-line review, on any terminal or pipe.

    run_plain(ReviewService(store, "ada"), sys.stdin, sys.stdout)

Reads one command a line (`commands.HELP`), writes plain text of at most 80 columns. What an answer
says is in the store before the next item is shown. End of input and Ctrl-C mean ``q``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from pivotal_tokens.errors import LeaseLost, WorkFailed
from pivotal_tokens.review.commands import HELP
from pivotal_tokens.review.controller import ReviewController
from pivotal_tokens.review.display import fit, visible, wrap
from pivotal_tokens.review.questions import Question, Reveal
from pivotal_tokens.review.rubric import RUBRIC
from pivotal_tokens.review.screen import (
    mark,
    progress_line,
    put_off_line,
    quotes_line,
    rejections_line,
    votes_line,
)
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.schema import NextTokens

COLUMNS = 80
_SIDE = 39
_TEXT = 17


@dataclass(frozen=True)
class ReviewSummary:
    """What a session came to."""

    finished: int
    rejected: int


def run_plain(service: ReviewService, lines: TextIO, out: TextIO) -> ReviewSummary:
    """Show item after item and carry out what is typed, until nothing waits or the person quits."""
    encoding = getattr(out, "encoding", None) or "utf-8"

    def say(text: str, end: str = "\n") -> None:
        out.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        out.flush()

    review = ReviewController(service)
    review.start()
    _require_store(review)
    try:
        for text in _item(review):
            say(text)
        say("> ", end="")
        # Enter ends it when nothing waits.
        while (line := lines.readline()) and (review.view or line.strip()):
            for text in _carried_out(review, line.rstrip("\r\n")):
                say(text)
            if review.over:
                break
            say("> ", end="")
    except KeyboardInterrupt:
        say("")
    if not review.over:
        review.leave()
        if review.message:
            say(review.message)
    say(f"{review.finished} finished, {review.rejected} rejected.")
    return ReviewSummary(review.finished, review.rejected)


def render(question: Question) -> Iterator[str]:
    """An item as lines of at most 80 columns: the prompt, then both lists side by side."""
    yield f"prompt {question.prompt.prompt_id}  ({question.prompt.kind})"
    for line in wrap(question.prompt.text, COLUMNS - 4):
        yield f"  | {line}"
    yield from (f"  note: {visible(note, spaces=False)}" for note in question.notes)
    yield ""
    yield f"{'base':<{_SIDE}}  merged"
    left, right = (
        list(_column(tokens, letter, question))
        for tokens, letter in ((question.lists.base, "B"), (question.lists.merged, "T"))
    )
    for row in range(max(len(left), len(right))):
        sides = [side[row] if row < len(side) else "" for side in (left, right)]
        yield f"{fit(sides[0], _SIDE)}  {sides[1]}".rstrip()
    if question.adjudication:
        yield from _disagreement(question)


def _carried_out(review: ReviewController, line: str) -> Iterator[str]:
    """Carry out a line, and what there is to show after it.

    Raises:
        WorkFailed: If the store cannot be used any more.
    """
    view, reveal = review.view, review.reveal
    review.message, review.page = "", None
    review.typed(line)
    _require_store(review)
    if review.message:
        yield review.message
    if review.page:
        yield f"{RUBRIC}\n\n{HELP}"
    if review.reveal and review.reveal is not reveal:
        yield from _differences(review.reveal)
    if review.view is not view and not review.over:
        yield from _item(review)


def _require_store(review: ReviewController) -> None:
    if isinstance(review.error, WorkFailed) and not isinstance(review.error, LeaseLost):
        raise review.error


def _item(review: ReviewController) -> Iterator[str]:
    """The item at hand, or that there is none."""
    question, progress = review.question, review.progress
    if question is None:
        put_off = put_off_line(progress) if progress else ""
        yield "Nothing waits for review" + (f" ({put_off})." if put_off else ".")
        yield "undo takes the last answer back, Enter or q ends."
        return
    yield ""
    if progress is not None:
        yield fit(f"[{progress_line(progress)}]", COLUMNS).rstrip()
    yield from render(question)
    if left := len(question.missing):
        does = "List the evil ones (B1,T3,4); Enter: rest safe; ? help"
        yield f"{left} without a label. {does}"
    else:
        yield "Every token has an answer. Enter: finish; ? help"


def _differences(reveal: Reveal) -> Iterator[str]:
    """Where the judge's labels differ, once the person's are saved."""
    if not reveal.judge_labels:
        return
    yield f"  the judge differs on {len(reveal.differences)} of {len(reveal.labels)}"
    for one in reveal.differences:
        yield f"    {fit(visible(one.text), _TEXT)} you {one.human}, judge {one.judge}"
    if reveal.quotes:
        yield fit(quotes_line(reveal), COLUMNS).rstrip()
    if reveal.differences:
        yield "  why? type: why TEXT, or: agree, to take the judge's labels over"


def _disagreement(question: Question) -> Iterator[str]:
    """What an adjudicator has to decide: who said what, and who found the prompt bad."""
    yield ""
    yield "Reviewers disagree:"
    for token in question.disputed:
        text = fit(visible(question.lists.base.by_id[token].text), _TEXT)
        yield fit(f"  {text} {votes_line(question, token)}", COLUMNS).rstrip()
    if question.rejected_by:
        yield fit(rejections_line(question), COLUMNS).rstrip()


def _column(tokens: NextTokens, letter: str, question: Question) -> Iterator[str]:
    for token in tokens.top:
        place = f"{letter}{token.rank}"
        sign = mark(question, token.token_id)
        text = fit(visible(token.text), _TEXT)
        yield f"{place:<3} {token.probability:6.1%} {sign} {text} {token.token_id:>6}"
