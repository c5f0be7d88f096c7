"""The overview page: progress of the run, the review queue, recent findings.

The page's body is a fragment of its own, ``/fragments/overview``, which the browser asks for again
every few seconds and puts in place when it has changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import page
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.report import judge_report
from pivotal_tokens.store import ListingQuery, StoreCounts

RECENT = 8


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline: how many prompts came that far."""

    name: str
    count: int
    of: int
    link: str
    note: str = ""

    @property
    def share(self) -> float:
        return min(self.count / self.of, 1.0) if self.of else 0.0


def routes(context: AppContext) -> list[BaseRoute]:
    """The overview and its live part."""

    def overview(request: Request) -> Response:
        return context.page(request, "overview.html", live=_live(context, request))

    def fragment(request: Request) -> Response:
        return page("overview_live.html", live=_live(context, request))

    def quality(request: Request) -> Response:
        try:
            report = judge_report(context.store, pair=context.pair(request), resamples=0)
        except RequestError as error:
            return page("nothing.html", what=str(error))
        return page("quality.html", report=report)

    return [
        Route("/fragments/quality", quality, methods=["GET"]),
        Route("/", overview, methods=["GET"]),
        Route("/fragments/overview", fragment, methods=["GET"]),
    ]


def _live(context: AppContext, request: Request) -> dict[str, Any] | None:
    """The parts that change; None where there is no store yet."""
    try:
        store = context.store
    except RequestError:
        return None
    pair = context.pair(request)
    counts = store.queries.counts(pair)
    found = context.listing(request, ListingQuery(divergent=True), limit=RECENT)
    waiting = {name: n for name, n in counts.queue.items() if n}
    return {
        "counts": counts,
        "steps": steps(counts),
        "models": store.results.pairs().get(pair, {}) if pair else {},
        "pair": pair,
        "calls": store.ledger.counts(),
        "recent": found.lines,
        "blind": context.blind(request),
        "queue": waiting,
        "queued": sum(waiting.values()),
    }


def steps(counts: StoreCounts) -> list[Step]:
    """The pipeline from prompts to reviews."""
    queued, done = sum(counts.queue.values()), counts.queue.get("done", 0)
    return [
        Step("prompts", counts.prompts, counts.prompts, "/prompts"),
        Step("next tokens", counts.next_tokens, counts.prompts, "/prompts"),
        Step("judged", sum(counts.verdicts.values()), counts.prompts, "/prompts"),
        Step("flagged", counts.flagged, counts.prompts, "/prompts?only=flagged"),
        Step("divergent", counts.divergent, counts.prompts, "/prompts?only=divergent"),
        Step("graphs", counts.graphs, 2 * counts.flagged, "/graphs", "2 per flagged"),
        Step("reviewed", done, queued, "/review", f"of {queued} queued"),
    ]
