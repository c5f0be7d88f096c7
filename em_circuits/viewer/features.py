"""Feature rankings over many prompts, and where one feature fires.

GET  /features                       the newest ranking that is kept, or ?table=KEY
GET  /feature/LAYER/ID               one feature: what it writes, where it fires
GET  /api/features/firing?table=     where in prompts the features of a ranking fire
POST /api/features/aggregate         sum up anew over every prompt that will do
GET  /api/features/where?layer=&feature=&model=
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.cache import CachedTable
from em_circuits.contrast import Contrast
from em_circuits.experiments.aggregate import AggregateRequest, aggregate_prompts
from em_circuits.feature import FeatureId
from em_circuits.features.neuronpedia import LabelSource, NeuronpediaLabels
from em_circuits.features.promoted import Promoted, promoted_from_files, promoted_tokens
from em_circuits.graphs import AttributionGraph
from em_circuits.viewer.body import json_body, query_int
from em_circuits.viewer.context import AppContext, model_of
from em_circuits.viewer.pins import node_labels_of
from em_circuits.viewer.rendering import Json, number, signed
from em_circuits.viewer.texts import TokenTexts
from pivotal_tokens.artefacts import finite
from pivotal_tokens.errors import EmCircuitsError, RequestError
from pivotal_tokens.schema import Label, ModelName

logger = logging.getLogger(__name__)

SHOWN = 400
"""Lines of a ranking that are sent: the most positive and the most negative."""
BINS = 10
"""Parts of a prompt that a profile of firing tells apart."""
_WIDEST = 2**31
GRAPHS_READ = 200
"""Graphs that are looked through for one feature."""
METHODS = ("gradient", "direct", "total_effect", "signed_influence")


class Ranking(CachedTable):
    """A ranking over prompts that is stored on the disk."""

    @property
    def at(self) -> datetime:
        """When it was written."""
        return datetime.fromtimestamp(self.json_path.stat().st_mtime, UTC)

    @property
    def title(self) -> str:
        """Method, model and number of prompts."""
        record = self.record
        places = ", by position" if record.get("by_position") else ""
        n = len(record.get("prompts", []))
        return f"{record.get('method')}, {record.get('model')} model, {n} prompts{places}"


def routes(context: AppContext) -> list[BaseRoute]:
    """The page of rankings and what it asks for."""
    texts = TokenTexts(context.work)
    profiles: dict[tuple[str, tuple[str, ...]], dict[str, list[float]]] = {}

    def page(request: Request) -> Response:
        tables = Ranking.newest(context.work.results / "features", "aggregate")
        wanted = request.query_params.get("table")
        table = next((t for t in tables if wanted is None or t.key.startswith(wanted)), None)
        if wanted is not None and table is None:
            raise RequestError(f"there is no ranking {wanted[:12]!r}")
        rows = [] if table is None else lines(table)
        pair, reviewer = context.pair(request), context.session(request).reviewer
        return context.page(
            request,
            "features.html",
            tables=tables,
            table=table,
            rows=rows,
            layers=sorted({row["layer"] for row in rows}),
            labels=node_labels_of(context.store, reviewer, pair) if pair else {},
            methods=METHODS,
            models=("merged", "base"),
        )

    async def aggregate(request: Request) -> Response:
        asked = await json_body(request)
        if asked.get("method") not in METHODS or asked.get("model") not in ("base", "merged"):
            raise RequestError("give a method and a model that the page offers")
        wanted = AggregateRequest(method=asked["method"], model=asked["model"])

        def make() -> str:
            pair = context.known_pair(request)
            return aggregate_prompts(context.work, [], wanted, pair=pair).key

        return Json({"table": await run_in_threadpool(make)})

    def one(request: Request) -> Response:
        layer, feature = (int(request.path_params[name]) for name in ("layer", "feature"))
        if max(layer, feature) >= _WIDEST:
            raise RequestError("there is no such feature")
        found = _where(context, request, texts, layer=layer, feature=feature)
        for place in found["places"]:
            place["best"] = max(place["firing"], key=lambda fired: fired[1])
            place["shown"] = _marked(place)
        pair = context.known_pair(request)
        own = node_labels_of(context.store, context.session(request).reviewer, pair)
        name = f"{layer}/{feature}"
        return context.page(request, "feature.html", f=found, pair=pair, own=own.get(name, ""))

    def firing(request: Request) -> Response:
        wanted = request.query_params.get("table", "-")
        tables = Ranking.newest(context.work.results / "features", "aggregate")
        table = next((t for t in tables if t.key.startswith(wanted)), None)
        if table is None:
            raise RequestError(f"there is no ranking {wanted[:12]!r}")
        records = [
            record
            for record in context.store.graphs.all(pair=context.known_pair(request))
            if record.model == model_of(request)
        ]
        graphs = tuple(record.key for record in records[:GRAPHS_READ])
        if (table.key, graphs) not in profiles:
            profiles.clear()
            profiles[table.key, graphs] = _profiles(context, graphs, lines(table))
        return Json({"firing": profiles[table.key, graphs]})

    def where(request: Request) -> Response:
        layer = query_int(request, "layer", 0, least=0, most=10_000)
        feature = query_int(request, "feature", 0, least=0, most=2**31)
        return Json(_where(context, request, texts, layer=layer, feature=feature))

    return [
        Route("/features", page, methods=["GET"]),
        Route("/api/features/aggregate", aggregate, methods=["POST"]),
        Route("/api/features/where", where, methods=["GET"]),
        Route("/api/features/firing", firing, methods=["GET"]),
        Route("/feature/{layer:int}/{feature:int}", one, methods=["GET"]),
    ]


def lines(table: Ranking) -> list[dict[str, Any]]:
    """The ends of a ranking, the most positive first."""
    rows = table.rows()
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    ranked = [r for r in rows if r["n"] and r["mean"] is not None]
    if len(ranked) <= SHOWN:
        return ranked
    by_mean = sorted(ranked, key=lambda r: -abs(r["mean"]))[:SHOWN]
    return sorted(by_mean, key=lambda r: r["rank"])


def _profiles(
    context: AppContext, keys: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> dict[str, list[float]]:
    """``LAYER/ID`` -> how often it fires in each tenth of the prompts, from the first to the last
    token; over some graphs."""
    wanted = torch.tensor(sorted({(row["layer"], row["feature"]) for row in rows}))
    codes = wanted[:, 0] * _WIDEST + wanted[:, 1]
    counts = torch.zeros(len(wanted), BINS)
    for key in keys:
        try:
            graph = context.work.graphs.load(key)
        except EmCircuitsError as error:
            logger.warning("%s", error)
            continue
        active, _ = graph.features
        code = active[:, 0] * _WIDEST + active[:, 2]
        at = torch.searchsorted(codes, code).clamp(max=len(codes) - 1)
        here = codes[at] == code
        bins = active[here, 1] * BINS // len(graph.input_ids)
        counts.index_put_((at[here], bins), torch.ones(len(bins)), accumulate=True)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return {
        str(FeatureId(*place)): [round(share, 3) for share in row]
        for place, row in zip(wanted.tolist(), shares.tolist(), strict=True)
    }


def _marked(place: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Of every token its text, how strongly the feature fires there (0 to 3), and in words."""
    at = {position: (activation, contrast) for position, activation, contrast in place["firing"]}
    most = place["best"][1]
    shown = []
    for position, text in enumerate(place["tokens"]):
        activation, contrast = at.get(position, (0.0, None))
        said = f"position {position}: activation {number(activation, 2)}"
        said += "" if contrast is None else f", contrast {signed(contrast)}"
        shown.append((text, math.ceil(3 * activation / most) if activation else 0, said))
    return shown


def _where(
    context: AppContext,
    request: Request,
    texts: TokenTexts,
    *,
    layer: int,
    feature: int,
) -> dict[str, Any]:
    pair, model = context.pair(request), model_of(request)
    records = [r for r in context.store.graphs.all(pair=pair) if r.model == model]
    places: list[dict[str, Any]] = []
    hidden = context.hidden(request, {r.prompt_id for r in records[:GRAPHS_READ]})
    for record in records[:GRAPHS_READ]:
        try:
            graph = context.work.graphs.load(record.key)
        except EmCircuitsError as error:
            logger.warning("%s", error)
            continue
        known = record.prompt_id not in hidden
        labels = context.store.labels.of(record.prompt_id).by_token if known else {}
        found = _firing(graph, labels, layer, feature)
        if found:
            tokens = texts.of(graph)
            places.append(
                {
                    "prompt_id": record.prompt_id,
                    "text": graph.header.text,
                    "hidden": not known,
                    "tokens": tokens,
                    "firing": found,
                }
            )
    places.sort(key=lambda p: -max(a for _, a, _ in p["firing"]))
    return {
        "layer": layer,
        "feature": feature,
        "model": model,
        "graphs": len(records),
        "read": min(len(records), GRAPHS_READ),
        "places": places,
        "known": explanation(context, model, layer=layer, feature=feature),
    }


def _firing(
    graph: AttributionGraph, labels: dict[int, Label], layer: int, feature: int
) -> list[list[Any]]:
    """(position, activation, gradient contrast or None) at every position it fires at."""
    index = graph.firing(layer, feature)
    contrast = torch.full((len(index),), torch.nan)
    if graph.gradient is not None and len(index):
        with contextlib.suppress(RequestError):  # without a contrast its figure is not known
            weights = Contrast.from_labels(labels).over(graph.targets.token_ids)
            contrast = weights @ graph.gradient[:, index].double()
    return [
        [position, activation, finite(value)]
        for position, activation, value in zip(
            graph.active[index, 1].tolist(),
            graph.activations[index].tolist(),
            contrast.tolist(),
            strict=True,
        )
    ]


def explanation(
    context: AppContext, model: ModelName, *, layer: int, feature: int
) -> dict[str, Any]:
    """``label``, ``promoted`` and ``suppressed`` tokens of a feature; null where unknown.

    The label is one that `features explain` stored; nothing is fetched and no model loaded here:
    tokens are read off the files. ``why`` says why there are none.
    """
    why = None
    try:
        tokens = _tokens(context, model, FeatureId(layer, feature))
    except EmCircuitsError as error:
        tokens, why = None, f"Promoted tokens are not known: {error}"
    return {
        "why": why,
        "label": _label(context, layer, feature),
        "promoted": None if tokens is None else [[t.text, t.value] for t in tokens.promoted],
        "suppressed": None if tokens is None else [[t.text, t.value] for t in tokens.suppressed],
    }


def _label(context: AppContext, layer: int, feature: int) -> str | None:
    named = context.settings.neuronpedia
    if named is None:
        return None
    cache = context.work.results / "neuronpedia"
    try:
        return NeuronpediaLabels(LabelSource.parse(named), cache, online=False).of(
            FeatureId(layer, feature)
        )
    except RequestError:
        return None


def _tokens(context: AppContext, name: ModelName, feature: FeatureId) -> Promoted:
    """Tokens that a feature promotes.

    Raises:
        EmCircuitsError: If the files do not say.
    """
    work = context.work
    pair = work.loaded_pair
    if pair is None:
        return promoted_from_files(work.locate(), work.tokenizer, feature)
    model = pair.model(name)
    if feature.layer >= model.sites.n_layers:
        raise RequestError(f"there are layers 0 to {model.sites.n_layers - 1}")
    if feature.feature >= model.dictionaries[feature.layer].width:
        raise RequestError(f"layer {feature.layer} has no feature {feature.feature}")
    return promoted_tokens(model, feature)
