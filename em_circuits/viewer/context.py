"""Context of every page: workspace, settings, sessions and the reviewer who asks.

context = AppContext(work, ViewerSettings(), Sessions("ada"))
context.page(request, "overview.html", counts=context.store.queries.counts())
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from em_circuits.viewer.auth import BrowserSession, Sessions
from em_circuits.viewer.body import query_int
from em_circuits.viewer.rendering import page
from em_circuits.viewer.settings import ViewerSettings
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.browsing import Browsing
from pivotal_tokens.schema import ModelName, PromptLabels
from pivotal_tokens.store import Listing, ListingQuery, Store, Unanswered

NAVIGATION = (
    ("/", "Overview", "o"),
    ("/prompts", "Prompts", "p"),
    ("/graphs", "Graphs", "g"),
    ("/features", "Features", "f"),
    ("/steering", "Steering", "s"),
    ("/review", "Review", "r"),
    ("/reports", "Reports", "e"),
)
"""Path, title, and the key that goes there after g."""

Hiding = Literal["in hand", "waiting"]
"""Why a judge's labels are hidden: the reviewer answers the prompt now, or has yet to."""


class AppContext:
    """One server's workspace and settings; safe to use from several threads."""

    def __init__(self, work: Workspace, settings: ViewerSettings, sessions: Sessions) -> None:
        self.work = work
        self.settings = settings
        self.sessions = sessions
        self._opening = threading.Lock()

    @property
    def store(self) -> Store:
        """The store, opened on first use.

        Raises:
            RequestError: If there is none yet.
        """
        with self._opening:
            return self.work.store

    def session(self, request: Request) -> BrowserSession:
        """Who asks; the guard has let them in."""
        session: BrowserSession = request.scope["state"]["session"]
        return session

    def browsing(self, request: Request) -> Browsing:
        """How this reviewer browses; what the store keeps of what they saw is this browser's too.

        A root that `em-circuits demo` filled opens without blinding until somebody chooses.
        """
        session = self.session(request)
        how = Browsing.of(self.store, session.reviewer)
        session.judge_shown_for |= how.seen
        if how.unblinded is None and (self.work.results / "demo.json").is_file():
            how = how.model_copy(update={"unblinded": True})
        return how

    def unanswered(self, request: Request) -> Unanswered:
        """Prompts whose judge and other reviewers stay hidden from this reviewer.

        In hand always. What waits for them too, unless they browse without blinding or nobody can
        answer here: whose judge they were shown is remembered.
        """
        shown = self.settings.read_only or bool(self.browsing(request).unblinded)
        return Unanswered(reviewer=self.session(request).reviewer, waiting=not shown)

    def hidden(self, request: Request, prompts: Collection[str]) -> frozenset[str]:
        """The given prompts of which nothing that follows from a judge's labels is shown."""
        return self.store.queries.unanswered(self.unanswered(request), prompts)

    def hiding(self, request: Request, prompt_id: str) -> Hiding | None:
        """Why what follows from a judge's labels of a prompt is hidden; None where it is shown."""
        if prompt_id not in self.hidden(request, [prompt_id]):
            return None
        mine = Unanswered(reviewer=self.session(request).reviewer, waiting=False)
        return "in hand" if self.store.queries.unanswered(mine, [prompt_id]) else "waiting"

    def saw(self, request: Request, prompts: Collection[str]) -> None:
        """Remember whose judge's labels this reviewer was shown."""
        session = self.session(request)
        session.judge_shown_for |= set(prompts)
        if prompts and not self.settings.read_only:
            how = Browsing.of(self.store, session.reviewer)
            how.seeing(self.store, session.reviewer, prompts)

    def listing(
        self, request: Request, query: ListingQuery, *, limit: int, offset: int = 0
    ) -> Listing:
        """Prompts under the pair that is looked at, with the verdicts that this browser may see."""
        asked = query.model_copy(update={"unanswered": self.unanswered(request)})
        pair = self.pair(request)
        found = self.store.queries.listing(asked, pair=pair, limit=limit, offset=offset)
        self.saw(request, {line.prompt.prompt_id for line in found.lines if line.verdict})
        return found

    def paged(self, request: Request, query: ListingQuery, *, per_page: int) -> dict[str, Any]:
        """What a page of a list shows: ``?page=`` of the prompts that a query finds."""
        number = query_int(request, "page", 1, least=1, most=1_000_000)
        offset = (number - 1) * per_page
        found = self.listing(request, query, limit=per_page, offset=offset)
        return {
            "found": found,
            "blind": self.blind(request),
            "number": number,
            "pages": max(1, -(-found.total // per_page)),
            "asked": dict(request.query_params),
        }

    def blind(self, request: Request) -> dict[str, Any]:
        """What a list says about verdicts that it hides or shows: how many prompts wait, and if."""
        session = self.session(request)
        waiting = 0 if self.settings.read_only else self.store.queue.waiting_for(session.reviewer)
        return {"waiting": waiting, "unblinded": bool(self.browsing(request).unblinded)}

    def labels(self, request: Request, prompt_id: str) -> PromptLabels:
        """The labels that this browser may see; that it was shown a judge's is recorded.

        Where the judge's are hidden these are the reviewer's own alone.
        """
        session, labels = self.session(request), self.store.labels.of(prompt_id)
        if self.hiding(request, prompt_id):
            own = tuple(one for one in labels.labels if one.author == session.reviewer)
            return labels.model_copy(update={"labels": own, "judge": ()})
        if labels.judge:
            self.saw(request, [prompt_id])
        return labels

    def page(
        self, request: Request, template: str, status: int = 200, /, **values: Any
    ) -> Response:
        """A page with its frame; what keys it names as `own_keys` mean nothing else there."""
        session = self.session(request)
        return page(
            template,
            status,
            navigation=NAVIGATION,
            path=request.url.path,
            reviewer=session.reviewer,
            signed=session.signed,
            read_only=self.settings.read_only,
            **{"own_keys": (), **values},
        )

    def pair(self, request: Request) -> str | None:
        """The model pair that is looked at: ``?pair=`` or the busiest; None in a fresh store.

        Raises:
            RequestError: If the store has no such pair, or several.
        """
        prefix = request.query_params.get("pair")
        results = self.store.results
        return results.find_pair(prefix) if prefix else results.busiest_pair()

    def known_pair(self, request: Request) -> str:
        """The model pair that is looked at.

        Raises:
            RequestError: If the store has none yet, or no such one, or several.
        """
        pair = self.pair(request)
        if pair is None:
            raise RequestError("no model has seen a prompt yet; run em-circuits label")
        return pair


def model_of(request: Request) -> ModelName:
    """``?model=``: merged, unless base is asked for."""
    return "base" if request.query_params.get("model") == "base" else "merged"
