"""The review queue in the browser: the page, and one address for every answer."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.body import read_json
from em_circuits.viewer.desk import Desk
from em_circuits.viewer.door import Session
from em_circuits.viewer.rendering import Json
from em_circuits.viewer.review_desk import ReviewSeat
from em_circuits.viewer.review_keys import browser_keys, key_help, review_setup
from pivotal_tokens.review.keys import key_map


class Seats:
    """Session -> the seat it has; a person who changes their name gets another."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._seats: WeakKeyDictionary[Session, ReviewSeat] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, session: Session) -> ReviewSeat:
        """The seat of a session under the name it has now."""
        with self._lock:
            seat = self._seats.get(session)
            if seat is not None and seat.reviewer == session.reviewer:
                return seat
            if seat is not None:
                seat.leave()
            lease = self._desk.settings.lease_seconds
            fresh = ReviewSeat(
                self._desk.store, session.reviewer, lease_seconds=lease, seen=session.shown_judge
            )
            self._seats[session] = fresh
            return fresh


def routes(desk: Desk) -> list[BaseRoute]:
    """``GET /review`` and ``POST /api/review``.

    Raises:
        RequestError: If the settings bind a key that cannot be bound.
    """
    seats = Seats(desk)
    keys = key_map(desk.settings.review_keys)

    def page(request: Request) -> Response:
        counts = desk.store.queue.counts()
        open_here = counts and not desk.settings.read_only
        return desk.page(
            request,
            "review.html",
            counts=counts,
            setup=review_setup(keys),
            key_help=key_help(keys),
            own_keys=browser_keys(keys) if open_here else (),
        )

    async def answer(request: Request) -> Response:
        asked = await read_json(request)
        session = desk.session(request)
        return Json(await run_in_threadpool(lambda: seats.of(session).act(asked)))

    return [
        Route("/review", page, methods=["GET"]),
        Route("/api/review", answer, methods=["POST"]),
    ]
