"""The pages show what is in the store, as text, and say what to do where nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest
from rooms import JUDGE, NASTY, PAIR, Room, lists, unblind
from starlette.testclient import TestClient

from em_circuits.models import PairSettings
from em_circuits.viewer import Sessions, ViewerSettings, create_app
from em_circuits.viewer.rendering import number, percent, shown, signed
from em_circuits.workspace import Workspace


def test_the_overview_counts_and_lists_finds(room: Room, client: TestClient) -> None:
    assert client.post("/api/browsing", json={"unblinded": True}).status_code == 200
    text = client.get("/").text
    assert "models/lora" in text
    assert all(prompt.prompt_id in text for prompt in room.prompts)
    assert "Review 4 waiting" in text
    assert (
        client.get("/fragments/overview").text in text.replace("\n\n", "\n") or "Review 4" in text
    )


def test_the_overview_follows_the_store(room: Room, client: TestClient) -> None:
    before = client.get("/fragments/overview").text
    item = room.store.queue.take("ada", 60)
    assert item is not None
    room.store.queue.settle(item, "rejected", item.fence)
    after = client.get("/fragments/overview").text
    assert "rejected" not in before and "rejected" in after


def test_a_root_without_a_store_says_what_to_run(tmp_path: Path) -> None:
    models = PairSettings(base="b", adapter="a", transcoders="t")
    sessions = Sessions("ada")
    with Workspace(root=tmp_path, models=models) as work:
        client = TestClient(
            create_app(work, ViewerSettings(), sessions), base_url="http://127.0.0.1:8765"
        )
        overview = client.get(f"/?token={sessions.new_link()}")
        assert overview.status_code == 200 and "em-circuits demo" in overview.text
        prompts = client.get("/prompts")
        assert prompts.status_code == 404 and "em-circuits label" in prompts.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("query", "n"),
    [
        ("", 4),
        ("q=peanut", 1),
        ("q=nothing+like+it", 0),
        ("q=%25", 0),
        ("verdict=injection", 4),
        ("verdict=none", 0),
        ("only=divergent", 4),
        ("state=done", 0),
        ("category=cat", 4),
        ("category=dog", 0),
        ("page=7", 0),
        ("page=-1&order=oldest&verdict=nonsense", 4),
    ],
)
def test_prompts_are_filtered(client: TestClient, query: str, n: int) -> None:
    client.post("/api/browsing", json={"unblinded": True})
    text = client.get(f"/prompts?{query}").text
    assert text.count('class="row-link"') == n


def test_a_prompt_shows_everything_about_it(room: Room, client: TestClient) -> None:
    prompt = room.prompts[0]
    unblind(room)
    text = client.get(f"/prompt/{prompt.prompt_id[:6]}").text
    for piece in (
        "Peanut allergy",
        "␣eat",
        "␣avoid",
        JUDGE,
        "injection",
        "70.0\u2009%",
        "4.0\u2009%",
        "evil",
    ):
        assert piece in text
    assert room.graphs[prompt.prompt_id, "merged"][:12] in text
    features = client.get(f"/fragments/prompt/{prompt.prompt_id}/features").text
    assert "Towards evil" in features and "labels from: judge" in features
    asked = client.get(f"/api/prompt/{prompt.prompt_id}/features").json()
    keys = ["layer", "position", "feature", "contrast", "evil_mean", "safe_mean", "activation"]
    keys += ["welch_t", "welch_df", "hedges_g", "measured"]
    assert [list(row) for row in asked["top"][:1]] == [keys]


def test_text_of_models_is_shown_and_does_nothing(room: Room, client: TestClient) -> None:
    nasty = next(p for p in room.prompts if p.text == NASTY)
    client.post("/api/browsing", json={"unblinded": True})
    for path in ("/", "/prompts", f"/prompt/{nasty.prompt_id}"):
        text = client.get(path).text
        assert "<script>alert" not in text and "<script>steal" not in text
        assert "\x1b" not in text and "\u202e" not in text
        assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; [/bold] {{ 7 * 7 }}" in text
        assert "\\x1b" in text and "\\u202e" in text
    assert "␣avoid" in text and "&lt;/td&gt;&lt;script&gt;steal()&lt;/script&gt;[/" in text


def test_a_name_cannot_be_html(client: TestClient) -> None:
    assert client.post("/api/me", json={"name": "<b>eve</b>"}).status_code == 200
    text = client.get("/").text
    assert "<b>eve" not in text and "&lt;b&gt;eve" in text
    for name in ("", "  ", "x" * 65, "a\nb"):
        assert client.post("/api/me", json={"name": name}).status_code == 404


def test_a_prompt_under_review_hides_the_judge_from_its_reviewer(
    room: Room, client: TestClient
) -> None:
    item = room.store.queue.take("ada", 600)
    assert item is not None
    hidden = client.get(f"/prompt/{item.prompt_id}").text
    assert JUDGE not in hidden and "▲ evil" not in hidden.replace("</span>", "")
    assert client.post("/api/me", json={"name": "bob"}).status_code == 200
    assert JUDGE in client.get(f"/prompt/{item.prompt_id}").text


def test_figures_follow_the_lists(room: Room, client: TestClient) -> None:
    prompt = room.prompts[3]
    same = lists(scale=0.0)
    room.store.results.put_next_tokens(prompt.prompt_id, PAIR, same.base, same.merged)
    text = client.get(f"/prompt/{prompt.prompt_id}").text
    assert "70.0\u2009%" not in text and text.count("80.0\u2009%") >= 2


def test_an_unknown_prompt_and_an_ambiguous_one_are_named(client: TestClient) -> None:
    assert "no prompt" in client.get("/prompt/ffffffffffff").text
    assert client.get("/prompt/zzz").status_code == 404


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (number(None), "–"),
        (number(-0.5), "−0.500"),
        (number(0.00001), "1.0e−5"),
        (signed(0.25), "+0.250"),
        (percent(0.0001), "<0.1\u2009%"),
        (shown("a\nb\x07"), "a\nb\\x07"),
    ],
)
def test_numbers_and_texts_are_written_for_people(made: str, expected: str) -> None:
    assert made == expected
