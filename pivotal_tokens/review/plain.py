"""How does a person label the queue on any terminal, line by line?

    run_plain(ReviewService(store, "ada"), sys.stdin, sys.stdout)

Reads one command a line (`commands.HELP`), writes plain text of at most 80 columns. What an answer
says is in the store before the next item is shown. End of input and Ctrl-C mean ``q``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.review.commands import (
    HELP,
    LabelRest,
    LabelTokens,
    Note,
    NotUnderstood,
    Reject,
    Reopen,
    Simple,
    Why,
    parse,
)
from pivotal_tokens.review.display import fit, visible, wrap
from pivotal_tokens.review.questions import Question, Reveal
from pivotal_tokens.review.rubric import RUBRIC
from pivotal_tokens.review.screen import mark, progress_line, rejections_line, votes_line
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.schema import NextTokens

COLUMNS = 80
_SIDE = 39
_TEXT = 17


@dataclass(frozen=True)
class PlainSummary:
    """What a session came to."""

    finished: int
    rejected: int


def run_plain(service: ReviewService, lines: TextIO, out: TextIO) -> PlainSummary:
    """Show item after item and carry out what is typed, until nothing waits or the person quits.

    Args:
        service: The reviewer's service.
        lines: Commands, one a line.
        out: Where everything is shown.
    """
    return _Session(service, lines, out).run()


def render(question: Question) -> Iterator[str]:
    """An item as lines of at most 80 columns: the prompt, then both lists side by side."""
    yield f"prompt {question.prompt.prompt_id}  ({question.prompt.kind})"
    for line in wrap(question.prompt.text, COLUMNS - 4):
        yield f"  | {line}"
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


class _Session:
    """The loop's state: the question at hand, and what was done."""

    def __init__(self, service: ReviewService, lines: TextIO, out: TextIO) -> None:
        self._service = service
        self._lines = lines
        self._out = out
        self._question: Question | None = None
        self._told: Reveal | None = None  # of the item just finished
        self._counts: Counter[str] = Counter()

    def run(self) -> PlainSummary:
        try:
            self._loop()
        except KeyboardInterrupt:
            self._say("")
        if self._question is not None:
            self._give_back(self._question)
        self._say(f"{self._counts['finished']} finished, {self._counts['rejected']} rejected.")
        return PlainSummary(self._counts["finished"], self._counts["rejected"])

    def _loop(self) -> None:
        self._next()
        while line := self._ask():
            try:
                if not self._obey(line.rstrip("\r\n")):
                    return
            except LeaseLost as error:
                self._say(str(error))
                self._next()
            except RequestError as error:
                self._say(str(error))

    def _ask(self) -> str:
        self._say("> ", end="")
        return self._lines.readline()

    def _obey(self, line: str) -> bool:
        """Carry out one line; False to stop."""
        command, question = parse(line), self._question
        match command:
            case Simple("quit"):
                return False
            case Simple("help"):
                self._say(f"{RUBRIC}\n\n{HELP}")
            case Simple("undo"):
                self._undo()
            case NotUnderstood(why):
                self._say(why)
            case Why(text):
                self._explain(text)
            case Simple("agree"):
                self._agree()
            case Reopen(prefix):
                again = self._service.reopen(prefix, question)
                self._open_again(again, "opened again; its labels are as you left them")
            case _ if question is None:
                return bool(line.strip())  # Enter ends it when nothing waits
            case LabelTokens(label, places):
                tokens = {question.token_at(place): label for place in places}
                self._show(self._service.label(question, tokens), "saved")
            case LabelRest(label):
                self._revealed(self._service.finish(question, rest=label))
                self._counts["finished"] += 1
                self._next()
            case Reject(reason):
                self._service.reject(question, reason)
                self._counts["rejected"] += 1
                self._leave(question, "rejected")
            case Note(text):
                self._service.note(question, text)
                self._say("saved the note")
            case Simple("skip"):
                self._service.skip(question)
                self._leave(question, "skipped")
            case Simple("defer"):
                self._service.defer(question)
                self._leave(question, "deferred")
        return True

    def _explain(self, text: str) -> None:
        if self._told is None:
            self._say("finish an item first: why is about the labels that the judge gave it")
            return
        self._service.explain(self._told, text)
        self._say(f"saved the reason for {self._told.prompt_id}")

    def _agree(self) -> None:
        if self._told is None:
            self._say("finish an item first: the judge's labels are shown after yours")
            return
        self._service.agree(self._told)
        self._say(f"saved {self._told.prompt_id}: the judge's labels taken over")
        self._told = None

    def _undo(self) -> None:
        question = self._service.undo(self._question)
        if question is None:
            self._say("nothing to undo")
        else:
            self._open_again(question, "taken back, and saved")

    def _open_again(self, question: Question, done: str) -> None:
        """Show an item that may be the one just finished: no reason is asked for that then."""
        if self._told is not None and self._told.prompt_id == question.prompt.prompt_id:
            self._told = None
        self._show(question, done)

    def _next(self) -> None:
        self._question = self._service.next_question()
        if self._question is not None:
            self._show(self._question)
            return
        waiting = self._service.waiting()
        put_off = ", ".join(
            f"{waiting[state]} {state}" for state in ("deferred", "skipped") if waiting.get(state)
        )
        self._say("Nothing waits for review" + (f" ({put_off})." if put_off else "."))
        self._say("undo takes the last answer back, Enter or q ends.")

    def _show(self, question: Question, done: str = "") -> None:
        self._question = question
        if done:
            self._say(done)
        self._say("")
        self._say(fit(f"[{progress_line(self._service.progress())}]", COLUMNS).rstrip())
        for line in render(question):
            self._say(line)
        if left := len(question.missing):
            does = "List the evil ones (B1,T3,4); Enter: rest safe; ? help"
            self._say(f"{left} without a label. {does}")
        else:
            self._say("Every token has an answer. Enter: finish; ? help")

    def _revealed(self, reveal: Reveal) -> None:
        self._told = None
        numbers = Counter(reveal.labels.values())
        labels = ", ".join(f"{numbers[label]} {label}" for label in ("evil", "safe", "unsure"))
        self._say(f"saved {reveal.prompt_id}: {labels}; verdict {reveal.verdict.kind}")
        if not reveal.judge_labels:
            return
        self._say(f"  the judge differs on {len(reveal.differences)} of {len(reveal.labels)}")
        for one in reveal.differences:
            text = fit(visible(one.text), _TEXT)
            self._say(f"    {text} you {one.human}, judge {one.judge}")
        if reveal.differences:
            self._told = reveal
            self._say("  why? type: why TEXT, or: agree, to take the judge's labels over")

    def _leave(self, question: Question, word: str) -> None:
        self._say(f"saved {question.prompt.prompt_id}: {word}")
        self._next()

    def _give_back(self, question: Question) -> None:
        try:
            self._service.release(question)
        except LeaseLost:
            return  # somebody else has it: nothing to give back
        self._say(f"prompt {question.prompt.prompt_id} is back in the queue, its labels are saved")

    def _say(self, text: str, end: str = "\n") -> None:
        encoding = getattr(self._out, "encoding", None) or "utf-8"
        self._out.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
        self._out.flush()
