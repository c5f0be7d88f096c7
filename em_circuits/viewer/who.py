"""Whose work is it, and how does another browser get in?"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.body import field, read_json
from em_circuits.viewer.desk import Desk
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError

LONGEST_NAME = 64


def routes(desk: Desk) -> list[BaseRoute]:
    """``POST /api/me`` says who one is, ``POST /api/link`` makes a link for another browser."""

    async def me(request: Request) -> Response:
        name = field(await read_json(request), "name", str).strip()
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise RequestError(f"a name has 1 to {LONGEST_NAME} printable characters")
        desk.session(request).reviewer = name
        return Json({"name": name})

    async def link(request: Request) -> Response:
        made: dict[str, Any] = {"url": f"{request.base_url}?token={desk.door.new_link()}"}
        return Json(made)

    return [
        Route("/api/me", me, methods=["POST"]),
        Route("/api/link", link, methods=["POST"]),
    ]
