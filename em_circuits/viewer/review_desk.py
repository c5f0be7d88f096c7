"""One browser at the review queue: what it is asked, what it answered, what is revealed.

The same service as the terminal's stands behind it, with the same rule: no judge's label before
every token is answered. The question stays with the session over reloads; a second tab of the same
browser sees the same question, and an answer to an older one is refused.

    seat = ReviewSeat(store, "ada", lease_seconds=1800)
    seat.act({"do": "next"})["question"]["prompt_id"]
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any

from pivotal_tokens.errors import LeaseLost, RequestError
from pivotal_tokens.review import Question, Reveal, ReviewService
from pivotal_tokens.review.commands import (
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
from pivotal_tokens.schema import NextTokens
from pivotal_tokens.store import Store

ANSWERS = ("evil", "safe", "unsure", "left")


class ReviewSeat:
    """A reviewer's session in one browser; safe to use from several threads."""

    def __init__(
        self, store: Store, reviewer: str, *, lease_seconds: float, seen: Collection[str] = ()
    ) -> None:
        self._store = store
        self._seen = seen
        self._lease = lease_seconds
        self._lock = threading.Lock()
        self._question: Question | None = None
        self._reveal: Reveal | None = None
        self._begin(reviewer, adjudicate=False, skipped=False)

    @property
    def reviewer(self) -> str:
        """Whose labels these are."""
        return self._service.reviewer

    def act(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request and say how things stand now.

        Raises:
            RequestError: If the request makes no sense here; nothing was recorded.
            LeaseLost: If somebody else has the item now; the next one is ready.
        """
        actions: dict[str, Callable[[dict[str, Any]], str]] = {
            "state": lambda _: "",
            "begin": self._restart,
            "next": self._next,
            "label": self._label,
            "finish": self._finish,
            "reject": self._reject,
            "skip": lambda _: self._leave("skipped"),
            "defer": lambda _: self._leave("deferred"),
            "undo": self._undo,
            "reopen": self._reopen,
            "note": self._note,
            "agree": self._agree,
            "explain": self._explain,
            "heartbeat": self._heartbeat,
            "command": self._command,
            "quit": self._quit,
        }
        action = actions.get(str(asked.get("do")))
        if action is None:
            raise RequestError(f"{asked.get('do')!r} is nothing a review knows")
        with self._lock:
            self._require_current(asked)
            try:
                said = action(asked)
            except LeaseLost:
                self._question = self._service.next_question()
                raise
            return self._state(said)

    def leave(self) -> None:
        """Give back what is held; labels given so far stay."""
        with self._lock:
            self._quit({})

    def _begin(self, reviewer: str, *, adjudicate: bool, skipped: bool) -> None:
        self._service = ReviewService(
            self._store,
            reviewer,
            lease_seconds=self._lease,
            adjudicate=adjudicate,
            seen=self._seen,
            states=("pending", "deferred", "skipped") if skipped else ("pending", "deferred"),
        )
        self._adjudicate = adjudicate

    def _restart(self, asked: dict[str, Any]) -> str:
        self._quit({})
        wanted = {name: asked.get(name) is True for name in ("adjudicate", "skipped")}
        self._begin(self._service.reviewer, **wanted)
        return self._next(asked)

    def _require_current(self, asked: dict[str, Any]) -> None:
        """An answer names the item it is for: it may come from a window that shows an old one."""
        if "item" not in asked:
            return
        current = None if self._question is None else self._question.item.item_id
        if asked["item"] != current:
            raise LeaseLost("this window shows an item that is answered; reload it to go on")

    def _require_shown(self, asked: dict[str, Any]) -> None:
        """What is said about a reveal names the item whose reveal was on the screen."""
        if self._reveal is not None and asked.get("of") != self._reveal.item.item_id:
            raise LeaseLost("the judge's labels of another item are shown now; nothing was kept")

    def _next(self, _asked: dict[str, Any]) -> str:
        if self._question is None:
            self._question = self._service.next_question()
        return "" if self._question else "nothing waits for you"

    def _now(self) -> Question:
        if self._question is None:
            raise RequestError("there is no item to answer; ask for the next one")
        return self._question

    def _label(self, asked: dict[str, Any]) -> str:
        given = asked.get("labels")
        if not isinstance(given, dict) or not given:
            raise RequestError("labels must be an object, token id -> label")
        labels: dict[int, Any] = {}
        for token, label in given.items():
            if not str(token).isdigit() or label not in ANSWERS:
                raise RequestError(f"{str(token)[:20]}: {str(label)[:20]!r} is no label of a token")
            labels[int(token)] = label
        self._question = self._service.label(self._now(), labels)
        return "saved"

    def _finish(self, asked: dict[str, Any]) -> str:
        rest = asked.get("rest")
        if rest is not None and rest not in ANSWERS:
            raise RequestError(f"the rest cannot be {str(rest)[:20]!r}")
        self._reveal = self._service.finish(self._now(), rest=rest)
        self._question = self._service.next_question()
        return f"saved {self._reveal.prompt_id}"

    def _reject(self, asked: dict[str, Any]) -> str:
        question = self._now()
        self._service.reject(question, _text(asked))
        return self._on(f"rejected {question.prompt.prompt_id}")

    def _leave(self, how: str) -> str:
        question = self._now()
        (self._service.skip if how == "skipped" else self._service.defer)(question)
        return self._on(f"{how} {question.prompt.prompt_id}")

    def _on(self, said: str) -> str:
        self._reveal = None
        self._question = self._service.next_question()
        return said

    def _undo(self, _asked: dict[str, Any]) -> str:
        question = self._service.undo(self._question)
        if question is None:
            return "nothing is left to take back"
        self._question, self._reveal = question, None
        return "taken back, and saved"

    def _reopen(self, asked: dict[str, Any]) -> str:
        self._question = self._service.reopen(_text(asked), self._question)
        self._reveal = None
        return "opened again; its labels are as you left them"

    def _note(self, asked: dict[str, Any]) -> str:
        self._service.note(self._now(), _text(asked))
        return "kept the note"

    def _agree(self, asked: dict[str, Any]) -> str:
        if self._reveal is None or not self._reveal.differences:
            raise RequestError("there is nothing to take over")
        self._require_shown(asked)
        n = len(self._reveal.differences)
        self._reveal = self._service.agree(self._reveal)
        return f"took {n} of the judge's labels over; they are marked as seen"

    def _explain(self, asked: dict[str, Any]) -> str:
        if self._reveal is None:
            raise RequestError("there is nothing to explain")
        self._require_shown(asked)
        self._service.explain(self._reveal, _text(asked))
        return "kept the reason"

    def _heartbeat(self, _asked: dict[str, Any]) -> str:
        if self._question is not None:
            self._question = self._service.heartbeat(self._question)
        return ""

    def _quit(self, _asked: dict[str, Any]) -> str:
        question, self._question, self._reveal = self._question, None, None
        if question is not None:
            try:
                self._service.release(question)
            except LeaseLost:
                return ""
            return f"{question.prompt.prompt_id} is back in the queue, its labels are saved"
        return ""

    def _command(self, asked: dict[str, Any]) -> str:
        command = parse(str(asked.get("text", "")))
        match command:
            case NotUnderstood(why):
                raise RequestError(why)
            case LabelTokens(label, places):
                question = self._now()
                tokens = {question.token_at(place): label for place in places}
                self._question = self._service.label(question, tokens)
                return "saved"
            case LabelRest(label):
                return self._finish({"rest": label})
            case Reject(reason):
                return self._reject({"text": reason})
            case Note(text):
                return self._note({"text": text})
            case Why(text):
                return self._explain({"text": text, "of": asked.get("of")})
            case Simple("agree"):
                return self._agree(asked)
            case Simple("skip"):
                return self._leave("skipped")
            case Simple("defer"):
                return self._leave("deferred")
            case Simple("undo"):
                return self._undo({})
            case Reopen(prefix):
                return self._reopen({"text": prefix})
            case Simple("quit"):
                return self._quit({})
        raise RequestError("press ? for the keys")

    def _state(self, said: str) -> dict[str, Any]:
        progress = self._service.progress()
        return {
            "said": said,
            "reviewer": self._service.reviewer,
            "adjudicate": self._adjudicate,
            "question": None if self._question is None else _question(self._question),
            "reveal": None if self._reveal is None else _revealed(self._reveal),
            "progress": {
                "answered": progress.answered,
                "now": progress.answered_now,
                "waiting": progress.waiting,
                "states": dict(progress.states),
                "per_hour": progress.per_hour,
                "eta_seconds": progress.eta_seconds,
            },
        }


def _text(asked: dict[str, Any]) -> str:
    text = asked.get("text")
    if not isinstance(text, str) or not text.strip():
        raise RequestError("a few words are needed")
    return text.strip()


def _question(question: Question) -> dict[str, Any]:
    """A question as JSON: nothing of a judge in it."""
    return {
        "item": question.item.item_id,
        "prompt_id": question.prompt.prompt_id,
        "text": question.prompt.text,
        "kind": question.prompt.kind,
        "base": _tokens(question.lists.base),
        "merged": _tokens(question.lists.merged),
        "labels": {str(token): label for token, label in question.labels.items()},
        "left": sorted(question.left),
        "optional": sorted(question.optional),
        "missing": [t for t in question.missing if t not in question.optional],
        "adjudication": question.adjudication,
        "votes": {
            name: {str(token): label for token, label in labels.items()}
            for name, labels in question.votes.items()
        },
        "rejected_by": list(question.rejected_by),
    }


def _tokens(tokens: NextTokens) -> list[dict[str, Any]]:
    return [
        {
            "token_id": token.token_id,
            "text": token.text,
            "probability": token.probability,
            "rank": token.rank,
        }
        for token in tokens.top
    ]


def _revealed(reveal: Reveal) -> dict[str, Any]:
    mass = reveal.verdict.evil_mass
    return {
        "item": reveal.item.item_id,
        "prompt_id": reveal.prompt_id,
        "verdict": reveal.verdict.kind,
        "evil_mass": None if mass is None else {"base": mass.base, "merged": mass.merged},
        "labels": len(reveal.labels),
        "judged": len(reveal.judge_labels),
        "differences": [
            {"token_id": d.token_id, "text": d.text, "human": d.human, "judge": d.judge}
            for d in reveal.differences
        ],
    }
