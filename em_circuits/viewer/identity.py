"""Identity of a browser, and links for other browsers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.viewer.body import field, json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.browsing import Browsing
from pivotal_tokens.review.service import require_no_judge

LONGEST_NAME = 64


def require_name(name: str) -> None:
    """Refuse what is no name of a reviewer.

    Raises:
        RequestError: If it is empty, too long or not printable.
    """
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise RequestError(f"a name has 1 to {LONGEST_NAME} printable characters")


def read_reviewers(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line; empty lines and those that begin with ``#`` are none.

    Raises:
        RequestError: If it cannot be read, has none, or has one that is none or stands there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"--reviewers {path}: {reason}") from error
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        try:
            require_name(name)
        except RequestError as error:
            raise RequestError(f"--reviewers {path}, line {number}: {error}") from error
        if name.casefold() in map(str.casefold, names):
            raise RequestError(f"--reviewers {path}, line {number}: {name!a} stands there twice")
        names.append(name)
    if not names:
        raise RequestError(f"--reviewers {path}: no name in it; write one a line")
    return tuple(names)


def routes(context: AppContext) -> list[BaseRoute]:
    """``POST /api/me`` says who one is, ``/api/link`` makes a link for another browser, and
    ``/api/browsing`` shows what judges say of prompts that one has yet to answer, or hides it."""

    async def me(request: Request) -> Response:
        name = field(await json_body(request), "name", str).strip()
        require_name(name)
        session = context.session(request)
        if session.signed and name != session.reviewer:
            raise HTTPException(
                403, f"Your link is {session.reviewer}'s: open {name}'s to review as {name}."
            )
        require_no_judge(context.store, name)
        session.reviewer = name
        return Json({"name": name})

    async def browsing(request: Request) -> Response:
        chosen = field(await json_body(request), "unblinded", bool)
        name = context.session(request).reviewer
        Browsing.of(context.store, name).choosing(context.store, name, unblinded=chosen)
        return Json({"unblinded": chosen})

    async def link(request: Request) -> Response:
        sessions, session = context.sessions, context.session(request)
        token = sessions.link_of(session.reviewer) if session.signed else sessions.new_link()
        answer: dict[str, Any] = {"url": f"{request.base_url}?token={token}"}
        return Json(answer)

    return [
        Route("/api/me", me, methods=["POST"]),
        Route("/api/browsing", browsing, methods=["POST"]),
        Route("/api/link", link, methods=["POST"]),
    ]
