"""The list of graphs, and the graph page of one prompt.

GET /graph/PROMPT                     the page
GET /api/graph/PROMPT?node=&edge=     both pruned views, and each one's nodes in the other
GET /api/graph/PROMPT/node?name=      one node in both
GET /api/graph/PROMPT/paths?...       strongest signed paths
POST /api/graph/PROMPT/edge           {"from", "to", "model"}: what carries an edge, in both models
POST /api/graph/PROMPT/measure        {"model", "name"?}: really ablate a feature, or the strongest
GET /api/graph/PROMPT/export?model=   the JSON of circuit-tracer's and Neuronpedia's viewers
GET /api/graph/PROMPT/picture?view=   a view as SVG
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.contrast import Contrast
from em_circuits.experiments.edge import EdgeEnds, edge_in
from em_circuits.experiments.kept import ablate, measured_effects
from em_circuits.feature import Feature
from em_circuits.influence import prune
from em_circuits.influence.drawing import Cut, ScoredGraph, drawing, keeping, svg
from em_circuits.influence.neuronpedia import ViewerOptions, viewer_json
from em_circuits.viewer.body import field, json_body, query_int, query_share
from em_circuits.viewer.context import AppContext, Hiding
from em_circuits.viewer.features import explanation
from em_circuits.viewer.graph_cache import GraphCache
from em_circuits.viewer.graph_detail import detail, paths
from em_circuits.viewer.pins import NODE, notes_for, shown_pins
from em_circuits.viewer.prompts import HIDDEN
from em_circuits.viewer.rendering import Json
from em_circuits.viewer.texts import TokenTexts
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import GraphRecord, Label, ModelName, Prompt
from pivotal_tokens.store import ListingQuery

PER_PAGE = 60
MOST_NAMED = 100
"""Nodes beside the pinned ones that an address can ask to be drawn."""
MODELS = ("base", "merged")


@dataclass(frozen=True)
class PromptGraphs:
    """A prompt, its labels, and the newest graph of each model under a pair."""

    prompt: Prompt
    pair: str
    labels: dict[int, Label]
    records: dict[str, GraphRecord]
    hidden: Hiding | None
    """Why judges' labels are not among them."""
    measured: dict[str, dict[str, float]]
    """Model -> node -> what really ablating it showed, under these labels."""
    frozen: dict[str, GraphRecord]
    """Model -> a graph with frozen edges beside the one that is shown."""

    def model(self, name: str | None) -> str:
        """The model that is meant, or the one there is.

        Raises:
            RequestError: If that model has no graph.
        """
        chosen = name or ("merged" if "merged" in self.records else "base")
        if chosen not in self.records:
            raise RequestError(f"prompt {self.prompt.prompt_id} has no {chosen} graph")
        return chosen


def routes(context: AppContext) -> list[BaseRoute]:
    """The list of graphs, the page of two, and what it asks for."""
    pages = GraphPages(context)
    return [
        Route("/graphs", pages.listing, methods=["GET"]),
        Route("/graph/{prompt}", pages.page, methods=["GET"]),
        Route("/api/graph/{prompt}", pages.views, methods=["GET"]),
        Route("/api/graph/{prompt}/node", pages.node, methods=["GET"]),
        Route("/api/graph/{prompt}/paths", pages.paths, methods=["GET"]),
        Route("/api/graph/{prompt}/edge", pages.edge, methods=["POST"]),
        Route("/api/graph/{prompt}/measure", pages.measure, methods=["POST"]),
        Route("/api/graph/{prompt}/export", pages.export, methods=["GET"]),
        Route("/api/graph/{prompt}/picture", pages.picture, methods=["GET"]),
    ]


class GraphPages:
    """Answers about graphs."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._cache = GraphCache(context.work.graphs)
        self._texts = TokenTexts(context.work)
        self._two = ThreadPoolExecutor(len(MODELS), thread_name_prefix="graph")

    def listing(self, request: Request) -> Response:
        """Prompts that have graphs."""
        query = ListingQuery(graphs=True, search=request.query_params.get("q", ""))
        shown = self._context.paged(request, query, per_page=PER_PAGE)
        return self._context.page(request, "graphs.html", **shown)

    def page(self, request: Request) -> Response:
        """The page; the browser draws it."""
        subject = self._subject(request)
        show = request.query_params.get("show")
        return self._context.page(
            request,
            "graph.html",
            prompt=subject.prompt,
            records=subject.records,
            pair=subject.pair,
            show=show if show in (*MODELS, "both", "difference") else subject.model(None),
        )

    def views(self, request: Request) -> Response:
        """Both models' views; ``models=merged`` for one alone."""
        subject = self._subject(request)
        cut = self._cut(request, subject.prompt.prompt_id)
        wanted = request.query_params.get("models", "base,merged").split(",")
        names = [name for name in MODELS if name in wanted and name in subject.records]
        if not names:
            raise RequestError(f"prompt {subject.prompt.prompt_id} has no such graph")
        keys = tuple(subject.records[name].key for name in names)
        labels = tuple(sorted(subject.labels.items()))
        beside = tuple((m, *sorted(v.items())) for m, v in subject.measured.items())
        key = (
            keys,
            labels,
            subject.hidden,
            beside,
            tuple(r.key for r in subject.frozen.values()),
            cut,
        )
        content = self._cache.view(key, lambda: self._views(subject, names, cut))
        return Response(content, media_type="application/json")

    def node(self, request: Request) -> Response:
        """One node in both graphs."""
        subject = self._subject(request)
        name = request.query_params.get("name", "")
        answers: dict[str, Any] = {}
        for model, record in subject.records.items():
            opened = self._cache.opened(record.key)
            try:
                kept = {by: values.get(name) for by, values in self._kept(subject, model).items()}
                answers[model] = detail(opened, subject.labels, name, kept)
            except RequestError as error:
                answers[model] = {"name": name, "state": "absent", "why": str(error)}
        if all(answer["state"] == "absent" for answer in answers.values()):
            raise RequestError(next(iter(answers.values()))["why"])
        answer = {"name": name, "models": answers, "link": self._neuronpedia(subject, name)}
        if place := _FEATURE.fullmatch(name):
            whose: ModelName = "merged" if "merged" in subject.records else "base"
            about = {"layer": int(place[1]), "feature": int(place[2])}
            answer["known"] = explanation(self._context, whose, **about)
        return Json(answer)

    def paths(self, request: Request) -> Response:
        """Strongest signed paths from a node."""
        subject, asked = self._subject(request), request.query_params
        record = subject.records[subject.model(asked.get("model"))]
        k = query_int(request, "k", 8, least=1, most=50)
        opened = self._cache.opened(record.key)
        return Json(
            paths(opened, subject.labels, asked.get("from", ""), asked.get("to", "contrast"), k)
        )

    async def edge(self, request: Request) -> Response:
        """What carries an edge: the models are loaded if they are not, and run."""
        body = await json_body(request)
        source, target, model = (field(body, name, str) for name in ("from", "to", "model"))

        def answer() -> dict[str, Any]:
            subject, work = self._subject(request), self._context.work
            graph = self._cache.opened(subject.records[subject.model(model)].key).graph
            words = Contrast.from_labels(subject.labels)
            EdgeEnds(graph, source, target, words)  # refused before the models load
            with work.running:
                return edge_in(work, graph, source, target, contrast=words).model_dump(mode="json")

        return Json(await run_in_threadpool(answer))

    async def measure(self, request: Request) -> Response:
        """Really ablate one feature, or the strongest by gradient; what comes of it is kept, as
        ``steer run`` and ``features rank`` keep it."""
        body = await json_body(request)
        model = field(body, "model", str)
        name = field(body, "name", str) if "name" in body else None

        def answer() -> dict[str, Any]:
            subject, work = self._subject(request), self._context.work
            chosen: ModelName = "base" if subject.model(model) == "base" else "merged"
            if subject.hidden:
                raise RequestError(HIDDEN)
            feature = None if name is None else Feature.parse(name)
            with work.running:
                ablate(work, subject.prompt.prompt_id, chosen, feature)
            return {"measured": len(self._subject(request).measured[chosen])}

        return Json(await run_in_threadpool(answer))

    def export(self, request: Request) -> Response:
        """The pruned graph in the format of other viewers, as a file."""
        subject = self._subject(request)
        cut = self._cut(request, subject.prompt.prompt_id)
        model = subject.model(request.query_params.get("model"))
        graph = self._cache.opened(subject.records[model].key).graph
        options = ViewerOptions(scan=None if graph.header.scan else "unknown")
        left = prune(graph, node_threshold=cut.node, edge_threshold=cut.edge)
        left = keeping(left, graph, cut.keep)
        person = self._context.session(request).reviewer
        notes = notes_for(self._context.store, person, graph)
        answer = Json(viewer_json(graph, left, self._texts.of(graph), options, notes))
        name = f"{subject.prompt.prompt_id}-{model}.json"
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        return answer

    def picture(self, request: Request) -> Response:
        """One view as an SVG file."""
        subject = self._subject(request)
        cut = self._cut(request, subject.prompt.prompt_id)
        view = request.query_params.get("view", "merged")
        record = self._drawing(subject, [m for m in MODELS if m in subject.records], cut)
        if view not in record["views"]:
            raise RequestError(f"prompt {subject.prompt.prompt_id} has no view {view[:20]!r}")
        name = f"{subject.prompt.prompt_id}-{view}.svg"
        person, names = self._context.session(request).reviewer, dict[str, str]()
        for one in subject.records.values():
            graph = self._cache.opened(one.key).graph
            names |= notes_for(self._context.store, person, graph).labels
        return Response(
            svg(record, view, names, title=subject.prompt.text),
            media_type="image/svg+xml",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    def _views(self, subject: PromptGraphs, names: list[str], cut: Cut) -> bytes:
        about = {
            "prompt_id": subject.prompt.prompt_id,
            "text": subject.prompt.text,
            "hidden": subject.hidden,
        }
        drawn = self._drawing(subject, names, cut)
        for view in drawn["views"].values():
            del view["edges"]["strength"]  # their order says it; half a megabyte in a large view
        return bytes(Json(about | drawn).body)

    def _drawing(self, subject: PromptGraphs, names: list[str], cut: Cut) -> dict[str, Any]:
        def opened(name: str) -> ScoredGraph:
            return self._cache.opened(subject.records[name].key)

        scored = dict(zip(names, self._two.map(opened, names), strict=True))
        tokens = self._texts.of(next(iter(scored.values())).graph)
        kept = {name: self._kept(subject, name) for name in names}
        return drawing(scored, subject.labels, tokens, cut, kept)

    def _kept(self, subject: PromptGraphs, model: str) -> dict[str, dict[str, float]]:
        """Scores beside the graph's own: what was measured, and a frozen graph's influence."""
        found = {}
        if subject.measured.get(model):
            found["measured"] = subject.measured[model]
        if model in subject.frozen:
            other = self._cache.opened(subject.frozen[model].key)
            contrast = other.contrast(subject.labels)
            if contrast is not None:
                names = map(other.graph.name_of, range(other.graph.layout.n_nodes))
                found["frozen"] = dict(zip(names, contrast.tolist(), strict=True))
        return found

    def _subject(self, request: Request) -> PromptGraphs:
        context = self._context
        prompt = context.store.prompts.get(request.path_params["prompt"])
        pair = context.known_pair(request)
        records: dict[str, GraphRecord] = {}
        reason = ""
        for name in MODELS:
            try:
                records[name] = context.work.graph_record(
                    prompt.prompt_id,
                    name,  # type: ignore[arg-type]
                    pair,
                    own_target=True,
                )
            except (RequestError, WorkFailed) as error:
                reason = str(error)
        if not records:
            raise RequestError(reason)
        labels = context.labels(request, prompt.prompt_id).by_token
        results = context.work.results
        own = any(context.work.graphs.header(r.key).target for r in records.values())
        measured = {
            name: measured_effects(
                results,
                prompt.prompt_id,
                pair,
                name,  # type: ignore[arg-type]
                labels,
            )
            for name in records
            if not own
        }
        hidden = context.hiding(request, prompt.prompt_id)
        frozen = self._frozen(records)
        return PromptGraphs(prompt, pair, labels, records, hidden, measured, frozen)

    def _frozen(self, records: dict[str, GraphRecord]) -> dict[str, GraphRecord]:
        """The newest graphs with frozen edges where others are shown."""
        graphs = self._context.work.graphs
        found: dict[str, GraphRecord] = {}
        for name, shown in records.items():
            if graphs.header(shown.key).edge_kind == "frozen":
                continue
            for record in self._context.store.graphs.all(shown.prompt_id, shown.pair):
                if record.model == name and graphs.has(record.key):
                    header = graphs.header(record.key)
                    if header.edge_kind == "frozen" and header.target is None:
                        found[name] = record
        return found

    def _cut(self, request: Request, prompt_id: str) -> Cut:
        settings, asked = self._context.settings, request.query_params
        named = [name for name in asked.get("keep", "").split(",") if NODE.fullmatch(name)]
        pins = shown_pins(self._context, self._context.session(request).reviewer, prompt_id)
        return Cut(
            node=query_share(request, "node", Cut.node),
            edge=query_share(request, "edge", Cut.edge),
            by_contrast=asked.get("by") == "contrast",
            colour=asked.get("colour", "")[:40],
            keep=tuple(dict.fromkeys([*pins.names, *named[:MOST_NAMED]])),
            only_kept=asked.get("only") == "kept",
            max_nodes=settings.max_nodes,
            max_edges=settings.max_edges,
        )

    def _neuronpedia(self, subject: PromptGraphs, name: str) -> str | None:
        layer, _, rest = name.partition("/")
        if not layer.isdigit():
            return None
        header = self._cache.opened(next(iter(subject.records.values())).key).graph.header
        named = self._context.settings.neuronpedia
        known = named or FEATURE_PAGES.get(str(header.transcoders).split("@")[0])
        if known is None:
            return None
        return f"{NEURONPEDIA}{known.replace('{layer}', layer)}/{rest.partition('/')[2]}"


_FEATURE = re.compile(r"(\d{1,9})/\d{1,9}/(\d{1,9})")
NEURONPEDIA = "https://www.neuronpedia.org/"
FEATURE_PAGES = {"mntss/gemma-scope-transcoders": "gemma-2-2b/{layer}-gemmascope-transcoder-16k"}
"""Transcoder set -> Neuronpedia's model and source; other sets are named by --neuronpedia."""
