"""Reviewers on a shared server: each link is one name; nobody posts as another or a judge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rooms import JUDGE, Room
from starlette.testclient import TestClient

from em_circuits.cli.app import run
from em_circuits.viewer import Sessions
from em_circuits.viewer.identity import read_reviewers
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import HUMAN, LabelEvent


@pytest.fixture
def shared(room: Room) -> Room:
    """The room of three reviewers."""
    return replace(room, sessions=Sessions("", reviewers=("ada", "bob", "zoë")))


def browser_of(room: Room, name: str) -> TestClient:
    client = room.client(let_in=False)
    assert client.get(f"/?token={room.sessions.link_of(name)}").status_code == 200
    return client


def answer_one(client: TestClient) -> dict[str, Any]:
    """Label one token of the next item."""
    state = client.post("/api/review", json={"do": "next"}).json()
    token = state["question"]["merged"][0]["token_id"]
    asked = {"do": "label", "labels": {str(token): "evil"}, "item": state["question"]["item"]}
    answer = client.post("/api/review", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(room: Room) -> list[LabelEvent]:
    found = (room.store.labels.events(prompt.prompt_id) for prompt in room.prompts)
    return [event for several in found for event in several if event.author_kind == "human"]


def test_each_link_is_one_name_in_any_number_of_browsers(shared: Room) -> None:
    for name in ("ada", "bob", "zoë", "ada"):
        assert answer_one(browser_of(shared, name))["reviewer"] == name
    assert {event.author for event in events(shared)} == {"ada", "bob", "zoë"}


@pytest.mark.parametrize("name", ["bob", "Ada", "ada ​", HUMAN, JUDGE, "import"])
def test_nobody_posts_as_another_or_as_a_judge(shared: Room, name: str) -> None:
    client = browser_of(shared, "ada")
    assert client.post("/api/me", json={"name": name}).status_code in (403, 404)
    for extra in ({"reviewer": name}, {"author": name}, {"author_kind": "judge"}):
        answer = client.post("/api/review", json={"do": "next", **extra})
        assert answer.status_code in (200, 404) and "Traceback" not in answer.text
    assert answer_one(client)["reviewer"] == "ada"
    assert {(event.author, event.author_kind) for event in events(shared)} == {("ada", "human")}


def test_a_person_alone_takes_no_judges_name_either(room: Room, client: TestClient) -> None:
    for name in (JUDGE, HUMAN):
        assert client.post("/api/me", json={"name": name}).status_code == 404
    assert client.post("/api/me", json={"name": "bob"}).status_code == 200


def test_a_forged_link_lets_nobody_in(shared: Room) -> None:
    token = shared.sessions.link_of("ada")
    name, _, signature = token.partition(".")
    other = Sessions("", reviewers=("ada", "bob")).link_of("ada")
    bob = shared.sessions.link_of("bob").partition(".")[0]
    eve = shared.sessions.link_of("eve")  # rightly signed, but not in the file
    forged = [f"{bob}.{signature}", name, f"{name}.", token[:-1], token + "0", other, eve, "%C3.x"]
    for one in forged:
        answer = shared.client(let_in=False).get("/", params={"token": one})
        assert answer.status_code == 401, one


def test_another_reviewer_at_the_same_browser_is_that_reviewer(shared: Room) -> None:
    client = browser_of(shared, "ada")
    assert answer_one(client)["reviewer"] == "ada"
    client.get(f"/?token={shared.sessions.link_of('bob')}")
    assert answer_one(client)["reviewer"] == "bob"


def test_a_link_for_another_browser_has_the_same_name(shared: Room) -> None:
    url = browser_of(shared, "bob").post("/api/link", json={}).json()["url"]
    other = shared.client(let_in=False)
    assert other.get(url).status_code == 200
    assert answer_one(other)["reviewer"] == "bob"


def test_a_file_of_names_is_read_and_what_is_wrong_named(tmp_path: Path) -> None:
    file = tmp_path / "reviewers.txt"
    file.write_text("# ours\nada\n\n  Bob Ä. \n", encoding="utf-8")
    assert read_reviewers(file) == ("ada", "Bob Ä.")
    bad = {
        b"ada\nADA\n": "line 2: 'ADA' stands there twice",
        b"ada\n" + b"x" * 65: "line 2: a name has 1 to 64",
        b"a\x1bda\n": "line 1: a name",
        b"# none\n": "no name in it",
        b"\xff\xfe\x00": "not UTF-8",
    }
    for data, said in bad.items():
        file.write_bytes(data)
        with pytest.raises(RequestError, match=said):
            read_reviewers(file)
    with pytest.raises(RequestError, match="No such file"):
        read_reviewers(tmp_path / "none.txt")


def test_the_command_refuses_two_answers_and_a_judge(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "reviewers.txt"
    file.write_text("ada\n")
    serve = ["--root", str(room.root), "serve", "--port", "0", "--reviewers", str(file)]
    assert run([*serve, "--reviewer", "bob"]) == 2
    assert "--reviewer and --reviewers" in capsys.readouterr().err
    file.write_text(f"ada\n{JUDGE}\n")
    assert run(serve) == 2
    assert "judge's name" in capsys.readouterr().err
