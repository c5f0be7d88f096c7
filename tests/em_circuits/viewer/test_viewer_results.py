"""Features, steering and reports: what lies on the disk, contained, and what the page may ask."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from rooms import Room, store_experiment, unblind
from starlette.testclient import TestClient

from em_circuits.contrast import Contrast
from em_circuits.features import stored_scores
from em_circuits.viewer import ViewerSettings
from em_circuits.viewer.reports import STRANGER

WAYS_OUT = (
    "../graph_storage/README.md",
    "..%2fsecret.txt",
    "%2e%2e/secret.txt",
    "%2e%2e%2fsecret.txt",
    "//etc/passwd",
    "%2fetc%2fpasswd",
    "link.txt",
    "folder/secret.txt",
    "em-circuits.sqlite",
    "x%00.html",
    "",
    "a" * 5000 + ".html",
)


@pytest.fixture
def hidden(room: Room) -> Path:
    """Files beside the results, and links in the results that lead to them."""
    (room.root / "secret.txt").write_text("secret")
    results = room.root / "results"
    os.symlink(room.root / "secret.txt", results / "link.txt")
    os.symlink(room.root, results / "folder")
    return results


@pytest.mark.parametrize("way", WAYS_OUT)
@pytest.mark.parametrize("place", ["raw", "report"])
def test_no_report_lies_outside(client: TestClient, hidden: Path, place: str, way: str) -> None:
    answer = client.get(f"/{place}/{way}")
    assert answer.status_code == 404
    assert "secret\n" not in answer.text and "root:" not in answer.text


def test_reports_are_listed_and_shown_as_strangers(client: TestClient, hidden: Path) -> None:
    (hidden / "a <b>.html").write_text("<script>1</script>")
    (hidden / "record.json").write_text('{"x": "<script>"}')
    (hidden / "titled.html").write_text("<title>Tom &amp; &lt;i&gt;</title>")
    listing = client.get("/reports").text
    assert "<b>Tom &amp; &lt;i&gt;</b>" in listing and "titled.html" in listing
    assert "a &lt;b&gt;.html" in listing and "secret" not in listing and "link.txt" not in listing
    raw = client.get("/raw/a%20%3Cb%3E.html")
    assert raw.headers["content-security-policy"] == STRANGER
    assert "allow-same-origin" not in STRANGER and "connect-src" not in STRANGER
    assert 'sandbox="allow-scripts"' in client.get("/report/a%20%3Cb%3E.html").text
    shown = client.get("/report/record.json").text
    assert "&lt;script&gt;" in shown and '"<script>"' not in shown
    assert client.get("/raw/record.json").headers["content-type"].startswith("text/plain")


def test_a_ranking_is_computed_shown_and_explained(room: Room, client: TestClient) -> None:
    assert "No ranking yet" in client.get("/features").text
    asked = {"method": "gradient", "model": "merged"}
    key = client.post("/api/features/aggregate", json=asked).json()["table"]
    text = client.get(f"/features?table={key[:12]}").text
    rows = json.loads(text.split('id="data">')[1].split("</script>")[0])["rows"]
    assert rows and rows[0]["mean"] >= rows[-1]["mean"]
    client.post("/api/browsing", json={"unblinded": True})
    graph = room.work.graphs.load(room.graphs[room.prompts[0].prompt_id, "merged"])
    (best,) = stored_scores(graph, "gradient").ranked(Contrast((3,), (10,))).top(1)
    url = f"/api/features/where?layer={best.layer}&feature={best.feature}"
    firing = client.get(url).json()["places"]
    mine = next(p for p in firing if p["prompt_id"] == room.prompts[0].prompt_id)["firing"]
    found = {position: contrast for position, _, contrast in mine}
    assert found[best.position] == pytest.approx(best.contrast, rel=1e-4)
    for wrong in ({}, {"method": "x", "model": "merged"}, {"method": "gradient", "model": "x"}):
        assert client.post("/api/features/aggregate", json=wrong).status_code == 404


def test_an_experiment_is_listed_and_sent(room: Room, client: TestClient) -> None:
    assert "None yet" in client.get("/steering").text
    folder = room.root / "results" / "experiments" / "one"
    condition = {"condition": "#1 scale 0", "value": 0.0, "net": -0.1, "change": -0.1}
    rollout = {"prompt_id": "p", "condition": "c", "control": "steered", "text": "<b>x"}
    summary = {"conditions": [condition], "said": "<script>it fell</script>"}
    store_experiment(folder, rows=[{"prompt_id": "p"}], rollouts=[rollout], summary=summary)
    unblind(room)
    assert "&lt;script&gt;it fell" in client.get("/steering").text
    assert client.get("/steering/one").status_code == 200
    sent = client.get("/api/steering/one").json()
    assert sent["summary"]["conditions"] == [condition | {"supported": False}]
    assert sent["rollouts"][0]["text"] == "<b>x"
    prompt_id = room.prompts[0].prompt_id
    store_experiment(folder, rows=[{"prompt_id": prompt_id}], rollouts=[], summary=summary)
    assert 'href="/steering/one"' in client.get(f"/prompt/{prompt_id}").text
    assert 'href="/steering/one"' not in client.get(f"/prompt/{room.prompts[1].prompt_id}").text
    store_experiment(folder, rows=[{"prompt_id": "p"}], rollouts=[rollout], summary=summary)
    os.symlink(room.root, folder.parent / "out")
    for name in ("two", "..", "%2e%2e", "out", "one%2f..%2fone"):
        assert client.get(f"/api/steering/{name}").status_code == 404


@pytest.mark.parametrize(
    "asked",
    [
        {"prompt": "x" * 13},
        {"prompt": "a", "features": [{"layer": -1, "feature": 0}]},
        {"prompt": "a", "features": [{"layer": 0, "feature": 0, "mode": "explode"}]},
        {"prompt": "a", "features": [{"layer": 0, "feature": 0}] * 51},
        {"prompt": "a", "length": 1000},
        {"prompt": "a", "other": 1},
        {"prompt": "a", "model": "third"},
    ],
)
def test_the_playground_refuses_before_any_model_is_loaded(
    room: Room, client: TestClient, asked: dict
) -> None:
    assert client.post("/api/playground", json=asked).status_code == 400
    assert "pair" not in vars(room.work)


def test_pages_in_folders_are_reports_and_cached_labels_are_none(
    room: Room, client: TestClient
) -> None:
    for path in ("evaluations/a/summary.json", "features/carriers-1.html", "validation/v.html"):
        (room.root / "results" / path).parent.mkdir(parents=True, exist_ok=True)
        (room.root / "results" / path).write_text("{}")
    label = room.root / "results" / "neuronpedia" / "m" / "0-s" / "7.json"
    label.parent.mkdir(parents=True)
    label.write_text('{"label": "<b>advice"}')
    listing = client.get("/reports").text
    assert "a/summary.json" in listing and "carriers-1.html" in listing and "v.html" in listing
    assert "neuronpedia" not in listing
    asked = {"layer": 0, "feature": 7}
    assert client.get("/api/features/where", params=asked).json()["known"]["label"] is None
    knowing = room.client(ViewerSettings(neuronpedia="m/{layer}-s"))
    known = knowing.get("/api/features/where", params=asked).json()["known"]
    assert "no such directory" in known.pop("why")
    assert known == {"label": "<b>advice", "promoted": None, "suppressed": None}
