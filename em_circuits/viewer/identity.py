"""Identity of a browser, and links for other browsers."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.body import field, json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError

LONGEST_NAME = 64


def routes(context: AppContext) -> list[BaseRoute]:
    """``POST /api/me`` says who one is, ``/api/link`` makes a link for another browser, and
    ``/api/looks`` shows what judges say of prompts that one has yet to answer, or hides it."""

    async def me(request: Request) -> Response:
        name = field(await json_body(request), "name", str).strip()
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise RequestError(f"a name has 1 to {LONGEST_NAME} printable characters")
        session = context.session(request)
        session.reviewer, session.shows_judge = name, False
        return Json({"name": name})

    async def looks(request: Request) -> Response:
        context.session(request).shows_judge = field(await json_body(request), "looks", bool)
        return Json({"looks": context.session(request).shows_judge})

    async def link(request: Request) -> Response:
        answer: dict[str, Any] = {"url": f"{request.base_url}?token={context.sessions.new_link()}"}
        return Json(answer)

    return [
        Route("/api/me", me, methods=["POST"]),
        Route("/api/looks", looks, methods=["POST"]),
        Route("/api/link", link, methods=["POST"]),
    ]
