"""Requests that the viewer's own pages did not send, in a browser with a session, are refused."""

from __future__ import annotations

import json
import os

import pytest
from rooms import Room
from starlette.testclient import TestClient

from em_circuits.viewer import ViewerSettings
from em_circuits.viewer.guard import POLICY

PAGES = ("/", "/prompts", "/fragments/overview")


@pytest.mark.parametrize("path", [*PAGES, "/api/nothing", "/nothing"])
@pytest.mark.parametrize("cookie", [None, "", "wrong", "a" * 43])
def test_nothing_is_shown_without_a_session(
    stranger: TestClient, path: str, cookie: str | None
) -> None:
    if cookie is not None:
        stranger.cookies.set("em-circuits-8765", cookie)
    answer = stranger.get(path)
    assert answer.status_code == 401
    assert "Peanut" not in answer.text


@pytest.mark.parametrize("token", ["", "wrong", "%00", "a" * 5000])
def test_a_wrong_token_lets_nobody_in(stranger: TestClient, token: str) -> None:
    answer = stranger.get(f"/?token={token}")
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


def test_a_link_lets_one_browser_in_once(room: Room) -> None:
    token = room.sessions.new_link()
    first, second = room.client(let_in=False), room.client(let_in=False)
    answer = first.get(f"/?token={token}", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and token.lower() not in cookie
    assert first.get("/").status_code == 200
    assert second.get(f"/?token={token}").status_code == 401


def test_a_browser_that_is_in_leaves_a_second_link_for_another(
    room: Room, client: TestClient
) -> None:
    token = room.sessions.new_link()
    assert client.get(f"/?token={token}").status_code == 200
    assert room.client(let_in=False).get(f"/?token={token}").status_code == 200


def test_a_token_counts_on_the_first_page_only(room: Room, stranger: TestClient) -> None:
    token = room.sessions.new_link()
    assert stranger.get(f"/prompts?token={token}").status_code == 401
    assert stranger.post(f"/?token={token}").status_code == 401
    assert stranger.get(f"/?token={token}").status_code == 200


def test_a_page_makes_a_link_for_another_browser(room: Room, client: TestClient) -> None:
    url = client.post("/api/link", json={}).json()["url"]
    assert room.client(let_in=False).get(url).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "", "a b", "[::1", "@"]
)
@pytest.mark.parametrize("path", ["/", "/static/style.css", "/api/me"])
def test_another_host_name_is_refused(client: TestClient, host: str, path: str) -> None:
    assert client.get(path, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["localhost:8765", "LOCALHOST", "127.0.0.1:9000", "[::1]:8765"])
def test_this_machines_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/static/style.css", headers={"Host": host}).status_code == 200


def test_a_further_name_is_answered_once_allowed(room: Room) -> None:
    named = room.client(ViewerSettings(allowed_hosts=("box.lan",)))
    assert named.get("/static/style.css", headers={"Host": "Box.lan:8765"}).status_code == 200
    assert named.get("/static/style.css", headers={"Host": "other.lan"}).status_code == 400


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "http://127.0.0.1:9999",
        "https://127.0.0.1:8765",
        "http://localhost:8765",
        "http://127.0.0.1:8765.evil.example",
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_write_from_elsewhere_is_refused(
    client: TestClient, origin: str | None, method: str
) -> None:
    del client.headers["Origin"]
    headers = {} if origin is None else {"Origin": origin}
    answer = client.request(method, "/api/me", json={"name": "mallory"}, headers=headers)
    assert answer.status_code == 403
    assert "mallory" not in client.get("/").text


@pytest.mark.parametrize("method", ["OPTIONS", "TRACE", "PATCH", "CONNECT"])
def test_other_methods_are_refused_and_no_cors_is_granted(client: TestClient, method: str) -> None:
    answer = client.request(method, "/api/me", headers={"Origin": "http://evil.example"})
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_read_only_refuses_every_write(reader: TestClient) -> None:
    assert reader.get("/").status_code == 200
    for path in ("/api/me", "/api/link", "/api/nothing"):
        assert reader.post(path, json={"name": "bob"}).status_code == 403


def test_a_body_beyond_the_limit_is_refused_whatever_its_length_says(client: TestClient) -> None:
    big = json.dumps({"name": "x" * (300 << 10)})
    kind = {"Content-Type": "application/json"}
    assert client.post("/api/me", content=big, headers=kind).status_code == 413
    assert client.post("/api/me", content=iter([big.encode()]), headers=kind).status_code == 413
    answer = client.post("/api/me", content="{}", headers={**kind, "Content-Length": "-5"})
    assert answer.status_code == 413


@pytest.mark.parametrize("body", ["", "[]", "nope", '{"name": 5}', '{"name": true}', "[" * 100_000])
def test_a_body_that_is_not_understood_changes_nothing(client: TestClient, body: str) -> None:
    answer = client.post("/api/me", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    as_text = {"Content-Type": "text/plain"}
    plain = client.post("/api/me", content='{"name": "eve"}', headers=as_text)
    assert plain.status_code == 415


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/static/style.css", "/static/nothing.js"])
def test_every_answer_carries_the_policy(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["content-security-policy"] == POLICY
    assert "unsafe" not in POLICY and "http" not in POLICY and "*" not in POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_an_unexpected_error_keeps_the_headers_and_reveals_nothing(
    room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(room.store.queries), "counts", broken)
    answer = client.get("/")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/static/../guard.py",
        "/static/%2e%2e/guard.py",
        "/static/..%2fguard.py",
        "/static/%2e%2e%2f%2e%2e%2f%2e%2e%2fpyproject.toml",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/....//guard.py",
        "/static/..\\guard.py",
        "/static/style.css%00.js",
        "/prompt/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text and "class Guard" not in answer.text


def test_no_symbolic_link_leads_out(room: Room, client: TestClient) -> None:
    from em_circuits.viewer.app import STATIC

    assert not [path for path in STATIC.rglob("*") if path.is_symlink()]
    secret = room.root / "secret.txt"
    secret.write_text("secret")
    os.symlink(secret, room.root / "results" / "report.html")
    assert "secret" not in client.get("/static/../results/report.html").text
