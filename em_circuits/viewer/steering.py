"""What did steering do: dose and response, continuations side by side, and a place to try?

GET /steering                    experiments that are kept, and the playground
GET /steering/NAME               one experiment
GET /api/steering/NAME           its conditions and its continuations
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.experiments.records import ROLLOUTS, ROWS, SUMMARY
from em_circuits.viewer.desk import Desk
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.store import ListingQuery

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
ROLLOUTS_SENT = 600
_TAIL = ("prompt_id", "condition", "control", "draw", "sample", "text", "label")


def routes(desk: Desk) -> list[BaseRoute]:
    """Experiments and the playground's page."""
    folder = desk.work.results / "experiments"

    def page(request: Request) -> Response:
        chosen = request.query_params.get("prompt", "")
        pair = desk.pair(request)
        prompts = desk.store.listing(ListingQuery(graphs=True), pair=pair, limit=200).lines
        return desk.page(
            request,
            "steering.html",
            experiments=experiments(folder),
            demo=_json(desk.work.results / "demo.json"),
            prompts=[line.prompt for line in prompts],
            chosen=desk.store.prompt(chosen).prompt_id if chosen else None,
            feature=request.query_params.get("features", ""),
        )

    def one(request: Request) -> Response:
        place = _folder(folder, request.path_params["name"])
        return desk.page(
            request,
            "experiment.html",
            name=place.name,
            summary=_summary(place),
            report=(place / "report.html").is_file(),
        )

    def data(request: Request) -> Response:
        place = _folder(folder, request.path_params["name"])
        rows, rollouts = _rows(place), pq.read_table(place / ROLLOUTS, columns=list(_TAIL))
        hidden = desk.hidden(request, {row["prompt_id"] for row in rows})
        texts = [one for one in rollouts.to_pylist() if one["prompt_id"] not in hidden]
        desk.session(request).shown_judge.update(t["prompt_id"] for t in texts if t["label"])
        return Json(
            {
                "summary": _summary(place),
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
        summary = _json(path)
        if summary is not None and _NAME.fullmatch(path.parent.name):
            found.append((path.stat().st_mtime, {"name": path.parent.name, "summary": summary}))
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def experiments_with(folder: Path, prompt_id: str) -> list[str]:
    """Names of the finished experiments that a prompt is in, the newest first."""
    found = []
    for name in (item["name"] for item in experiments(folder)):
        try:
            prompts = pq.read_table(_folder(folder, name) / ROWS, columns=["prompt_id"])
        except (RequestError, OSError, ValueError) as error:
            logger.warning("experiment %s cannot be read: %s", name, error)
            continue
        if prompt_id in prompts["prompt_id"].to_pylist():
            found.append(name)
    return found


def _folder(root: Path, name: str) -> Path:
    """The folder of a finished experiment, contained in the root whatever links say.

    Raises:
        RequestError: If there is none.
    """
    place = (root / name).resolve()
    inside = _NAME.fullmatch(name) and place.is_relative_to(root.resolve())
    if not inside or not (place / SUMMARY).is_file():
        raise RequestError(f"there is no finished experiment {name[:40]!r}; steer sweep makes one")
    return place


def _summary(place: Path) -> dict[str, Any]:
    found = _json(place / SUMMARY)
    if found is None:
        raise WorkFailed(f"{place / SUMMARY} cannot be read; run the sweep again")
    return found


def _json(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read: %s", path, error)
        return None
    return found if isinstance(found, dict) else None


def _rows(place: Path) -> list[dict[str, Any]]:
    columns = ["prompt_id", "condition", "control", "draw", "evil_mass", "evil_mass_unsteered"]
    return pq.read_table(place / ROWS, columns=columns).to_pylist()
