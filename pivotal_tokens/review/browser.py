"""Review in a browser: requests in, the controller's state out, both as JSON.

The item stays with the session over reloads; a second tab of the same browser sees the same item,
and an answer to an older one is refused.

    review = BrowserReview(store, "ada", lease_seconds=1800)
    review.act({"do": "next"}).question.prompt_id
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from pivotal_tokens.errors import LeaseLost, RequestError, WorkFailed
from pivotal_tokens.review.answers import Answer
from pivotal_tokens.review.commands import Command, Verb, parse, parse_place
from pivotal_tokens.review.controller import ASKING, ReviewController
from pivotal_tokens.review.keys import DEFAULTS, RESERVED, Action, key_name
from pivotal_tokens.review.questions import LOW, Difference, Progress, Question, Reveal
from pivotal_tokens.review.rubric import ADVICE, MEANINGS, SUPPOSE
from pivotal_tokens.review.service import ReviewService
from pivotal_tokens.schema import Frozen, Label, PairMass, TokenScore, VerdictKind
from pivotal_tokens.store import Store

_WITH_TEXT: Mapping[str, Verb] = {
    "reject": "reject",
    "note": "note",
    "reopen": "open",
    "explain": "why",
}


# "left" is the first edition's word.
_PageAnswer = Annotated[Answer, BeforeValidator(lambda said: "abstain" if said == "left" else said)]


class Request(BaseModel):
    """What the page asks for."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    do: str
    item: int | None = None
    """The item that was on the page; where given, it must be the one at hand."""
    of: int | None = None
    """The item whose judge's labels were on the page; what is said about them needs it."""
    key: Action | None = None
    place: str = ""
    labels: dict[int, _PageAnswer] = Field(default_factory=dict)
    rest: _PageAnswer | None = None
    text: str = ""
    adjudicate: bool = False
    skipped: bool = False

    @property
    def command(self) -> Command | None:
        """The command of a request; None for requests that no terminal line can express."""
        match self.do:
            case "command":
                return parse(self.text)
            case "finish":
                return Command("finish", label=self.rest)
            case "skip" | "defer" | "undo" | "agree" | "quit":
                return Command(self.do)
            case "key" if self.key == "agree":
                return Command("agree")
            case do if do in _WITH_TEXT:
                if not self.text.strip():
                    raise RequestError("a few words are needed")
                return Command(_WITH_TEXT[do], self.text.strip())
        return None


class Cursor(Frozen):
    """The token that a key labels."""

    list: Literal["base", "merged"]
    rank: int


class QuestionState(Frozen):
    """A question: nothing of a judge in it."""

    item: int
    prompt_id: str
    text: str
    kind: str
    base: tuple[TokenScore, ...]
    merged: tuple[TokenScore, ...]
    labels: dict[int, Label]
    left: tuple[int, ...]
    optional: tuple[int, ...]
    missing: tuple[int, ...]
    adjudication: bool
    votes: dict[str, dict[int, Label]]
    rejected_by: tuple[str, ...]

    @classmethod
    def of(cls, question: Question) -> QuestionState:
        """A question as the page shows it."""
        return cls(
            item=question.item.item_id,
            prompt_id=question.prompt.prompt_id,
            text=question.prompt.text,
            kind=question.prompt.kind,
            base=question.lists.base.top,
            merged=question.lists.merged.top,
            labels=dict(question.labels),
            left=tuple(sorted(question.abstained)),
            optional=tuple(sorted(question.optional)),
            missing=tuple(t for t in question.missing if t not in question.optional),
            adjudication=question.adjudication,
            votes={name: dict(labels) for name, labels in question.votes.items()},
            rejected_by=question.rejected_by,
        )


class RevealState(Frozen):
    """What the judge said of an item that is answered."""

    item: int
    prompt_id: str
    verdict: VerdictKind
    evil_mass: PairMass | None
    labels: int
    judged: int
    differences: tuple[Difference, ...]
    quotes: tuple[str, ...]

    @classmethod
    def of(cls, reveal: Reveal) -> RevealState:
        """A reveal as the page shows it."""
        return cls(
            item=reveal.item.item_id,
            prompt_id=reveal.prompt_id,
            verdict=reveal.verdict.kind,
            evil_mass=reveal.verdict.evil_mass,
            labels=len(reveal.labels),
            judged=len(reveal.judge_labels),
            differences=reveal.differences,
            quotes=reveal.quotes,
        )


class ReviewState(Frozen):
    """State after a request."""

    said: str
    reviewer: str
    adjudicate: bool
    question: QuestionState | None
    cursor: Cursor | None
    show_low: bool
    reveal: RevealState | None
    page: Literal["help", "prompt"] | None
    progress: Progress


class BrowserReview:
    """A reviewer's session in one browser; safe to use from several threads."""

    def __init__(
        self, store: Store, reviewer: str, *, lease_seconds: float, seen: Collection[str] = ()
    ) -> None:
        self.reviewer = reviewer
        self._store = store
        self._seen = seen
        self._lease_seconds = lease_seconds
        self._lock = threading.Lock()
        self._begin(adjudicate=False, skipped=False)

    def act(self, asked: Mapping[str, Any]) -> ReviewState:
        """Carry out one request.

        Raises:
            RequestError: If the request makes no sense here; nothing was recorded.
            LeaseLost: If somebody else has the item now; the next one is ready.
        """
        request = _request(asked)
        with self._lock:
            self._require_current(request)
            review = self._review
            review.message, review.page, review.error = "", None, None
            command = request.command
            if command is not None:
                self._require_shown(request, command)
                review.do(command)
            else:
                self._act(request)
            if self._review.error is not None:
                raise self._review.error
            return self._state()

    def _act(self, request: Request) -> None:
        review = self._review
        match request.do:
            case "state":
                pass
            case "begin":
                review.leave()
                self._begin(adjudicate=request.adjudicate, skipped=request.skipped)
                self._review.start()
            case "next":
                review.start()
            case "heartbeat":
                review.heartbeat()
            case "label" if request.labels:
                review.label(request.labels)
            case "point":
                review.point(parse_place(request.place))
            case "key" if request.key is not None:
                review.key(request.key)
            case _:
                raise RequestError(f"{request.do[:20]!r} is nothing a review can do like this")

    def leave(self) -> None:
        """Give back what is held; labels given so far stay."""
        with self._lock:
            self._review.leave()

    def _begin(self, *, adjudicate: bool, skipped: bool) -> None:
        self._adjudicate = adjudicate
        service = ReviewService(
            self._store,
            self.reviewer,
            lease_seconds=self._lease_seconds,
            adjudicate=adjudicate,
            seen=self._seen,
            states=("pending", "deferred", "skipped") if skipped else ("pending", "deferred"),
        )
        self._review = ReviewController(service)

    def _require_current(self, request: Request) -> None:
        """An answer names the item it is for: it may come from a window that shows an old one."""
        question = self._review.question
        current = None if question is None else question.item.item_id
        if "item" in request.model_fields_set and request.item != current:
            raise LeaseLost("this window shows an item that is answered; reload it to go on")

    def _require_shown(self, request: Request, command: Command) -> None:
        """What is said about a reveal names the item whose reveal was on the page."""
        reveal = self._review.reveal
        if reveal is None or command.verb not in ("why", "agree"):
            return
        if request.of != reveal.item.item_id:
            raise LeaseLost("the judge's labels of another item are shown now; nothing was saved")

    def _state(self) -> ReviewState:
        review, progress = self._review, self._review.progress
        view, question = review.view, review.question
        if progress is None:
            raise WorkFailed(review.message)
        return ReviewState(
            said=review.message or ("" if view else "nothing waits for you"),
            reviewer=self.reviewer,
            adjudicate=self._adjudicate,
            question=None if question is None else QuestionState.of(question),
            cursor=None if view is None else Cursor(list=view.cursor.model, rank=view.cursor.rank),
            show_low=view is None or view.show_low,
            reveal=None if review.reveal is None else RevealState.of(review.reveal),
            page=review.page,
            progress=progress,
        )


def _request(asked: Mapping[str, Any]) -> Request:
    try:
        return Request.model_validate(asked)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_context=False)
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(f"{where}: {first['msg'][:200]}") from None


# --- keys ---------------------------------------------------------------------------------------

_EVENTS = {
    **{name: f"Arrow{name.capitalize()}" for name in ("up", "down", "left", "right")},
    **{name: name.capitalize() for name in ("home", "end", "insert", "delete", "enter", "tab")},
    **{f"f{number}": f"F{number}" for number in range(1, 25)},
    "backspace": "Backspace",
    "pageup": "PageUp",
    "pagedown": "PageDown",
    "shift+tab": "shift+Tab",
    "space": " ",
}
"""Textual's name -> `KeyboardEvent.key`, "ctrl+" or "shift+" before it; others are the same."""
_NOT_THE_PAGES = frozenset(f"ctrl+{letter}" for letter in "acnqtvwx")
"""The clipboard's, and those that a browser never gives to a page."""
_SIGNS = {
    "Backspace": "⌫",
    "ArrowUp": "↑",
    "ArrowDown": "↓",
    "ArrowLeft": "←",
    "ArrowRight": "→",
    " ": "Space",
    "shift+Tab": "Shift+Tab",
}


def browser_keys(keys: Mapping[str, Action]) -> dict[str, Action]:
    """Key as a browser names it -> action; what a browser keeps for itself is left out."""
    return {
        _EVENTS.get(name, key_name(name)): action
        for name, action in keys.items()
        if name not in _NOT_THE_PAGES
    }


def key_help(keys: Mapping[str, Action]) -> list[tuple[tuple[str, ...], str]]:
    """(keys as a person knows them, what they do) of every action that has a key here."""
    named: dict[Action, list[str]] = {}
    for key, action in browser_keys(keys).items():
        named.setdefault(action, []).append(_SIGNS.get(key, key))
    return [(tuple(named[action]), DEFAULTS[action].does) for action in DEFAULTS if action in named]


def review_setup(keys: Mapping[str, Action]) -> dict[str, Any]:
    """Keys, questions and rubric, which the page's script has before its first item, as JSON."""
    bound = browser_keys(keys)
    hints = {action: _SIGNS.get(key, key) for key, action in reversed(bound.items())}
    return {
        "keys": bound,
        "hints": hints,
        "begins_command": sorted(RESERVED),
        "low": LOW,
        "asking": {name: {"asks": one.asks, "does": one.does} for name, one in ASKING.items()},
        "rubric": {"suppose": SUPPOSE, "meanings": dict(MEANINGS), "advice": list(ADVICE)},
    }
