"""Pinned nodes and groups in a prompt's graphs, by person."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.graphs.viewer_json import notes_of
from em_circuits.viewer.body import json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.schema import Frozen

NODE = r"^(\d{1,9}/\d{1,9}/\d{1,9}|error:\d{1,9}/\d{1,9}|token:\d{1,9}|logit:\d{1,9})$"
SUBJECT = "graph:{}"


class Supernode(Frozen):
    """A supernode: nodes that are taken together."""

    name: str = Field(min_length=1, max_length=60)
    members: list[str] = Field(max_length=500)
    folded: bool = False


class Pins(Frozen):
    """Pinned nodes and groups, by node name, so that they are the same in base and merged."""

    pinned: list[str] = Field(default_factory=list, max_length=500)
    groups: list[Supernode] = Field(default_factory=list, max_length=100)


def routes(context: AppContext) -> list[BaseRoute]:
    """``GET`` and ``PUT /api/pins/PROMPT``, of whoever asks."""

    def read(request: Request) -> Response:
        prompt = context.store.prompts.get(request.path_params["prompt"])
        name = context.session(request).reviewer
        saved = context.store.views.get(name, SUBJECT.format(prompt.prompt_id))
        pins = imported_pins(context, prompt.prompt_id) if saved is None else Pins(**saved)
        return Json(pins.model_dump())

    async def write(request: Request) -> Response:
        pins = pins_of(await json_body(request))
        prompt = context.store.prompts.get(request.path_params["prompt"])
        name = context.session(request).reviewer
        context.store.views.save(name, SUBJECT.format(prompt.prompt_id), pins.model_dump())
        return Json({"saved": True})

    return [
        Route("/api/pins/{prompt}", read, methods=["GET"]),
        Route("/api/pins/{prompt}", write, methods=["PUT"]),
    ]


def imported_pins(context: AppContext, prompt_id: str) -> Pins:
    """What was pinned and grouped in the files of other viewers that a prompt's graphs came in."""
    pins = Pins()  # what more there is than a view holds is left out
    for header in context.work.graphs.list(prompt_id):
        notes = notes_of(header)
        groups = [
            Supernode(name=group.name[:60] or "group", members=_nodes(group.members))
            for group in notes.groups
        ]
        pins.pinned.extend(one for one in _nodes(notes.pinned) if one not in pins.pinned)
        pins.groups.extend(one for one in groups if one.members and one not in pins.groups)
    return Pins(pinned=pins.pinned[:500], groups=pins.groups[:100])


def _nodes(names: Iterable[str]) -> list[str]:
    return [name for name in names if re.fullmatch(NODE, name)][:500]


def pins_of(body: dict[str, Any]) -> Pins:
    """The pins in a request's body.

    Raises:
        HTTPException: 400 if they are none, or name what cannot be a node.
    """
    try:
        pins = Pins.model_validate(body)
    except ValidationError as error:
        raise HTTPException(400, f"These are no pins: {error.errors()[0]['msg']}.") from error
    for name in [*pins.pinned, *(member for group in pins.groups for member in group.members)]:
        if not re.fullmatch(NODE, name):
            raise HTTPException(400, f"{name[:40]!r} names no node.")
    return pins
