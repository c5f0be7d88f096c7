"""What a person keeps on graphs: pins, groups, places and labels.

Pins, groups and places are of one prompt's graphs, by node name, so that they are the same in base
and merged. A label is of a feature wherever it fires under a pair of models: ``2/431``, or
``down_proj:1/0`` for a rank of an adapter.

    pins_of(store, "ada", prompt_id).pinned
    node_labels_of(store, "ada", pair)["2/431"]
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from em_circuits.graphs.graph import AttributionGraph, NodeName
from em_circuits.graphs.viewer_json import GraphNotes, NodeGroup, notes_of
from em_circuits.viewer.body import field, json_body
from em_circuits.viewer.context import AppContext
from em_circuits.viewer.rendering import Json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import Frozen
from pivotal_tokens.store import Store

_MODULE = r"(?:[a-z][a-z0-9_]{0,40}:)?"
NODE = re.compile(
    rf"{_MODULE}\d{{1,9}}/\d{{1,9}}/\d{{1,9}}|error:\d{{1,9}}/\d{{1,9}}|token:\d{{1,9}}|logit:\d{{1,9}}",
    re.ASCII,
)
FEATURE = re.compile(rf"{_MODULE}\d{{1,9}}/\d{{1,9}}", re.ASCII)
LONGEST_LABEL = 200
MOST_LABELS = 5000


class Supernode(Frozen):
    """A supernode: nodes that are taken together."""

    name: str = Field(min_length=1, max_length=60)
    members: list[str] = Field(max_length=500)
    folded: bool = False


class Pins(Frozen):
    """Pinned nodes and groups, and where a person put them in the view of these alone."""

    pinned: list[str] = Field(default_factory=list, max_length=500)
    groups: list[Supernode] = Field(default_factory=list, max_length=100)
    places: dict[str, tuple[float, float]] = Field(default={}, max_length=600)
    """Node or group -> (x, y) in the drawing's units."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every node that is pinned or in a group."""
        grouped = (member for group in self.groups for member in group.members)
        return tuple(dict.fromkeys([*self.pinned, *grouped]))


def routes(context: AppContext) -> list[BaseRoute]:
    """``/api/pins/PROMPT`` and ``/api/node-labels``, of whoever asks."""

    def read(request: Request) -> Response:
        prompt = context.store.prompts.get(request.path_params["prompt"])
        name = context.session(request).reviewer
        return Json(shown_pins(context, name, prompt.prompt_id).model_dump())

    async def write(request: Request) -> Response:
        pins = checked(await json_body(request))
        prompt = context.store.prompts.get(request.path_params["prompt"])
        name = context.session(request).reviewer
        context.store.views.save(name, f"graph:{prompt.prompt_id}", pins.model_dump())
        return Json({"saved": True})

    def labels(request: Request) -> Response:
        pair = context.known_pair(request)
        return Json(node_labels_of(context.store, context.session(request).reviewer, pair))

    async def label(request: Request) -> Response:
        body = await json_body(request)
        feature, text = field(body, "feature", str), field(body, "text", str).strip()
        if not FEATURE.fullmatch(feature):
            raise HTTPException(400, f"{feature[:40]!r} is no feature: LAYER/ID.")
        if len(text) > LONGEST_LABEL:
            raise RequestError(f"a label has at most {LONGEST_LABEL} characters")
        pair, name = context.known_pair(request), context.session(request).reviewer
        known = node_labels_of(context.store, name, pair)
        known |= {feature: text}
        known = {key: value for key, value in known.items() if value}
        if len(known) > MOST_LABELS:
            raise RequestError(f"{MOST_LABELS} features have labels; remove one first")
        context.store.views.save(name, f"labels:{pair}", known)
        return Json(known)

    return [
        Route("/api/pins/{prompt}", read, methods=["GET"]),
        Route("/api/pins/{prompt}", write, methods=["PUT"]),
        Route("/api/node-labels", labels, methods=["GET"]),
        Route("/api/node-labels", label, methods=["PUT"]),
    ]


def pins_of(store: Store, person: str, prompt_id: str) -> Pins | None:
    """What a person pinned in a prompt's graphs; None where they saved nothing."""
    saved = store.views.get(person, f"graph:{prompt_id}")
    return None if saved is None else Pins.model_validate(saved)


def shown_pins(context: AppContext, person: str, prompt_id: str) -> Pins:
    """The same, and until they save some those that the graphs came with."""
    saved = pins_of(context.store, person, prompt_id)
    return imported_pins(context, prompt_id) if saved is None else saved


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
    return [name for name in names if NODE.fullmatch(name)][:500]


def node_labels_of(store: Store, person: str, pair: str) -> dict[str, str]:
    """Feature -> what a person calls it."""
    return store.views.get(person, f"labels:{pair}") or {}


def notes_for(store: Store, person: str, graph: AttributionGraph) -> GraphNotes:
    """What a graph came with, and what a person pinned, grouped and labelled."""
    header, notes = graph.header, notes_of(graph.header)
    records = store.graphs.all(header.prompt_id)
    pair = next((one.pair for one in records if one.key == header.key), "")
    pins = pins_of(store, person, header.prompt_id) or Pins()
    labels = node_labels_of(store, person, pair)
    own = {
        str(place): labels[feature_key(place)]
        for place in graph.names(graph.selected_features)
        if feature_key(place) in labels
    }
    groups = (NodeGroup(name=g.name, members=tuple(g.members)) for g in pins.groups)
    return notes.model_copy(
        update={
            "labels": notes.labels | own,
            "pinned": tuple(dict.fromkeys((*notes.pinned, *pins.pinned))),
            "groups": (*notes.groups, *groups),
        }
    )


def feature_key(place: NodeName) -> str:
    """The name of a node's feature wherever it fires."""
    return f"{place.module and place.module + ':'}{place.layer}/{place.id}"


def checked(body: dict[str, Any]) -> Pins:
    """The pins in a request's body.

    Raises:
        HTTPException: 400 if they are none, or name what cannot be a node.
    """
    try:
        pins = Pins.model_validate(body)
    except ValidationError as error:
        raise HTTPException(400, f"These are no pins: {error.errors()[0]['msg']}.") from error
    groups = {group.name for group in pins.groups}
    for name in [*pins.names, *(place for place in pins.places if place not in groups)]:
        if not NODE.fullmatch(name):
            raise HTTPException(400, f"{name[:40]!r} names no node.")
    return pins
