"""The viewer as one ASGI application.

app = create_app(Workspace(root=Path("."), models=settings), ViewerSettings(), Sessions("ada"))
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from em_circuits.viewer import (
    features,
    graphs,
    identity,
    overview,
    pins,
    playground,
    prompts,
    reports,
    review,
    steering,
)
from em_circuits.viewer.auth import Sessions
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.guard import Guard
from em_circuits.viewer.rendering import Json
from em_circuits.viewer.settings import ViewerSettings
from em_circuits.workspace import Workspace
from pivotal_tokens.errors import EmCircuitsError, LeaseLost, RequestError

logger = logging.getLogger(__name__)

PARTS = (identity, overview, prompts, graphs, pins, features, steering, playground, review, reports)
STATIC = Path(__file__).parent / "static"


def create_app(work: Workspace, settings: ViewerSettings, sessions: Sessions) -> ASGIApp:
    """The application."""
    context = AppContext(work, settings, sessions)
    failed = _failed(context)
    inner = Starlette(
        routes=[
            *(one for part in PARTS for one in part.routes(context)),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        exception_handlers={EmCircuitsError: failed, HTTPException: failed, Exception: failed},
    )
    return Guard(
        inner, settings=settings, sessions=sessions
    )  # outermost: its headers are on every answer


def _failed(context: AppContext) -> Any:
    """What is shown when a request cannot be carried out."""

    def answer(request: Request, error: Exception) -> Response:
        status, what = _said(error)
        if status == 500 and not isinstance(error, EmCircuitsError):
            logger.error("%s %s", request.method, request.url.path, exc_info=error)
        first, _, rest = what.partition("; ")
        if request.url.path.startswith("/api/"):
            return Json({"error": first, "next": rest}, status)
        if request.scope.get("state", {}).get("session") is None:
            return Response(first, status, media_type="text/plain")
        return context.page(
            request, "error.html", status, status=status, what=first, next_step=rest
        )

    return answer


def _said(error: Exception) -> tuple[int, str]:
    match error:
        case LeaseLost():
            return 409, str(error)
        case RequestError():
            return 404, str(error)
        case EmCircuitsError():
            return 500, str(error)
        case HTTPException(status_code=404):
            return 404, "There is no such page; the navigation above shows what there is"
        case HTTPException(status_code=status, detail=detail):
            return status, detail
    return 500, "Something went wrong that should not have; the server's terminal says what"
