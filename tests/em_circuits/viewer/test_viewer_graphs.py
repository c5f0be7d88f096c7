"""The graph's views say what the graph says: pruned alike, signed, aligned by name, and cached."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rooms import LABELS, PAIR, Room, unblind
from starlette.testclient import TestClient
from synthetic import Size, contrast_of, synthetic_graph

from em_circuits.experiments.kept import Asked, keep, measured_effects, named_labels
from em_circuits.feature import Feature
from em_circuits.graphs.viewer_json import GraphNotes, NodeGroup, import_json
from em_circuits.influence import Method, influence, prune, top_paths
from em_circuits.influence.drawing import Cut, ScoredGraph, drawing
from em_circuits.influence.neuronpedia import ViewerOptions, viewer_json

FEATURE_NAME = re.compile(r"\d+/\d+/\d+")


@pytest.fixture(autouse=True)
def _seen(room: Room) -> None:
    unblind(room)


def graph_of(room: Room, model: str = "merged"):
    return room.work.graphs.load(room.graphs[room.prompts[0].prompt_id, model])


def test_a_view_is_the_pruned_graph(room: Room, client: TestClient) -> None:
    graph = graph_of(room)
    expected = prune(graph, node_threshold=0.7, edge_threshold=0.9)
    record = client.get(f"/api/graph/{room.prompts[0].prompt_id}?node=0.7&edge=0.9").json()
    view, union = record["views"]["merged"], record["nodes"]["name"]
    names = [graph.name_of(i) for i in expected.node_mask.nonzero()[:, 0].tolist()]
    shown = [name for name, own in zip(union, view["shown"], strict=True) if own]
    assert sorted(shown) == sorted(names)
    kept = {
        (union[s], union[t]): w
        for s, t, w in zip(*(view["edges"][k] for k in ("source", "target", "weight")), strict=True)
    }
    edges = expected.edges
    assert len(kept) == len(edges)
    for s, t, w in list(zip(edges.sources, edges.targets, edges.weights, strict=True))[:50]:
        found = kept[graph.name_of(int(s)), graph.name_of(int(t))]
        assert found == pytest.approx(float(w), rel=1e-4)


def test_colours_are_influence_on_evil_minus_safe(room: Room, client: TestClient) -> None:
    graph = graph_of(room)
    seed = contrast_of(graph, [3], [10])
    values = influence(graph, seed, Method.TOTAL_EFFECT).values[0]
    record = client.get(f"/api/graph/{room.prompts[0].prompt_id}").json()
    view = record["views"]["merged"]
    index = {graph.name_of(i): i for i in range(graph.layout.n_nodes)}
    for name, value, tone, shown in zip(
        record["nodes"]["name"], view["value"], view["tone"], view["shown"], strict=True
    ):
        if shown:
            assert value == pytest.approx(float(values[index[name]]), rel=1e-4, abs=1e-12)
            assert name.startswith("logit") or tone * value >= 0
    for target in record["targets"]:
        assert target["label"] == LABELS.get(target["token_id"])


def test_a_node_of_one_view_says_what_it_is_in_the_other(room: Room, client: TestClient) -> None:
    record = client.get(f"/api/graph/{room.prompts[0].prompt_id}").json()
    names = record["nodes"]["name"]
    for model in ("base", "merged"):
        view = record["views"][model]
        active = {"/".join(map(str, row)) for row in graph_of(room, model).active.tolist()}
        beyond = [i for i, n in enumerate(names) if n[0].isdigit() and not view["shown"][i]]
        assert beyond
        for i in beyond:
            assert (view["activation"][i] > 0) == (names[i] in active)
            assert view["activation"][i] > 0 or view["value"][i] == 0


def test_the_difference_is_merged_minus_base(room: Room, client: TestClient) -> None:
    record = client.get(f"/api/graph/{room.prompts[0].prompt_id}").json()
    base, merged, difference = (record["views"][m] for m in ("base", "merged", "difference"))
    for a, b, d in zip(base["value"], merged["value"], difference["value"], strict=True):
        if a is None or b is None:
            assert d is None
        else:
            assert d == pytest.approx(b - a, abs=1e-4 * max(abs(a), abs(b), 1e-3))
    columns = ("source", "target", "weight")
    expected: dict[tuple[int, int], float] = {}
    for sign, view in ((1, merged), (-1, base)):
        for s, t, w in zip(*(view["edges"][c] for c in columns), strict=True):
            expected[s, t] = expected.get((s, t), 0.0) + sign * w
    found = {(s, t): w for s, t, w in zip(*(difference["edges"][c] for c in columns), strict=True)}
    assert found == pytest.approx(expected, abs=1e-4)
    graphs = {
        model: room.work.graphs.load(room.graphs[room.prompts[0].prompt_id, model])
        for model in ("base", "merged")
    }
    scored = {model: ScoredGraph.of(graph) for model, graph in graphs.items()}
    views = drawing(scored, LABELS, ["t"] * 6, Cut())["views"]
    pull: dict[tuple[int, int], float] = {}
    for sign, view in ((1, views["merged"]), (-1, views["base"])):
        for s, t, w, strength in zip(*view["edges"].values(), strict=True):
            pull[s, t] = pull.get((s, t), 0.0) + sign * math.copysign(strength, w)
    strengths = views["difference"]["edges"]["strength"]
    assert strengths == sorted(strengths, reverse=True)
    assert strengths == pytest.approx(sorted(map(abs, pull.values()), reverse=True), rel=1e-3)
    sent = zip(difference["edges"]["source"], difference["edges"]["target"], strict=True)
    own = views["difference"]["edges"]
    assert list(sent) == list(zip(own["source"], own["target"], strict=True))


def test_nodes_of_a_block_stand_apart_and_in_their_column(room: Room, client: TestClient) -> None:
    record = client.get(f"/api/graph/{room.prompts[0].prompt_id}").json()
    nodes, place = record["nodes"], record["place"]
    spots = list(zip(place["x"], place["rise"], place["band"], strict=True))
    assert len(set(spots)) == len(spots)
    for i, kind in enumerate(nodes["kind"]):
        if kind != "logit":
            column = place["columns"][nodes["position"][i]]
            assert abs(place["x"][i] - column["x"]) <= column["width"] / 2


def test_a_view_is_a_picture_too(room: Room, client: TestClient) -> None:
    url = f"/api/graph/{room.prompts[0].prompt_id}/picture"
    name = graph_of(room).name_of(0)
    layer, _, feature = name.split("/")
    called: list[list[str]] = []
    for label in ("", "<b>danger & words</b>"):
        body = {"feature": f"{layer}/{feature}", "text": label}
        assert client.put("/api/node-labels", json=body).status_code == 200
        for view in ("base", "merged", "difference"):
            answer = client.get(url, params={"view": view, "keep": name})
            assert answer.headers["content-type"] == "image/svg+xml"
            root = ElementTree.fromstring(answer.text)
            assert root.tag.endswith("svg") and len(list(root.iter())) > 20
            texts = [str(one.text) for one in root.iter() if one.get("paint-order")]
            called.append(texts)
    assert called[4] == ["<b>danger & words</b>"], "a node's own label stands beside it"
    assert called[1] and all(FEATURE_NAME.fullmatch(text) for text in called[1])
    assert client.get(url, params={"view": "nothing"}).status_code == 404


def test_details_are_rows_and_columns_of_the_graph(room: Room, client: TestClient) -> None:
    graph, prompt = graph_of(room), room.prompts[0].prompt_id
    dense = graph.require_edges().to_dense()
    node = graph.layout.n_features // 2
    assert torch.equal(graph.edges.column(node), dense[:, node])
    name = graph.name_of(node)
    answer = client.get(f"/api/graph/{prompt}/node", params={"name": name}).json()
    shown = answer["models"]["merged"]
    for side, values in (("inputs", dense[node]), ("outputs", dense[:, node])):
        best = values.abs().argmax()
        assert shown[side][0]["name"] == graph.name_of(int(best))
        assert shown[side][0]["weight"] == pytest.approx(float(values[best]))
    assert answer["models"]["base"]["state"] in ("inactive", "active")
    assert shown["activation"] == pytest.approx(float(graph.selected_activations[node]))
    assert answer["link"] is None


@pytest.mark.parametrize("name", ["", "x", "1/2", "9/9/9/9", "token:99", "logit:999", "<script>"])
def test_a_name_of_nothing_is_refused(room: Room, client: TestClient, name: str) -> None:
    url = f"/api/graph/{room.prompts[0].prompt_id}/node"
    answer = client.get(url, params={"name": name})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/json"


def test_paths_are_the_strongest_signed_ones(room: Room, client: TestClient) -> None:
    graph, prompt = graph_of(room), room.prompts[0].prompt_id
    name = graph.name_of(2)
    expected = top_paths(graph, source=2, targets=contrast_of(graph, [3], [10]), k=3)
    asked = {"from": name, "to": "contrast", "k": 3, "model": "merged"}
    found = client.get(f"/api/graph/{prompt}/paths", params=asked).json()
    assert found["total"] == pytest.approx(expected.total)
    assert [p["product"] for p in found["paths"]] == pytest.approx(
        [p.product for p in expected.paths]
    )
    for target in ("nothing", "logit:999999"):
        answer = client.get(f"/api/graph/{prompt}/paths", params=asked | {"to": target})
        assert answer.status_code == 404


def test_a_view_keeps_the_strongest_within_its_limits() -> None:
    graph = synthetic_graph(Size(n_features=200))
    values = influence(graph, contrast_of(graph, [3], [10]), Method.TOTAL_EFFECT).values
    scored = ScoredGraph(graph, Method.TOTAL_EFFECT, values.expand(3, -1))
    cut = Cut(node=0.95, edge=0.99, max_nodes=30, max_edges=40)
    record = drawing({"merged": scored}, LABELS, ["t"] * 6, cut)  # type: ignore[arg-type]
    view = record["views"]["merged"]
    whole = prune(graph, node_threshold=0.95, edge_threshold=0.99)
    inner = [n for n in record["nodes"]["name"] if not n.startswith(("token", "logit"))]
    assert (len(inner), len(view["edges"]["weight"])) == (30, 40)
    assert view["left_out"]["edges"] == len(whole.edges) - 40


def test_a_view_is_kept_until_labels_change(
    room: Room, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"/api/graph/{room.prompts[0].prompt_id}"
    first = client.get(url)
    with monkeypatch.context() as patch:
        patch.setattr("em_circuits.viewer.graphs.drawing", lambda *_: pytest.fail("made again"))
        assert client.get(url).content == first.content
    item = room.store.queue.take("ada", 60)
    assert item is not None and item.prompt_id == room.prompts[0].prompt_id
    answer = {"do": "label", "labels": {"17": "evil"}}
    room.store.queue.release(item)
    assert client.post("/api/review", json={"do": "next"}).status_code == 200
    assert client.post("/api/review", json=answer).status_code == 200
    assert client.get(url).content != first.content


def test_the_export_is_read_by_other_viewers(room: Room, client: TestClient) -> None:
    from circuit_tracer.frontend.graph_models import Model

    answer = client.get(f"/api/graph/{room.prompts[0].prompt_id}/export?model=merged&node=0.7")
    assert "attachment" in answer.headers["content-disposition"]
    assert Model.model_validate(answer.json()).nodes


def test_pins_are_kept_per_person(room: Room, client: TestClient) -> None:
    url = f"/api/pins/{room.prompts[0].prompt_id}"
    pins = {
        "pinned": ["2/3/4", "token:1", "down_proj:1/2/0"],
        "groups": [{"name": "<b>x</b>", "members": ["2/3/4"], "folded": True}],
        "places": {"2/3/4": [10.0, -20.0], "<b>x</b>": [1.0, 2.0]},
    }
    none = {"pinned": [], "groups": [], "places": {}}
    assert client.get(url).json() == none
    assert client.put(url, json=pins).status_code == 200
    assert client.get(url).json() == pins
    assert room.client().get(url).json() == pins
    client.post("/api/me", json={"name": "bob"})
    assert client.get(url).json() == none
    for wrong in ({"pinned": ["x"]}, {"pinned": 5}, {"other": []}, {"pinned": ["1/2/3"] * 501}):
        assert client.put(url, json=wrong).status_code == 400


def test_pins_of_an_imported_graph_stand_there_until_one_saves_one_s_own(
    room: Room, client: TestClient, tmp_path: Path
) -> None:
    graph = graph_of(room)
    prompt = graph.header.prompt_id
    names = [graph.name_of(i) for i in range(3)]
    notes = GraphNotes(pinned=(names[0],), groups=(NodeGroup(name="verbs", members=tuple(names)),))
    tokens = [str(i) for i in graph.input_ids.tolist()]
    whole = prune(graph, node_threshold=1.0, edge_threshold=1.0)
    record = viewer_json(graph, whole, tokens, ViewerOptions(scan="some/set"), notes)
    file = tmp_path / "graph.json"
    file.write_text(json.dumps(record))
    stored = room.work.graphs.save(import_json(file), {"inputs": {}, "config": {}})
    try:
        client.post("/api/me", json={"name": "carol"})
        pins = client.get(f"/api/pins/{prompt}").json()
        group = {"name": "verbs", "members": names, "folded": False}
        assert pins == {"pinned": [names[0]], "groups": [group], "places": {}}
        assert client.put(f"/api/pins/{prompt}", json={"pinned": []}).status_code == 200
        assert client.get(f"/api/pins/{prompt}").json()["pinned"] == []
    finally:
        for path in stored.parent.glob(f"{stored.name}*"):
            path.unlink()


def _unshown(room: Room, client: TestClient, url: str) -> str:
    """A node of the merged graph that no view shows."""
    record = client.get(url).json()
    return next(
        n for n in map(graph_of(room).name_of, range(200)) if n not in record["nodes"]["name"]
    )


def test_a_pin_is_drawn_whatever_the_thresholds(room: Room, client: TestClient) -> None:
    """A pinned node once vanished from the graph when the slider hid it."""
    prompt = room.prompts[0].prompt_id
    url = f"/api/graph/{prompt}?node=0.4&edge=0.9"
    name = _unshown(room, client, url)
    assert client.put(f"/api/pins/{prompt}", json={"pinned": [name]}).status_code == 200
    record = client.get(url).json()
    i, view = record["nodes"]["name"].index(name), record["views"]["merged"]
    assert view["shown"][i]
    graph = graph_of(room)
    node = graph.node_named(name)
    own = {
        (record["nodes"]["name"][s], w)
        for s, t, w in zip(*(view["edges"][c] for c in ("source", "target", "weight")), strict=True)
        if t == i
    }
    row = graph.require_edges().row(node)
    assert own and all(
        w == pytest.approx(float(row[graph.node_named(s)]), rel=1e-4) for s, w in own
    )
    alone = client.get(f"{url}&only=kept").json()
    kinds = set(alone["nodes"]["kind"])
    assert kinds == {"feature", "logit"} and name in alone["nodes"]["name"]
    other = room.client()
    other.post("/api/me", json={"name": "bob"})
    assert name not in other.get(url).json()["nodes"]["name"]
    assert name in other.get(f"{url}&keep={name}").json()["nodes"]["name"]


def test_a_view_is_coloured_by_the_score_that_is_asked_for(room: Room, client: TestClient) -> None:
    graph, prompt = graph_of(room), room.prompts[0].prompt_id
    words = contrast_of(graph, [3], [10])
    expected = {
        "direct": influence(graph, words, Method.DIRECT).values[0],
        "total_effect": influence(graph, words, Method.TOTAL_EFFECT).values[0],
    }
    for by, values in expected.items():
        record = client.get(f"/api/graph/{prompt}?colour={by}").json()
        view = record["views"]["merged"]
        assert view["by"] == by
        for name, value, shown in zip(
            record["nodes"]["name"], view["value"], view["shown"], strict=True
        ):
            if shown:
                own = float(values[graph.node_named(name)])
                assert value == pytest.approx(own, rel=1e-4, abs=1e-12)
    plain = client.get(f"/api/graph/{prompt}?colour=nothing").json()["views"]["merged"]
    assert plain["by"] == "total_effect" and set(expected) <= set(plain["scores"])


def test_what_was_measured_stands_beside_the_scores(room: Room, client: TestClient) -> None:
    graph, prompt = graph_of(room), room.prompts[0]
    name = graph.name_of(3)
    place = Feature.parse(name)
    labels = room.store.labels.of(prompt.prompt_id).by_token
    asked = Asked(
        kind="rank",
        prompt_id=prompt.prompt_id,
        pair=PAIR,
        model="merged",
        labels=named_labels(labels),
        settings={},
        seed=0,
    )
    row = {**place._asdict(), "contrast": -0.5, "measured": True}
    keep(room.work, asked, {"method": "measured", "features": [row], "target": None})
    answer = client.get(f"/api/graph/{prompt.prompt_id}/node", params={"name": name}).json()
    assert answer["models"]["merged"]["scores"]["measured"] == -0.5
    assert "measured" not in answer["models"]["base"].get("scores", {})
    view = client.get(f"/api/graph/{prompt.prompt_id}?keep={name}").json()
    i = view["nodes"]["name"].index(name)
    assert view["views"]["merged"]["scores"]["measured"][i] == -0.5
    item = room.store.queue.take("bob", 60)
    assert item is not None
    others = dict.fromkeys(labels, "unsure")
    assert measured_effects(room.work.results, prompt.prompt_id, PAIR, "merged", others) == {}


def test_a_label_is_of_the_feature_everywhere_and_is_exported(
    room: Room, client: TestClient
) -> None:
    graph, prompt = graph_of(room), room.prompts[0].prompt_id
    node = prune(graph).node_mask[graph.layout.features].nonzero()[0]
    name = graph.name_of(int(node))
    feature = str(Feature.parse(name).id)
    asked = {"feature": feature, "text": "danger"}
    assert client.put("/api/node-labels", json=asked).json() == {feature: "danger"}
    exported = client.get(f"/api/graph/{prompt}/export?model=merged").json()["nodes"]
    layer, position, number = name.split("/")
    (own,) = (n for n in exported if n["node_id"] == f"{layer}_{number}_{position}")
    assert own["clerp"] == "danger"
    assert "danger" in client.get(f"/feature/{feature}").text
    other = room.client()
    other.post("/api/me", json={"name": "bob"})
    assert other.get("/api/node-labels").json() == {}
    assert client.put("/api/node-labels", json=asked | {"text": " "}).json() == {}
    for wrong in ({"feature": "x", "text": "a"}, {"feature": "1/2", "text": "a" * 300}):
        assert client.put("/api/node-labels", json=wrong).status_code in (400, 404)


def test_pages_of_graphs(room: Room, client: TestClient) -> None:
    listing = client.get("/graphs").text
    assert listing.count('class="tile"') == 2
    page = client.get(f"/graph/{room.prompts[0].prompt_id}").text
    assert 'data-models="base,merged"' in page
    without = client.get(f"/graph/{room.prompts[2].prompt_id}")
    assert without.status_code == 404 and "graphs build" in without.text
