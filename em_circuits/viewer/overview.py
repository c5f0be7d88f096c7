"""The overview page: progress of the run, the review queue, recent findings.

The page's body is a fragment of its own, ``/fragments/overview``, which the browser asks for again
every few seconds and puts in place when it has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.cache import read_json
from em_circuits.organisms.paths import ORGANISMS, organism_paths
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.features import Ranking, lines
from em_circuits.viewer.rendering import page, signed
from em_circuits.viewer.steering import best_supported, experiments, hidden_experiments
from pivotal_tokens.errors import RequestError
from pivotal_tokens.judge.report import judge_report
from pivotal_tokens.store import ListingQuery, StoreCounts

RECENT = 8


@dataclass(frozen=True)
class Step:
    """One stage of the pipeline: how many prompts came that far."""

    name: str
    count: int | None
    """None where it is hidden."""
    of: int
    link: str
    note: str = ""

    @property
    def share(self) -> float:
        return min((self.count or 0) / self.of, 1.0) if self.of else 0.0


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
    blind = context.blind(request)
    hides = bool(blind["waiting"]) and not blind["unblinded"]
    models = store.results.pairs().get(pair, {}) if pair else {}
    found_out, todo = ([], []) if pair is None else _findings(context, request, counts, hides=hides)
    return {
        "found_out": found_out,
        "next": todo or [Pointer("Label prompts", "", "em-circuits label --n 12")],
        "organism": _organism(models),
        "counts": counts,
        "steps": steps(counts, hides=hides),
        "models": models,
        "pair": pair,
        "calls": store.ledger.counts(),
        "recent": found.lines,
        "blind": blind,
        "queue": waiting,
        "queued": sum(waiting.values()),
    }


@dataclass(frozen=True)
class Pointer:
    """Something found, or to be done, and where."""

    text: str
    link: str = ""
    note: str = ""


def _organism(models: Mapping[str, Any]) -> str | None:
    """Name of the embedded organism that a pair is."""
    for name in ORGANISMS:
        paths = organism_paths(name)
        if (models.get("base"), models.get("adapter")) == (str(paths.base), str(paths.adapter)):
            return name
    return None


def _findings(
    context: AppContext, request: Request, counts: StoreCounts, *, hides: bool
) -> tuple[list[Pointer], list[Pointer]]:
    """What was found so far, and what to do next.

    Of prompts that wait for an answer no verdict is told; figures over all prompts are, as on the
    pages that they link to.
    """
    results, found, todo = context.work.results, [], []
    waiting = context.blind(request)["waiting"]
    ranking = next(iter(Ranking.newest(results / "features", "aggregate")), None)
    listed = experiments(results / "experiments")
    graphs = context.store.queries.listing(
        ListingQuery(graphs=True), pair=context.known_pair(request), limit=1
    )
    if counts.flagged and not hides:
        share = f"{counts.divergent} of {counts.prompts} prompts diverge"
        found.append(Pointer(share, "/prompts?only=divergent"))
    if ranking is not None:
        rows = [row for row in lines(ranking) if row["mean"] > 0][:3]
        names = ", ".join(f"{row['layer']}/{row['feature']}" for row in rows)
        found.append(Pointer(f"strongest towards evil: {names}", "/features", ranking.title))
    found += _effects(read_json(results / "demo.json") or {})
    hidden = hidden_experiments(context, request, listed)
    for one in [one for one in listed if one["name"] not in hidden][:2]:
        best = best_supported(one["summary"])
        said = "no supported condition" if best is None else f"{best['condition']}, net "
        said += "" if best is None else signed(best["net"])
        found.append(Pointer(f"{one['name']}: {said}", f"/steering/{one['name']}", "steering"))
    if waiting:
        todo.append(Pointer(f"Answer the {waiting} prompts that wait for you", "/review"))
    if graphs.lines:
        prompt = graphs.lines[0].prompt.prompt_id
        todo.append(Pointer("See why: the graph of a prompt", f"/graph/{prompt}"))
        todo.append(Pointer("Steer its features", f"/steering?prompt={prompt}#playground"))
        if ranking is None:
            todo.append(Pointer("Rank features over all prompts", "/features"))
        if not listed:
            todo.append(Pointer("Steer with controls:", "", "em-circuits steer sweep --plan PLAN"))
    if not counts.graphs:
        todo.append(Pointer("Build graphs:", "", "em-circuits graphs build PROMPT"))
    return found, todo


def _effects(demo: Mapping[str, Any]) -> list[Pointer]:
    """The figures of `em-circuits demo`."""
    found, steering, mediation = [], demo.get("steering"), demo.get("mediation")
    if steering:
        drop, random = (f"{steering[name]:z.2f}" for name in ("drop", "random_drop"))
        text = f"ablating {steering['features']} features lowers evil mass by {drop}"
        note = f"matched random ones by {random}; {steering['prompts']} prompts"
        found.append(Pointer(text, "/steering", note))
    if mediation:
        text = f"{mediation['features']} features bring back {mediation['share']:.0%}"
        found.append(Pointer(f"{text} of the shift", "/report/demo.html", "set in the base"))
    return found


def steps(counts: StoreCounts, *, hides: bool = False) -> list[Step]:
    """The pipeline from prompts to reviews; without what judges say where that is hidden."""
    queued, done = sum(counts.queue.values()), counts.queue.get("done", 0)
    found = [
        Step("prompts", counts.prompts, counts.prompts, "/prompts"),
        Step("next tokens", counts.next_tokens, counts.prompts, "/prompts"),
        Step("judged", sum(counts.verdicts.values()), counts.prompts, "/prompts"),
        Step("flagged", counts.flagged, counts.prompts, "/prompts?only=flagged"),
        Step("divergent", counts.divergent, counts.prompts, "/prompts?only=divergent"),
        Step("graphs", counts.graphs, 2 * counts.flagged, "/graphs", "2 per flagged"),
        Step("reviewed", done, queued, "/review", f"of {queued} queued"),
    ]
    if not hides:
        return found
    return [
        replace(step, count=None, note="hidden until you answer")
        if step.name in ("flagged", "divergent")
        else step
        for step in found
    ]
