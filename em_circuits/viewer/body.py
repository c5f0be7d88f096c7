"""Request bodies and queries: JSON only, which a form of another site cannot send by itself."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request

_Value = TypeVar("_Value")


async def json_body(request: Request) -> dict[str, Any]:
    """The object in a request's body.

    Raises:
        HTTPException: 415 for another content type, 400 if it is no JSON object.
    """
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        raise HTTPException(415, "Send application/json.")
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The body is not JSON.") from error
    if not isinstance(value, dict):
        raise HTTPException(400, "The body must be a JSON object.")
    return value


def field(body: dict[str, Any], name: str, kind: type[_Value]) -> _Value:
    """One field of it.

    Raises:
        HTTPException: 400 if it is missing or of another kind.
    """
    value = body.get(name)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise HTTPException(400, f"The field {name!r} must be of type {kind.__name__}.")
    return value


def query_int(request: Request, name: str, default: int, *, least: int, most: int) -> int:
    """A whole number of the query, clamped to bounds; the default if it is no number."""
    try:
        value = int(request.query_params.get(name, default))
    except ValueError:
        value = default
    return min(max(value, least), most)


def query_share(request: Request, name: str, default: float) -> float:
    """A share between 0 and 1 of the query; what is no number is the default."""
    try:
        value = float(request.query_params.get(name, default))
    except ValueError:
        value = default
    return min(max(value, 0.0), 1.0) if value == value else default
