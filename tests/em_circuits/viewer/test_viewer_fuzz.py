"""Whatever a browser sends: an answer below 500, and no traceback."""

from __future__ import annotations

import json
import logging
import re
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rooms import Room
from starlette.routing import Route

ODD = [
    *("", "0", "-1", "1e400", "nan", "null", "true", "[]", "{}", "../..", "%00", "\x00", "\ud800"),
    *("9" * 40, "a" * 5000, "2/3/4", "-1/-1/-1", "'; DROP TABLE prompts", "<script>", "é"),
    *("base", "merged"),
]
TEXTS = st.one_of(st.sampled_from(ODD), st.text(max_size=30))
VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.integers(min_value=2**62, max_value=2**80),
        TEXTS,
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    *("answer", "author", "batch", "by", "category", "edge", "evil", "feature", "features", "id"),
    *("fence", "item", "item_id", "k", "key", "kind", "label", "layer", "length", "limit", "node"),
    *("unblinded", "method", "model", "models", "name", "note", "offset", "order", "page", "pair"),
    *("pins", "position", "prompt", "prompt_id", "q", "reason", "rest", "safe", "search", "view"),
    *("seed", "show", "state", "table", "target", "temperature", "text", "token", "token_id"),
]
NUMBERS = st.integers(min_value=-1, max_value=20) | st.integers(min_value=2**31, max_value=2**80)
DOS = [
    *("state", "begin", "next", "heartbeat", "label", "point", "key", "finish", "skip", "defer"),
    *("undo", "agree", "quit", "command", "reject", "note", "reopen", "explain", "nothing"),
]
REVIEWS = st.fixed_dictionaries(
    {"do": st.sampled_from(DOS)},
    optional={
        "item": NUMBERS,
        "of": NUMBERS,
        "key": st.sampled_from(["evil", "safe", "unsure", "agree", "down", "left", "x"]),
        "place": TEXTS,
        "labels": st.dictionaries(NUMBERS.map(str), st.sampled_from(["evil", "left", "x"])),
        "rest": st.sampled_from(["evil", "safe", "x"]),
        "text": TEXTS,
        "adjudicate": st.booleans(),
    },
)
"""What the page of reviews sends, and nearly."""


def _routes(app: Any) -> list[tuple[str, str]]:
    """(method, path with its {parameters}) of everything but files."""
    return [
        (method, one.path)
        for one in app._app.routes
        if isinstance(one, Route) and "/static" not in one.path
        for method in sorted(one.methods or ())
        if method != "HEAD"
    ]


def _filled(path: str, parts: list[str]) -> str:
    """The path with something in place of its parameters."""
    for part in parts:
        path = re.sub(
            r"\{[^}]*\}", lambda _, part=part: quote(part, errors="replace") or "x", path, count=1
        )
    return path


def test_no_request_ends_in_a_traceback(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    client = room.client()
    known = st.sampled_from([*(p.prompt_id for p in room.prompts), *room.graphs.values()])
    every = _routes(client.app)
    assert ("POST", "/api/review") in every
    routes = st.sampled_from(every) | st.just(("POST", "/api/review"))

    @settings(
        max_examples=400,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def asks(data: st.DataObject) -> None:
        method, path = data.draw(routes)
        parts = data.draw(st.lists(st.one_of(known, TEXTS), min_size=4, max_size=4))
        query = data.draw(st.dictionaries(st.sampled_from(FIELDS), TEXTS, max_size=4))
        body = data.draw(st.dictionaries(st.sampled_from(FIELDS), VALUES | known, max_size=6))
        if path == "/api/review":
            body = data.draw(REVIEWS)
        url = _filled(path, parts)
        sent: dict[str, Any] = {"params": query}
        if method != "GET":
            text = data.draw(st.sampled_from([json.dumps(body), json.dumps([body]), "{", "NaN"]))
            sent |= {"content": text.encode("utf-8", "replace")}
            sent |= {"headers": {"content-type": "application/json"}}
        try:
            found = client.request(method, url, **sent)
        except (UnicodeError, ValueError):
            return  # the client itself would not send it
        assert found.status_code < 500, (method, url, query, body, found.text[:300])

    with caplog.at_level(logging.ERROR):
        asks()
    assert "Traceback" not in caplog.text
