"""The browser reviews by the terminal's service: blind first, saved at once, undone at will."""

from __future__ import annotations

from typing import Any

import pytest
from rooms import JUDGE, PAIR, Room, unblind
from starlette.testclient import TestClient


def act(client: TestClient, **asked: Any) -> dict[str, Any]:
    answer = client.post("/api/review", json=asked)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_nothing_of_a_judge_is_shown_before_the_answer(room: Room, client: TestClient) -> None:
    answer = client.post("/api/review", json={"do": "next"})
    question = answer.json()["question"]
    assert question["labels"] == {} and len(question["missing"]) == 3
    assert JUDGE not in answer.text and "injection" not in answer.text
    assert "flagged" not in answer.text


def test_an_answer_is_saved_and_the_next_item_comes(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    item = first["item"]
    state = act(client, do="label", labels={"3": "safe"}, item=item)
    assert state["question"]["labels"] == {"3": "safe"}
    assert room.store.labels.of(first["prompt_id"]).human[0].label == "safe"
    state = act(client, do="finish", rest="unsure", item=item)
    assert state["question"]["item"] != item
    differences = {d["token_id"]: (d["human"], d["judge"]) for d in state["reveal"]["differences"]}
    assert differences == {3: ("safe", "evil"), 10: ("unsure", "safe")}
    late = client.post("/api/review", json={"do": "agree", "of": item + 1})
    assert (
        late.status_code == 409 and room.store.labels.of(first["prompt_id"]).by_token[3] == "safe"
    )
    state = act(client, do="agree", of=item)
    assert room.store.labels.of(first["prompt_id"]).by_token[3] == "evil"


def test_what_the_judge_quoted_comes_with_the_reveal_alone(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    place = (first["prompt_id"], PAIR)
    said = room.store.results.judgements_on(*place)[JUDGE]
    quoted = said.model_copy(update={"quotes": ("<b>fork</b>",)})
    room.store.results.put_judgement(PAIR, quoted)
    page = f"/prompt/{first['prompt_id']}"
    asked = client.post("/api/review", json={"do": "state"})
    assert "fork</b>" not in asked.text and "because of" not in client.get(page).text
    state = act(client, do="finish", rest="unsure", item=first["item"])
    assert state["reveal"]["quotes"] == ["<b>fork</b>"]
    shown = client.get(page).text
    assert "because of" in shown and "<b>fork</b>" not in shown


def test_undo_goes_back_over_finished_items(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    act(client, do="finish", rest="safe", item=first["item"])
    second = act(client, do="state")["question"]
    act(client, do="reject", text="no fork", item=second["item"])
    back = act(client, do="undo")["question"]
    assert back["prompt_id"] == second["prompt_id"]
    back = act(client, do="undo")["question"]
    assert back["prompt_id"] == first["prompt_id"]
    assert act(client, do="undo")["question"]["labels"] == {}


def test_two_browsers_get_different_items(room: Room, client: TestClient) -> None:
    other = room.client()
    seen = [act(browser, do="next")["question"]["item"] for browser in (client, other)]
    assert len(set(seen)) == 2


def test_an_answer_to_an_old_item_is_refused(client: TestClient) -> None:
    first = act(client, do="next")["question"]
    act(client, do="finish", rest="safe", item=first["item"])
    late = {"do": "label", "labels": {"3": "evil"}, "item": first["item"]}
    assert client.post("/api/review", json=late).status_code == 409


def test_a_new_name_gives_the_item_back(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    client.post("/api/me", json={"name": "bob"})
    assert act(client, do="state")["reviewer"] == "bob"
    assert act(client, do="next")["question"]["item"] == first["item"]
    assert {i.reviewer for i in room.store.queue.items("leased")} == {"bob"}


def test_the_lines_of_the_terminal_work(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    state = act(client, do="command", text="T1")
    assert state["question"]["labels"] == {"3": "evil"}
    state = act(client, do="command", text="")
    assert state["reveal"]["differences"] == [] or state["progress"]["now"] == 1
    prompt_id = room.store.queue.get(first["item"]).prompt_id
    state = act(client, do="command", text=f"open {prompt_id[:8]}")
    assert state["question"]["item"] == first["item"] and state["reveal"] is None
    act(client, do="command", text="- T1")
    assert 3 not in {one.token_id for one in room.store.labels.of(prompt_id).human}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"do": "nothing"},
        {"do": "label"},
        {"do": "label", "labels": {"3": "good"}},
        {"do": "label", "labels": {"x": "evil"}},
        {"do": "label", "labels": {"99": "evil"}},
        {"do": "label", "labels": []},
        {"do": "finish", "rest": "good"},
        {"do": "reject"},
        {"do": "note", "text": "  "},
        {"do": "command", "text": "what?"},
        {"do": "agree"},
    ],
)
def test_what_makes_no_sense_is_refused(room: Room, client: TestClient, asked: dict) -> None:
    act(client, do="next")
    assert client.post("/api/review", json=asked).status_code == 404
    assert not room.store.labels.of(room.prompts[0].prompt_id).human


def test_read_only_takes_no_item(room: Room, reader: TestClient) -> None:
    assert "read-only" in reader.get("/review").text
    assert reader.post("/api/review", json={"do": "next"}).status_code == 403
    assert not room.store.queue.items("leased")


def test_what_this_browser_saw_of_a_judge_is_kept_with_its_labels(
    room: Room, client: TestClient
) -> None:
    seen, unseen = room.prompts[0].prompt_id, room.prompts[1].prompt_id
    assert JUDGE not in client.get(f"/prompt/{unseen}").text
    unblind(room)
    assert JUDGE in client.get(f"/prompt/{seen}").text
    for _ in range(2):
        question = act(client, do="next")["question"]
        act(client, do="label", labels={"3": "safe"}, item=question["item"])
        act(client, do="finish", rest="safe", item=question["item"])
    for prompt_id, shown in ((seen, True), (unseen, False)):
        events = room.store.labels.events(prompt_id, author="ada")
        assert {e.judge_visible for e in events} == {shown}


def test_no_page_shows_a_label_of_the_item_that_is_answered(room: Room, client: TestClient) -> None:
    """The graph once named the judge's evil tokens; the bars' places told their mass."""
    prompt_id = act(client, do="next")["question"]["prompt_id"]
    targets = client.get(f"/api/graph/{prompt_id}").json()["targets"]
    assert {one["label"] for one in targets} == {None}
    features = client.get(f"/api/prompt/{prompt_id}/features").json()
    assert features["top"] == [] and "until you answer" in features["hidden"]
    page = client.get(f"/prompt/{prompt_id}").text
    assert JUDGE not in page and 'class="m-other" x="0"' not in page.replace("0.0", "1")
    item = room.store.queue.items("leased")[0].item_id
    act(client, do="finish", rest="safe", item=item)
    targets = client.get(f"/api/graph/{prompt_id}").json()["targets"]
    assert {one["label"] for one in targets} >= {"safe"}


def test_a_finished_item_is_opened_again_by_its_id(room: Room, client: TestClient) -> None:
    first = act(client, do="next")["question"]
    act(client, do="finish", rest="safe", item=first["item"])
    assert client.post("/api/review", json={"do": "reopen", "text": "zz"}).status_code == 404
    state = act(client, do="reopen", text=first["prompt_id"][:6])
    assert state["question"]["prompt_id"] == first["prompt_id"]
    assert set(state["question"]["labels"].values()) == {"safe"}
    assert len(room.store.queue.items("leased")) == 1


def test_a_typed_line_speaks_of_the_reveal_that_was_shown(room: Room, client: TestClient) -> None:
    item = act(client, do="next")["question"]["item"]
    act(client, do="finish", rest="safe", item=item)
    late = {"do": "command", "text": "agree", "of": item + 1}
    assert client.post("/api/review", json=late).status_code == 409
    act(client, do="command", text="why an idiom", of=item)
    act(client, do="command", text="agree", of=item)
    prompt = room.store.queue.get(item).prompt_id
    assert room.store.labels.of(prompt).by_token[3] == "evil"
    events = room.store.queries.attempt(prompt).review_events
    assert [e.text for e in events if e.action == "explained"] == ["an idiom"]


def test_keys_go_by_the_cursor_that_the_server_keeps(room: Room, client: TestClient) -> None:
    """The page had a second copy of cursor and labels, ahead of what was saved."""
    state = act(client, do="next")
    item, first = state["question"]["item"], state["question"]["merged"][0]
    assert state["cursor"] == {"list": "merged", "rank": first["rank"]}
    state = act(client, do="key", key="evil", item=item)
    assert state["question"]["labels"] == {str(first["token_id"]): "evil"}
    assert state["cursor"] == {"list": "merged", "rank": state["question"]["merged"][1]["rank"]}
    for word in ("abstain", "left"):
        state = act(client, do="label", labels={str(first["token_id"]): word}, item=item)
        assert state["question"]["left"] == [first["token_id"]]
    state = act(client, do="point", place="B1", item=item)
    assert state["cursor"] == {"list": "base", "rank": 1}
    state = act(client, do="key", key="low", item=item)
    assert not state["show_low"]
    state = act(client, do="key", key="rest_unsure", item=item)
    assert state["question"]["item"] != item and state["progress"]["now"] == 1
    late = {"do": "key", "key": "agree", "of": item + 1}
    assert client.post("/api/review", json=late).status_code == 409
    assert client.post("/api/review", json={"do": "key", "key": "dance"}).status_code == 404
