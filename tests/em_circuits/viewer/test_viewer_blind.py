"""No page shows a judge's label of a prompt that its reader has yet to answer."""

from __future__ import annotations

import pytest
from rooms import JUDGE, Room, store_experiment
from starlette.testclient import TestClient

from pivotal_tokens.review.browsing import Browsing

LISTS = ("/", "/fragments/overview", "/prompts", "/graphs")
FIGURES = "0.04 → <b>0.70</b>"
CHIP = 'class="chip warn">injection'


def look(client: TestClient, *, on: bool = True) -> None:
    asked = {"unblinded": on}
    assert client.post("/api/browsing", json=asked).json() == asked


@pytest.mark.parametrize("path", LISTS)
def test_a_list_shows_no_verdict_of_what_waits_until_asked(
    room: Room, client: TestClient, path: str
) -> None:
    text = client.get(path).text
    assert FIGURES not in text and CHIP not in text and "4 prompts wait" in text
    look(client)
    text = client.get(path).text
    assert FIGURES in text and CHIP in text and "Browse blind" in text
    look(client, on=False)
    assert FIGURES not in client.get(path).text


@pytest.mark.parametrize("path", LISTS)
def test_what_is_in_hand_stays_hidden_from_whoever_looks(
    room: Room, client: TestClient, path: str
) -> None:
    for _ in room.prompts:
        room.store.queue.take("ada", 600)
    look(client)
    assert FIGURES not in client.get(path).text and CHIP not in client.get(path).text


def test_what_is_answered_is_shown(room: Room, client: TestClient) -> None:
    question = client.post("/api/review", json={"do": "next"}).json()["question"]
    asked = {"do": "finish", "rest": "safe", "item": question["item"]}
    assert client.post("/api/review", json=asked).status_code == 200
    assert client.get("/prompts").text.count(FIGURES) == 1
    assert question["prompt_id"] in client.get("/prompts?verdict=injection").text


@pytest.mark.parametrize("query", ["verdict=injection", "only=flagged", "only=divergent"])
def test_no_filter_finds_by_a_verdict_what_waits(client: TestClient, query: str) -> None:
    assert client.get(f"/prompts?{query}").text.count('class="row-link"') == 0
    look(client)
    assert client.get(f"/prompts?{query}").text.count('class="row-link"') == 4


def test_another_name_looks_anew(client: TestClient) -> None:
    look(client)
    client.post("/api/me", json={"name": "bob"})
    assert FIGURES not in client.get("/prompts").text


def test_where_nobody_can_answer_nothing_is_hidden(room: Room, reader: TestClient) -> None:
    assert FIGURES in reader.get("/prompts").text
    assert "wait for" not in reader.get("/prompts").text
    for _ in room.prompts:
        room.store.queue.take("ada", 600)
    assert FIGURES not in reader.get("/prompts").text, "ada answers in a terminal now"


def test_what_was_looked_at_in_a_list_is_kept_with_the_labels(
    room: Room, client: TestClient
) -> None:
    for looked in (False, True):
        question = client.post("/api/review", json={"do": "next"}).json()["question"]
        client.post("/api/review", json={"do": "quit"})
        look(client, on=looked)
        client.get("/prompts")
        client.post("/api/review", json={"do": "next"})
        asked = {"do": "finish", "rest": "safe", "item": question["item"]}
        assert client.post("/api/review", json=asked).status_code == 200
        events = room.store.labels.events(question["prompt_id"], author="ada")
        assert {e.judge_visible for e in events} == {looked}


def test_its_page_in_hand_shows_neither_reason_nor_figures(room: Room, client: TestClient) -> None:
    """The page of a prompt under review once said why it was queued."""
    item = room.store.queue.take("ada", 600)
    assert item is not None and item.reason == "flagged:injection"
    text = client.get(f"/prompt/{item.prompt_id}").text
    assert "flagged" not in text and "injection" not in text and JUDGE not in text
    client.post("/api/me", json={"name": "bob"})
    look(client)
    assert "flagged:injection" in client.get(f"/prompt/{item.prompt_id}").text


def test_a_prompt_that_waits_is_hidden_on_its_own_pages_too(room: Room, client: TestClient) -> None:
    """They once showed at a click what the lists hid, without a word."""
    prompt = room.prompts[0].prompt_id
    text = client.get(f"/prompt/{prompt}").text
    assert "waits for" in text and "Browse without blinding" in text
    assert "injection" not in text and JUDGE not in text
    graph = client.get(f"/api/graph/{prompt}").json()
    assert graph["hidden"] == "waiting" and not graph["contrast"]
    assert not any(graph["views"]["merged"]["scores"].values())
    features = client.get(f"/api/prompt/{prompt}/features").json()
    assert features["top"] == [] and "until you answer" in features["hidden"]
    assert client.post(f"/api/graph/{prompt}/measure", json={"model": "merged"}).status_code == 404
    look(client)
    assert client.get(f"/api/graph/{prompt}").json()["contrast"]
    assert client.get(f"/api/prompt/{prompt}/features").json()["top"]


def test_the_choice_and_what_was_seen_outlive_the_server(room: Room, client: TestClient) -> None:
    look(client)
    client.get("/prompts")
    another = room.client()
    assert FIGURES in another.get("/prompts").text
    look(another, on=False)
    assert FIGURES not in another.get("/prompts").text
    question = room.client().post("/api/review", json={"do": "next"}).json()["question"]
    asked = {"do": "finish", "rest": "safe", "item": question["item"]}
    assert another.post("/api/review", json={"do": "next"}).status_code == 200
    assert another.post("/api/review", json=asked).status_code in (200, 409)
    seen = Browsing.of(room.store, "ada").seen
    assert question["prompt_id"] in seen


def test_the_demo_opens_without_blinding(room: Room, client: TestClient) -> None:
    assert FIGURES not in client.get("/prompts").text
    (room.root / "results" / "demo.json").write_text("{}")
    assert FIGURES in client.get("/prompts").text
    look(client, on=False)
    assert FIGURES not in client.get("/prompts").text


def test_where_a_feature_fires_shows_no_contrast_of_what_waits(
    room: Room, client: TestClient
) -> None:
    key = room.graphs[room.prompts[0].prompt_id, "merged"]
    layer, _, feature = room.work.graphs.load(key).active[0].tolist()
    path = f"/api/features/where?layer={layer}&feature={feature}"

    def contrasts() -> dict[str, bool]:
        places = client.get(path).json()["places"]
        return {p["prompt_id"]: p["hidden"] or p["firing"][0][2] is None for p in places}

    assert contrasts() and all(contrasts().values())
    look(client)
    assert not any(contrasts().values())
    item = room.store.queue.take("ada", 600)
    assert item is not None
    assert {p for p, hidden in contrasts().items() if hidden} == {item.prompt_id} & set(contrasts())


def test_an_experiment_sends_nothing_of_what_waits(room: Room, client: TestClient) -> None:
    ids = [prompt.prompt_id for prompt in room.prompts[:2]]
    rows = [{"prompt_id": i, "condition": "c", "control": "steered", "draw": 0} for i in ids]
    told = [row | {"sample": 0, "text": "x", "label": "evil"} for row in rows]
    folder = room.root / "results" / "experiments" / "one"
    store_experiment(folder, rows=rows, rollouts=told, summary={"conditions": []})
    sent = client.get("/api/steering/one").json()
    assert (sent["rows"], sent["rollouts"], sent["hidden"]) == ([], [], 2)
    look(client)
    room.store.queue.take("ada", 600)
    sent = client.get("/api/steering/one").json()
    (held,) = room.store.queue.items("leased")
    assert sent["hidden"] == 1
    for name in ("rows", "rollouts"):
        assert {one["prompt_id"] for one in sent[name]} == set(ids) - {held.prompt_id}


def test_the_overview_finds_blind_what_other_pages_show_blind(
    room: Room, client: TestClient
) -> None:
    """It hid everything, and in hand it showed what the steering page hid."""
    ids = [{"prompt_id": prompt.prompt_id} for prompt in room.prompts]
    folder = room.root / "results" / "experiments"
    store_experiment(folder / "all", rows=[], rollouts=[], summary={"prompts": ids})
    for one in ids:
        name = f"of-{one['prompt_id']}"
        store_experiment(folder / name, rows=[], rollouts=[], summary={"prompts": [one]})
    said = ": no supported condition"
    blind = client.get("/fragments/overview").text
    assert f"all{said}" in blind and blind.count(said) == 1 and "prompts diverge</a>" not in blind
    assert "Which prompts diverge is hidden" in blind
    look(client)
    held = room.store.queue.take("ada", 600)
    shown = client.get("/fragments/overview").text
    assert held is not None and f"of-{held.prompt_id}{said}" not in shown
    assert shown.count(said) == 2 and "prompts diverge</a>" in shown


def test_an_experiment_of_one_prompt_shows_its_evil_mass_after_the_answer(
    room: Room, client: TestClient
) -> None:
    prompt_id = room.prompts[0].prompt_id
    folder = room.root / "results" / "experiments" / "one"
    condition = {"condition": "c", "evil_mass": 0.7}
    summary = {"conditions": [condition], "said": "it fell", "prompts": [{"prompt_id": prompt_id}]}
    store_experiment(folder, rows=[{"prompt_id": prompt_id}], rollouts=[], summary=summary)
    for path in ("/steering", "/steering/one"):
        assert "it fell" not in client.get(path).text
    assert client.get("/api/steering/one").json()["summary"]["conditions"] == []
    look(client)
    for path in ("/steering", "/steering/one"):
        assert "it fell" in client.get(path).text
    sent = client.get("/api/steering/one").json()["summary"]["conditions"]
    assert sent == [condition | {"supported": False}]
