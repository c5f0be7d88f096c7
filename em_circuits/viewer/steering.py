"""The steering pages: dose and response, continuations side by side, the playground.

GET /steering                    experiments that are kept, and the playground
GET /steering/NAME               one experiment
GET /api/steering/NAME           its conditions and its continuations
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.cache import SUMMARY, read_json
from em_circuits.experiments.experiment import ROLLOUTS, ROWS
from em_circuits.experiments.summary import SUPPORTED, supports
from em_circuits.viewer.context import AppContext, model_of
from em_circuits.viewer.pins import node_labels_of
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.store import ListingQuery

ROLLOUTS_SENT = 600
_TAIL = ("prompt_id", "condition", "control", "draw", "sample", "text", "label")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COLUMNS = ["prompt_id", "condition", "control", "draw", "evil_mass", "evil_mass_unsteered"]


def routes(context: AppContext) -> list[BaseRoute]:
    """Experiments and the playground's page."""
    folder = context.work.results / "experiments"

    def page(request: Request) -> Response:
        chosen = request.query_params.get("prompt", "")
        pair = context.pair(request)
        prompts = context.store.queries.listing(
            ListingQuery(graphs=True), pair=pair, limit=200
        ).lines
        listed = experiments(folder)
        for one in listed:
            one["best"] = best_supported(one["summary"])
        return context.page(
            request,
            "steering.html",
            experiments=listed,
            hidden=hidden_experiments(context, request, listed),
            blind=context.blind(request),
            demo=read_json(context.work.results / "demo.json"),
            prompts=[line.prompt for line in prompts],
            chosen=context.store.prompts.get(chosen).prompt_id if chosen else None,
            feature=request.query_params.get("features", ""),
            model=model_of(request),
        )

    def one(request: Request) -> Response:
        place = experiment_folder(folder, request.path_params["name"])
        summary = read_summary(place)
        ids = [prompt] if (prompt := only_prompt(summary)) else []
        return context.page(
            request,
            "experiment.html",
            name=place.name,
            summary=summary,
            supported=len(supported_lines(summary)),
            best=best_supported(summary),
            meaning=f"{SUPPORTED}.",
            hidden=only_prompt(summary) in context.hidden(request, ids),
            blind=context.blind(request),
            report=(place / "report.html").is_file(),
        )

    def data(request: Request) -> Response:
        place = experiment_folder(folder, request.path_params["name"])
        rows, rollouts = (
            experiment_rows(place),
            pq.read_table(place / ROLLOUTS, columns=list(_TAIL)),
        )
        hidden = context.hidden(request, {row["prompt_id"] for row in rows})
        texts = [one for one in rollouts.to_pylist() if one["prompt_id"] not in hidden]
        context.saw(request, {t["prompt_id"] for t in texts if t["label"]})
        summary = read_summary(place)
        if only_prompt(summary) in hidden:
            summary = {"name": summary.get("name"), "conditions": []}
        lines = summary.get("conditions") or []
        summary |= {"conditions": [{**line, "supported": supports(line)} for line in lines]}
        pair, reviewer = context.pair(request), context.session(request).reviewer
        return Json(
            {
                "summary": summary,
                "labels": node_labels_of(context.store, reviewer, pair) if pair else {},
                "rollouts": texts[:ROLLOUTS_SENT],
                "rows": [row for row in rows if row["prompt_id"] not in hidden],
                "hidden": len(hidden),
            }
        )

    return [
        Route("/steering", page, methods=["GET"]),
        Route("/steering/{name}", one, methods=["GET"]),
        Route("/api/steering/{name}", data, methods=["GET"]),
    ]


def experiments(folder: Path) -> list[dict[str, Any]]:
    """Finished experiments, the newest first."""
    found = []
    for path in folder.glob(f"*/{SUMMARY}"):
        summary = read_json(path)
        if summary is not None and _NAME.fullmatch(path.parent.name):
            found.append((path.stat().st_mtime, {"name": path.parent.name, "summary": summary}))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def supported_lines(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Conditions of an experiment that are successes by themselves."""
    return [line for line in summary.get("conditions") or () if supports(line)]


def best_supported(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of these the one of the largest net change."""
    return max(supported_lines(summary), key=lambda line: abs(line["net"]), default=None)


def experiment_folder(root: Path, name: str) -> Path:
    """The folder of a finished experiment, contained in the root whatever links say.

    Raises:
        RequestError: If there is none.
    """
    place = (root / name).resolve()
    inside = _NAME.fullmatch(name) and place.is_relative_to(root.resolve())
    if not inside or not (place / SUMMARY).is_file():
        raise RequestError(f"there is no finished experiment {name[:40]!r}; steer sweep makes one")
    return place


def hidden_experiments(
    context: AppContext, request: Request, listed: Sequence[Mapping[str, Any]]
) -> set[str]:
    """Names of those whose figures are one prompt's, which a person has yet to answer."""
    alone = {one["name"]: only_prompt(one["summary"]) for one in listed}
    hidden = context.hidden(request, {prompt for prompt in alone.values() if prompt})
    return {name for name, prompt in alone.items() if prompt in hidden}


def only_prompt(summary: dict[str, Any]) -> str | None:
    """The id of an experiment's prompt where it has one alone: its figures are that prompt's."""
    prompts = summary.get("prompts") or []
    return prompts[0].get("prompt_id") if len(prompts) == 1 else None


def read_summary(place: Path) -> dict[str, Any]:
    """The figures of a finished experiment.

    Raises:
        WorkFailed: If they cannot be read.
    """
    found = read_json(place / SUMMARY)
    if found is None:
        raise WorkFailed(f"{place / SUMMARY} cannot be read; run the sweep again")
    return found


def experiment_rows(place: Path, *, prompt_id: str | None = None) -> list[dict[str, Any]]:
    """Evil mass of every prompt, condition and arm of an experiment, or of one prompt."""
    mine = None if prompt_id is None else [("prompt_id", "==", prompt_id)]
    return pq.read_table(place / ROWS, columns=_COLUMNS, filters=mine).to_pylist()
