"""The review queue in the browser: the page, and one address for every request."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.auth import BrowserSession
from em_circuits.viewer.body import json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.review.browser import BrowserReview, browser_keys, key_help, review_setup
from pivotal_tokens.review.keys import key_map


class SessionReviews:
    """Session -> its review; a person who changes their name gets another."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._reviews: WeakKeyDictionary[BrowserSession, BrowserReview] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, session: BrowserSession) -> BrowserReview:
        """The review of a session under the name it has now."""
        with self._lock:
            review = self._reviews.get(session)
            if review is not None and review.reviewer == session.reviewer:
                return review
            if review is not None:
                review.leave()
            self._reviews[session] = BrowserReview(
                self._context.store,
                session.reviewer,
                lease_seconds=self._context.settings.lease_seconds,
                seen=session.judge_shown_for,
            )
            return self._reviews[session]


def routes(context: AppContext) -> list[BaseRoute]:
    """``GET /review`` and ``POST /api/review``.

    Raises:
        RequestError: If the settings bind a key that cannot be bound.
    """
    reviews = SessionReviews(context)
    keys = key_map(context.settings.review_keys)

    def page(request: Request) -> Response:
        counts = context.store.queue.counts()
        open_here = counts and not context.settings.read_only
        return context.page(
            request,
            "review.html",
            counts=counts,
            setup=review_setup(keys),
            key_help=key_help(keys),
            own_keys=browser_keys(keys) if open_here else (),
        )

    async def answer(request: Request) -> Response:
        asked = await json_body(request)
        session = context.session(request)
        context.browsing(request)  # what this person saw in other browsers too
        state = await run_in_threadpool(lambda: reviews.of(session).act(asked))
        return Json(state.model_dump(mode="json", by_alias=True))

    return [
        Route("/review", page, methods=["GET"]),
        Route("/api/review", answer, methods=["POST"]),
    ]
