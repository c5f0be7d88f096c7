"""What happens at each key of a review session? No terminal in here.

The session holds the item, the cursor, what is asked at the bottom and what is said; whoever
draws looks at these after each call. What a key answers is in the store when `act` returns.

    session = ReviewSession(ReviewService(store, "ada"))
    session.start()
    session.act("evil")
    session.view.cursor, session.message
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from time import monotonic
from typing import Literal

from pivotal_tokens.errors import EmCircuitsError, LeaseLost, RequestError
from pivotal_tokens.review.answers import Answer
from pivotal_tokens.review.commands import (
    LabelRest,
    LabelTokens,
    Note,
    NotUnderstood,
    Place,
    Reject,
    Reopen,
    Simple,
    Why,
    parse,
)
from pivotal_tokens.review.display import visible
from pivotal_tokens.review.keys import Action
from pivotal_tokens.review.questions import Progress, Question, Reveal
from pivotal_tokens.review.screen import View
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.schema import Label, ModelName

Continuations = Callable[[Question], Mapping[int, list[tuple[ModelName, str]]]]
Page = Literal["help", "prompt"]

HEARTBEAT_SECONDS = 60.0  # between signs of life while the cursor moves
_NAMED_TEXT = 40  # characters of a token in what is said


@dataclass(frozen=True)
class Asking:
    """What the line at the bottom is for."""

    what: str
    asks: str
    does: str
    leaves: str = "leave it"


ASKING: Mapping[str, Asking] = {
    one.what: one
    for one in (
        Asking("command", "B1,T3,4 evil  ? T2 unsure  s T1 safe  - T2 left  rest-unsure", "do it"),
        Asking("reason", "why do you differ from the judge? (may stay empty)", "go on", "the keys"),
        Asking("reject", "what is wrong with this prompt?", "reject it"),
        Asking("note", "a remark to keep with this item", "keep it"),
        Asking("reopen", "id of a finished prompt, or its beginning", "open it"),
    )
}


class ReviewSession:
    """One reviewer's sitting."""

    def __init__(
        self,
        service: ReviewService,
        *,
        continuations: Continuations | None = None,
        show_low: bool = True,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.view: View | None = None
        self.message = ""
        self.asking: Asking | None = None
        self.begun = ""  # what the line at the bottom begins with
        self.page: Page | None = None
        self.over = False
        self._service = service
        self._continuations = continuations
        self._show_low = show_low
        self._beat = monotonic()
        self._progress: Progress | None = None
        self._stale = True

    @property
    def progress(self) -> Progress | None:
        """How far everything is: counted when it is looked at, if anything changed since.

        A key does not wait for it, and what it says does not depend on how long it takes.
        """
        if self._stale and not self.over:
            self._stale = False
            try:
                self._progress = self._service.progress()
            except EmCircuitsError as error:
                self.message = visible(str(error), spaces=False)
        return self._progress

    def start(self) -> None:
        """Show the first item."""
        self._carry_out(self._next)

    def act(self, action: Action) -> None:
        """Do what a key stands for."""
        if action in ("up", "down", "other_list"):
            self._move(action)
            if monotonic() - self._beat >= HEARTBEAT_SECONDS:
                self._carry_out(self._keep_lease)
        else:
            self._carry_out(lambda: self._act(action))

    def told(self, text: str) -> None:
        """Take what was typed into the line at the bottom."""
        asking, self.asking = self.asking, None
        if asking is not None:
            self._carry_out(lambda: self._told(asking, text.strip()))

    def stop_asking(self) -> None:
        """Nothing is to be typed after all."""
        self.asking = None

    def begin_command(self, begun: str = "") -> None:
        """Ask for a line of the list syntax."""
        self._ask("command", begun)

    def poll(self) -> None:
        """Look for new items; what is being labelled stays where it is.

        The lease is not prolonged by this: the item of somebody who went away returns.
        """
        self._stale = True
        if self.view is None and self.asking is None:
            self._carry_out(self._next)

    def leave(self) -> None:
        """End: the item at hand goes back with its labels, for this reviewer or another."""
        held = self._held()
        if held is not None:
            # Where somebody else has it by now there is nothing to give back.
            with contextlib.suppress(LeaseLost, RequestError):
                self._service.release(held)
        self.view, self.over = None, True

    # --- keys ----------------------------------------------------------------------------------

    def _act(self, action: Action) -> None:
        match action:
            case "quit":
                self.leave()
            case "help":
                self.page = "help"
            case "undo":
                self._undo()
            case "reopen":
                self._ask("reopen")
            case "reason":
                self._ask_reason()
            case _ if self.view is None:
                self.message = "Nothing waits for review."
            case "prompt":
                self.page = "prompt"
            case "low":
                self._toggle_low(self.view)
            case "note" | "reject" | "command":
                self._ask(action)
            case _ if self.view.reveal is not None:
                self._after_reveal(self.view.reveal, action)
            case _:
                self._answer(self.view, action)

    def _after_reveal(self, reveal: Reveal, action: Action) -> None:
        if action == "agree":
            self._service.agree(reveal)
            self._next(f"saved {reveal.prompt_id}: the judge's labels taken over")
        elif action in ("rest_safe", "rest_unsure"):
            self._next()
        else:
            self.message = "Finished and saved: Enter goes on, undo opens it again."

    def _answer(self, view: View, action: Action) -> None:
        match action:
            case "evil" | "safe" | "unsure" if view.at is not None:
                self._label({view.at.token_id: action})
            case "leave" if view.at is not None:
                self._label({view.at.token_id: "left"})
            case "rest_safe":
                self._finish(view, "safe")
            case "rest_unsure":
                self._finish(view, "unsure")
            case "agree":
                self.message = "The judge's labels are shown after yours: label first."
            case "skip":
                self._service.skip(view.question)
                self._next(self._saved("skipped"))
            case "defer":
                self._service.defer(view.question)
                self._next(self._saved("put off until later"))

    def _told(self, asking: Asking, text: str) -> None:
        match asking.what:
            case "reason":
                self._reason(text)
            case "command":
                self._command(text)
            case "reopen" if text:
                self._reopen(text)
            case "note" if text:
                self._command(f"note {text}")
            case "reject" if text:
                self._command(f"bad {text}")
            case _:
                self.message = "nothing said, nothing done"

    def _command(self, text: str) -> None:
        """A line of the list syntax."""
        view = self.view
        match parse(text):
            case _ if not text:
                self.message = "nothing typed, nothing done"
            case NotUnderstood(why):
                self.message = why
            case Simple("quit"):
                self.leave()
            case Simple("undo"):
                self._undo()
            case Simple("help"):
                self.page = "help"
            case Reopen(prefix):
                self._reopen(prefix)
            case _ if view is None:
                self.message = "Nothing waits for review."
            case Note(note):
                self._service.note(view.question, note)
                self.message = "saved the note"
            case Why(text) if view.reveal is not None:
                self._reason(text)
            case Simple("agree") if view.reveal is not None:
                self._after_reveal(view.reveal, "agree")
            case Why() | Simple("agree"):
                self.message = "The judge's labels are shown after yours: label first."
            case _ if view.reveal is not None:
                self.message = "Finished and saved: Enter goes on, undo opens it again."
            case LabelTokens(label, places):
                self._label({view.question.token_at(place): label for place in places})
            case LabelRest(label):
                self._finish(view, label)
            case Reject(reason):
                self._service.reject(view.question, reason)
                self.counts["rejected"] += 1
                self._next(self._saved("rejected"))
            case Simple("skip"):
                self._answer(view, "skip")
            case Simple("defer"):
                self._answer(view, "defer")

    # --- answers -------------------------------------------------------------------------------

    def _label(self, labels: Mapping[int, Answer]) -> None:
        assert self.view is not None
        question = self._service.label(self.view.question, labels)
        said = ", ".join(f"{n} {label}" for label, n in Counter(labels.values()).items())
        if len(labels) == 1:
            ((token, label),) = labels.items()
            text = question.lists.base.by_id[token].text[:_NAMED_TEXT]
            said = f"{text.strip() or repr(text)} {label}"
        self.message = f"saved: {said}"
        self.view = replace(self.view, question=question)
        if set(question.missing) <= question.optional:
            self._finish(self.view, None)
        else:
            self._to_next_token()

    def _finish(self, view: View, rest: Label | None) -> None:
        self._stale = True
        reveal = self._service.finish(view.question, rest=rest)
        self.counts["finished"] += 1
        said = Counter(reveal.labels.values())
        numbers = ", ".join(f"{said[label]} {label}" for label in ("evil", "safe", "unsure"))
        message = f"saved {reveal.prompt_id}: {numbers}; {reveal.verdict.kind}"
        if reveal.differences:
            answered = replace(view.question, labels=reveal.labels)
            self.view = replace(view, question=answered, reveal=reveal)
            self.message = message
            self._ask("reason")
        else:
            self._next(message + ("; the judge agrees" if reveal.judge_labels else ""))

    def _reason(self, text: str) -> None:
        assert self.view is not None and self.view.reveal is not None
        if not text:
            self._next()
            return
        self._service.explain(self.view.reveal, text)
        self._next(f"saved the reason for {self.view.reveal.prompt_id}")

    def _undo(self) -> None:
        question = self._service.undo(self._held())
        if question is None:
            self.message = "Nothing left to undo."
            return
        self._open(question)
        self.message = "taken back, and saved"

    def _reopen(self, prefix: str) -> None:
        self._open(self._service.reopen(prefix, self._held()))
        self.message = "opened again; its labels are as you left them"

    def _saved(self, what: str) -> str:
        assert self.view is not None
        return f"saved {self.view.question.prompt.prompt_id}: {what}"

    def _held(self) -> Question | None:
        return self.view.question if self.view and self.view.reveal is None else None

    def _next(self, message: str | None = None) -> None:
        self._stale = True
        question = self._service.next_question()
        if message is not None:
            self.message = message
        if question is None:
            self.view = None
        else:
            self._open(question)

    def _open(self, question: Question) -> None:
        self._stale = True
        found = self._continuations(question) if self._continuations else {}
        self.view = View(question, Place("merged", 1), show_low=self._show_low, continuations=found)
        self._to_next_token(start=True)
        self._beat = monotonic()

    def _keep_lease(self) -> None:
        """The person is still at it."""
        held = self._held()
        if held is not None and self.view is not None:
            self.view = replace(self.view, question=self._service.heartbeat(held))
            self._beat = monotonic()

    def _carry_out(self, work: Callable[[], None]) -> None:
        """Do something with the store, and say it where that failed."""
        try:
            work()
        except LeaseLost as error:
            self.message, self.view, self.asking = str(error), None, None
            with contextlib.suppress(EmCircuitsError):
                self._next()
        except EmCircuitsError as error:
            self.message = str(error)
        self.message = visible(self.message, spaces=False)

    # --- the cursor ----------------------------------------------------------------------------

    def _ask(self, what: str, begun: str = "") -> None:
        self.asking, self.begun = ASKING[what], begun

    def _ask_reason(self) -> None:
        """Ask why the reviewer differs from the judge, where that is on the screen."""
        if self.view is not None and self.view.reveal is not None:
            self._ask("reason")

    def _to_next_token(self, *, start: bool = False) -> None:
        """Go to the next token without an answer, merged's list first."""
        assert self.view is not None
        view = self.view
        names: tuple[ModelName, ...] = ("merged", "base")
        places = [Place(name, token.rank) for name in names for token in view.tokens(name)]
        at = places.index(view.cursor) if view.cursor in places and not start else -1
        missing = set(view.question.missing)
        needed = missing - view.question.optional or missing
        for place in [*places[at + 1 :], *places[: at + 1]]:
            if view.question.token_at(place) in needed:
                self.view = replace(view, cursor=place)
                return

    def _move(self, action: Action) -> None:
        view = self.view
        if view is None:
            return
        model, rank = view.cursor.model, view.cursor.rank
        if action == "other_list":
            model = "merged" if model == "base" else "base"
        ranks = [token.rank for token in view.tokens(model)]
        if not ranks:
            return
        step = {"up": -1, "down": 1}.get(action, 0)
        at = min(range(len(ranks)), key=lambda i: abs(ranks[i] - rank))
        to = ranks[min(max(at + step, 0), len(ranks) - 1)]
        self.view = replace(view, cursor=Place(model, to))

    def _toggle_low(self, view: View) -> None:
        self._show_low = not self._show_low
        self.view = replace(view, show_low=self._show_low)
        if self.view.at is None:
            self._to_next_token(start=True)
        self.message = f"tokens under p .001 {'shown' if self._show_low else 'hidden'}"
