"""Review controller: commands and keys in, what to show out; the same for every front-end.

An event is carried out in the store before its method returns, and never raises: what went wrong is
in `error` and said in `message`. Whoever draws looks at `view`, `reveal`, `message`, `asking`,
`page` and `progress` after each.

    review = ReviewController(ReviewService(store, "ada"))
    review.start()
    review.typed("T1,3")
    review.view.cursor, review.message
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
from pivotal_tokens.review.commands import Command, Place, Verb, parse
from pivotal_tokens.review.display import visible
from pivotal_tokens.review.keys import Action
from pivotal_tokens.review.questions import Progress, Question, Reveal, View
from pivotal_tokens.review.service import ReviewService

HEARTBEAT_SECONDS = 60.0  # between signs of life while the cursor moves
_NAMED_TEXT = 40  # characters of a token in a message
_LABEL_FIRST = "The judge's labels are shown after yours: label first."
_EMPTY = "Nothing waits for review."


@dataclass(frozen=True)
class Asking:
    """A request for a line of text, and its handler."""

    what: Verb | Literal["command"]
    asks: str
    does: str
    leaves: str = "leave it"


_LIST = "B1,T3,4 evil  ? T2 unsure  s T1 safe  - T2 left  rest-unsure"
_WHY = "why do you differ from the judge? (may stay empty)"
ASKING: Mapping[str, Asking] = {
    "command": Asking("command", _LIST, "do it"),
    "reason": Asking("why", _WHY, "go on", "the keys"),
    "reject": Asking("reject", "what is wrong with this prompt?", "reject it"),
    "note": Asking("note", "a remark to keep with this item", "keep it"),
    "reopen": Asking("open", "id of a finished prompt, or its beginning", "open it"),
}


class ReviewController:
    """One reviewer's session."""

    def __init__(
        self, service: ReviewService, *, show_low: bool = True, auto_finish: bool = False
    ) -> None:
        """Begin; nothing is claimed before `start`.

        Args:
            auto_finish: The last label finishes an item, and one that the judge labels otherwise
                stays, to be looked at and explained. Otherwise the next comes when one is finished.
        """
        self.view: View | None = None
        self.reveal: Reveal | None = None  # of the item finished last
        self.message = ""
        self.error: EmCircuitsError | None = None
        self.asking: Asking | None = None
        self.begun = ""  # what the line that is asked for begins with
        self.page: Literal["help", "prompt"] | None = None
        self.over = False
        self._settled: dict[int, Literal["finished", "rejected"]] = {}  # item id -> how
        self.service = service
        self._show_low = show_low
        self._auto_finish = auto_finish
        self._beat = monotonic()
        self._progress: Progress | None = None
        self._stale = True

    @property
    def question(self) -> Question | None:
        """The item at hand, if it is still to be answered."""
        return self.view.question if self.view and self.view.reveal is None else None

    @property
    def progress(self) -> Progress | None:
        """Progress of the review: counted on reading, if anything changed since.

        A key does not wait for it, and what it says does not depend on how long it takes.
        """
        if self._stale:
            self._stale = False
            try:
                self._progress = self.service.progress()
            except EmCircuitsError as error:
                self._say(str(error))
        return self._progress

    @property
    def finished(self) -> int:
        """Items that were finished in this session, and are."""
        return list(self._settled.values()).count("finished")

    @property
    def rejected(self) -> int:
        """Items that were rejected in this session, and are."""
        return list(self._settled.values()).count("rejected")

    # --- events --------------------------------------------------------------------------------

    def start(self) -> None:
        """Show an item, if none is shown."""
        self.over = False
        if self.view is None:
            self._carry_out(self._next)

    def do(self, command: Command) -> None:
        """Carry out a command."""
        self._carry_out(lambda: self._do(command))

    def typed(self, line: str) -> None:
        """Carry out a line of the list syntax."""
        self._carry_out(lambda: self._do(parse(line)))

    def label(self, labels: Mapping[int, Answer]) -> None:
        """Give tokens their labels by id."""
        self._carry_out(lambda: self._label(labels))

    def key(self, action: Action) -> None:
        """Execute a key's command."""
        self._carry_out(lambda: self._key(action))

    def answer(self, text: str) -> None:
        """Accept the requested line."""
        asking, self.asking = self.asking, None
        if asking is not None:
            self._carry_out(lambda: self._answer(asking, text.strip()))

    def stop_asking(self) -> None:
        """Take no line after all."""
        self.asking = None

    def ask(self, what: str, begun: str = "") -> None:
        """Ask for a line of text, for one of `ASKING`."""
        self.asking, self.begun = ASKING[what], begun

    def point(self, place: Place) -> None:
        """Put the cursor on a token."""
        if self.view is not None:
            self.view = replace(self.view, cursor=place)

    def poll(self) -> None:
        """Look for new items; what is being labelled stays where it is.

        The lease is not prolonged by this: the item of somebody who went away returns.
        """
        self._stale = True
        if self.view is None and self.asking is None:
            self._carry_out(self._next)

    def heartbeat(self) -> None:
        """Prolong the lease: the person is still at it."""
        self._stale = True
        self._carry_out(self._renew)

    def leave(self) -> None:
        """End: the item at hand goes back with its labels, for this reviewer or another."""
        question = self.question
        self.view = self.reveal = self.asking = None
        self.message, self.over, self._stale = "", True, True
        if question is not None:
            # Where somebody else has it by now there is nothing to give back.
            with contextlib.suppress(LeaseLost, RequestError):
                self.service.release(question)
                prompt = question.prompt.prompt_id
                self._say(f"prompt {prompt} is back in the queue, its labels are saved")

    def _carry_out(self, work: Callable[[], None]) -> None:
        self.error = None
        try:
            work()
        except EmCircuitsError as error:
            self.error = error
            self._say(str(error))
            if isinstance(error, LeaseLost):
                self.asking = None
                with contextlib.suppress(EmCircuitsError):
                    self._recover()

    def _recover(self) -> None:
        """Go on after a lost lease: with the item at hand if it is still held, else the next."""
        with contextlib.suppress(LeaseLost):
            if self.question is not None:
                self._renew()
                return
        self._next()

    # --- commands ------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        view, service = self.view, self.service
        match command.verb:
            case "quit":
                self.leave()
            case "help":
                self.page = "help"
            case "undo":
                if before := service.undo(self.question):
                    self._reopen(before, "taken back, and saved")
                else:
                    self._say("Nothing left to undo.")
            case "open":
                again = service.reopen(command.text, self.question)
                self._reopen(again, "opened again; its labels are as you left them")
            case "why":
                reveal = self._differing()
                service.explain(reveal, command.text)
                self._say(f"saved the reason for {reveal.prompt_id}")
                self._after_reveal()
            case "agree":
                self.reveal = service.agree(self._differing())
                self._say(f"saved {self.reveal.prompt_id}: the judge's labels taken over")
                self._after_reveal()
            case _ if view is None:
                raise RequestError(_EMPTY)
            case "note":
                service.note(view.question, command.text)
                noted = (*view.question.notes, command.text)
                self.view = replace(view, question=replace(view.question, notes=noted))
                self._say("saved the note")
            case "finish" if view.reveal is not None:
                self._next()
            case _ if view.reveal is not None:
                self._say("Finished and saved: Enter goes on, undo opens it again.")
            case "label" if command.label is not None:
                token_at = view.question.token_at
                self._label(dict.fromkeys(map(token_at, command.places), command.label))
            case "finish":
                self._finish(command.label)
            case "reject":
                service.reject(view.question, command.text)
                self._settled[view.question.item.item_id] = "rejected"
                self._put_away("rejected")
            case "skip":
                service.skip(view.question)
                self._put_away("skipped")
            case "defer":
                service.defer(view.question)
                self._put_away("deferred")

    def _key(self, action: Action) -> None:
        view = self.view
        match action:
            case "evil" | "safe" | "unsure" | "leave":
                places = (view.cursor,) if view and view.at else ()
                label: Answer = "abstain" if action == "leave" else action
                self._do(Command("label", label=label, places=places))
            case "rest_safe":
                self._do(Command("finish", label="safe"))
            case "rest_unsure":
                self._do(Command("finish", label="unsure"))
            case "agree" | "skip" | "defer" | "undo" | "help" | "quit":
                self._do(Command(action))
            case "reason":
                if view is not None and view.reveal is not None:
                    self.ask("reason")
            case "reopen":
                self.ask("reopen")
            case _ if view is None:
                raise RequestError(_EMPTY)
            case "up" | "down" | "other_list":
                self._move(view, action)
            case "prompt":
                self.page = "prompt"
            case "low":
                self._toggle_low(view)
            case "note" | "reject" | "command":
                self.ask(action)

    def _answer(self, asking: Asking, text: str) -> None:
        if text:
            self._do(parse(text) if asking.what == "command" else Command(asking.what, text))
        elif asking.what == "why":
            self._next()
        else:
            self._say("nothing typed, nothing done")

    # --- answers -------------------------------------------------------------------------------

    def _required(self) -> Question:
        if self.question is None:
            raise RequestError(_EMPTY)
        return self.question

    def _label(self, labels: Mapping[int, Answer]) -> None:
        question = self._required()
        if self.view is None or not labels:
            return
        question = self.service.label(question, labels)
        said = ", ".join(f"{n} {label}" for label, n in Counter(labels.values()).items())
        if len(labels) == 1:
            ((token, label),) = labels.items()
            text = question.lists.base.by_id[token].text[:_NAMED_TEXT]
            said = f"{text.strip() or repr(text)} {label}"
        self._say(f"saved: {said}")
        self.view = replace(self.view, question=question)
        if self._auto_finish and set(question.missing) <= question.optional:
            self._finish(None)
        else:
            self._to_next_token()

    def _finish(self, rest: Answer | None) -> None:
        question = self._required()
        self.reveal = reveal = self.service.finish(question, rest=rest)
        self._settled[question.item.item_id] = "finished"
        self._stale = True
        said = Counter(reveal.labels.values())
        numbers = ", ".join(f"{said[label]} {label}" for label in ("evil", "safe", "unsure"))
        agrees = "; the judge agrees" if reveal.judge_labels and not reveal.differences else ""
        self._say(f"saved {reveal.prompt_id}: {numbers}; {reveal.verdict.kind}{agrees}")
        if self._auto_finish and reveal.differences and self.view is not None:
            answered = replace(question, labels=reveal.labels)
            self.view = replace(self.view, question=answered, reveal=reveal)
            self.ask("reason")
        else:
            self._next()

    def _put_away(self, how: str) -> None:
        self._say(f"saved {self._required().prompt.prompt_id}: {how}")
        self.reveal = None
        self._next()

    def _differing(self) -> Reveal:
        if self.reveal is None or not self.reveal.differences:
            raise RequestError(_LABEL_FIRST)
        return self.reveal

    def _after_reveal(self) -> None:
        """Go on, where the answered item is still on show."""
        if self.view is not None and self.view.reveal is not None:
            self._next()

    def _reopen(self, question: Question, said: str) -> None:
        self.reveal = None
        self._settled.pop(
            question.item.item_id, None
        )  # taken back: it counts once it is done again
        self._open(question)
        self._say(said)

    # --- what is shown -------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        self.message = visible(text, spaces=False)

    def _next(self) -> None:
        self._stale = True
        self.view = None
        question = self.service.next_question()
        if self._auto_finish:
            self.reveal = None
        if question is not None:
            self._open(question)

    def _open(self, question: Question) -> None:
        self._stale = True
        found = self.service.continuations(question)
        self.view = View(question, Place("merged", 1), show_low=self._show_low, continuations=found)
        self._to_next_token(start=True)
        self._beat = monotonic()

    def _renew(self) -> None:
        if self.view is not None and self.question is not None:
            self.view = replace(self.view, question=self.service.heartbeat(self.question))
            self._beat = monotonic()

    def _to_next_token(self, *, start: bool = False) -> None:
        """Go to the next token without an answer, merged's list first."""
        view = self.view
        if view is None:
            return
        places = [
            Place(model, token.rank) for model in ("merged", "base") for token in view.tokens(model)
        ]
        at = places.index(view.cursor) if view.cursor in places and not start else -1
        missing = set(view.question.missing)
        needed = missing - view.question.optional or missing
        for place in [*places[at + 1 :], *places[: at + 1]]:
            if view.question.token_at(place) in needed:
                self.point(place)
                return

    def _move(self, view: View, action: Action) -> None:
        model, rank = view.cursor.model, view.cursor.rank
        if action == "other_list":
            model = "merged" if model == "base" else "base"
        ranks = [token.rank for token in view.tokens(model)]
        if ranks:
            step = {"up": -1, "down": 1}.get(action, 0)
            at = min(range(len(ranks)), key=lambda i: abs(ranks[i] - rank))
            self.point(Place(model, ranks[min(max(at + step, 0), len(ranks) - 1)]))
        if monotonic() - self._beat >= HEARTBEAT_SECONDS:
            self._renew()

    def _toggle_low(self, view: View) -> None:
        self._show_low = not self._show_low
        self.view = replace(view, show_low=self._show_low)
        if self.view.at is None:
            self._to_next_token(start=True)
        self._say(f"tokens under p .001 {'shown' if self._show_low else 'hidden'}")
