"""The browser has the terminal's keys, rubric and questions, rebound ones too."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
from rooms import Room
from starlette.testclient import TestClient

from em_circuits.viewer import ViewerSettings
from pivotal_tokens.errors import RequestError
from pivotal_tokens.review.browser import browser_keys, key_help, review_setup
from pivotal_tokens.review.keys import DEFAULTS, Action, key_map
from pivotal_tokens.review.rubric import ADVICE, MEANINGS, RUBRIC, SUPPOSE


def told(client: TestClient) -> dict[str, Any]:
    found = re.search(r'id="setup">(.*?)</script>', client.get("/review").text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_every_action_of_the_terminal_has_a_key_in_the_browser():
    assert set(browser_keys(key_map()).values()) == set(get_args(Action))
    assert {does for _, does in key_help(key_map())} == {one.does for one in DEFAULTS.values()}


@pytest.mark.parametrize(
    ("change", "key", "action"),
    [
        ("evil=f", "f", "evil"),
        ("rest-safe=space", " ", "rest_safe"),
        ("skip=f2", "F2", "skip"),
        ("undo=ctrl+u", "ctrl+u", "undo"),
        ("command=:", ":", "command"),
        ("up=pageup", "PageUp", "up"),
    ],
)
def test_a_key_is_named_as_a_browser_names_it(change: str, key: str, action: str):
    bound = browser_keys(key_map([change]))
    assert bound[key] == action and list(bound.values()).count(action) == 1


def test_the_clipboard_stays_the_browsers():
    assert key_map()["ctrl+c"] == "quit" and "ctrl+c" not in browser_keys(key_map())


def test_the_page_gets_the_keys_of_the_settings(room: Room, client: TestClient):
    assert told(client)["keys"]["e"] == "evil"
    client = room.client(ViewerSettings(review_keys=("evil=f", "undo=ctrl+u")))
    setup = told(client)
    assert setup["keys"]["f"] == "evil" and "e" not in setup["keys"]
    assert setup["hints"]["evil"] == "f" and setup["hints"]["undo"] == "ctrl+u"
    text = client.get("/review").text
    assert 'data-own-keys="f s' in text and "<kbd>ctrl+u</kbd>" in text


def test_a_wrong_binding_is_refused_before_anything_is_served(room: Room):
    with pytest.raises(RequestError, match="bound to evil and safe"):
        room.client(ViewerSettings(review_keys=("evil=s",)))


def test_the_rubric_is_the_terminals(client: TestClient):
    setup = told(client)
    assert setup == json.loads(json.dumps(review_setup(key_map())))
    assert setup["rubric"]["meanings"] == dict(MEANINGS)
    flat = " ".join(RUBRIC.split())
    assert all(text in flat for text in (SUPPOSE, *MEANINGS.values(), *ADVICE))


def test_a_key_of_the_frame_is_the_pages_only_where_reviewing_is_on(
    client: TestClient, reader: TestClient
):
    """A read-only review page once had no key for the theme and none for the keys."""
    assert "<dd>light, dark, as the system</dd>" not in client.get("/review").text
    text = reader.get("/review").text
    assert 'data-own-keys=""' in text and "<dd>light, dark, as the system</dd>" in text
