"""Graphs of the viewers come back as pruned graphs, with what people wrote on them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from circuit_tracer.frontend.graph_models import Link, Metadata, Model, Node, QParams
from synthetic import Size, dense_matrix, header, spread, synthetic_graph

from em_circuits.graphs.edges import Edges
from em_circuits.graphs.files import read_graph, write_graph
from em_circuits.graphs.graph import AttributionGraph
from em_circuits.graphs.header import NodePart
from em_circuits.graphs.layout import NodeLayout
from em_circuits.graphs.viewer_json import GraphNotes, NodeGroup, import_json, notes_of
from em_circuits.influence import Method, Targets, influence, prune
from em_circuits.influence.neuronpedia import ViewerOptions, viewer_json
from pivotal_tokens.errors import RequestError
from pivotal_tokens.schema import prompt_id

GRAPH = synthetic_graph(Size(n_features=60, n_unselected=10))
NOTES = GraphNotes(
    labels={GRAPH.name_of(3): 'says "no"', "error:1/2": "what is left"},
    pinned=(GRAPH.name_of(3), "token:2", "5/9/9"),
    groups=(NodeGroup(name="refusal", members=(GRAPH.name_of(3), GRAPH.name_of(4))),),
)


def write(path: Path, graph: AttributionGraph, notes: GraphNotes | None = None, share: float = 0.9):
    """The file of a graph, and what pruning left of it."""
    pruned = prune(graph, node_threshold=share, edge_threshold=1 - (1 - share) / 5)
    tokens = [f"tok{i}" for i in range(len(graph.input_ids))]
    record = viewer_json(graph, pruned, tokens, ViewerOptions(slug="s"), notes)
    path.write_text(json.dumps(record))
    return pruned, record


def named_edges(graph: AttributionGraph, pruned) -> dict[tuple[str, str], float]:
    edges = pruned.edges
    ends = zip(edges.sources.tolist(), edges.targets.tolist(), edges.weights.tolist(), strict=True)
    return {(graph.name_of(s), graph.name_of(t)): w for s, t, w in ends}


def test_a_graph_comes_back_pruned_with_its_edges(tmp_path: Path) -> None:
    pruned, _ = write(tmp_path / "g.json", GRAPH)
    found = import_json(tmp_path / "g.json")
    assert found.header.pruned and "frozen, pruned edges" in repr(found)
    assert found.header.model == GRAPH.header.model
    assert found.header.fingerprint == GRAPH.header.fingerprint
    assert found.header.key != GRAPH.header.key
    assert found.header.prompt_id == prompt_id(GRAPH.header.text)
    assert torch.equal(found.input_ids, GRAPH.input_ids)
    assert torch.equal(found.targets.token_ids, GRAPH.targets.token_ids)
    assert torch.equal(found.targets.probabilities, GRAPH.targets.probabilities)
    assert found.targets.texts == GRAPH.targets.texts
    assert found.targets.logits is None and found.gradient is None
    matrix = found.require_edges().to_dense()
    expected = named_edges(GRAPH, pruned)
    assert len(expected) > 50 and int((matrix != 0).sum()) == len(expected)
    for (source, target), weight in expected.items():
        at = matrix[found.node_named(target), found.node_named(source)]
        assert float(at) == pytest.approx(weight, rel=1e-6)
    for name in {end for ends in expected for end in ends}:
        node = found.node_named(name)
        if node < len(found.selected):
            mine = GRAPH.selected_activations[GRAPH.node_named(name)]
            assert float(found.selected_activations[node]) == float(mine)
    assert influence(found, Targets.each(found), Method.SIGNED).values.isfinite().all()


def test_labels_pins_and_groups_are_kept_and_written_again(tmp_path: Path) -> None:
    _, record = write(tmp_path / "g.json", GRAPH, NOTES, share=1.0)
    first = notes_of(import_json(tmp_path / "g.json").header)
    assert first.labels == NOTES.labels and first.groups == NOTES.groups
    assert first.pinned == NOTES.pinned[:2]  # there is no layer 5
    assert first.node_threshold == 1.0
    write_graph(tmp_path / "g.safetensors", import_json(tmp_path / "g.json"))
    stored = read_graph(tmp_path / "g.safetensors")
    _, again = write(tmp_path / "again.json", stored, share=1.0)
    assert again["qParams"] == record["qParams"]
    by_id = {node["node_id"]: node["clerp"] for node in record["nodes"]}
    assert {node["node_id"]: node["clerp"] for node in again["nodes"]}.items() <= by_id.items()
    ends = {(link["source"], link["target"]): link["weight"] for link in record["links"]}
    assert {(n["source"], n["target"]): n["weight"] for n in again["links"]} == ends


def test_adapter_nodes_and_full_edges_come_back(tmp_path: Path) -> None:
    parts = tuple(
        part
        for layer in range(4)
        for part in (
            NodePart(basis="transcoder", layer=layer),
            NodePart(basis="adapter", layer=layer, module="down_proj"),
        )
    )
    size, generator = Size(n_layers=len(parts)), torch.Generator().manual_seed(0)
    layout = NodeLayout(60, 0, size.n_pos, size.n_logits, parts=len(parts))
    active = spread(60, size, generator)
    matrix = dense_matrix(layout, active, torch.ones(60), generator)
    own = header(layout, parts=parts, n_layers=4, with_errors=False, attribution={"edges": "full"})
    graph = AttributionGraph(
        header=own,
        input_ids=GRAPH.input_ids,
        active=active,
        activations=torch.ones(60),
        selected=torch.arange(60),
        targets=GRAPH.targets,
        edges=Edges.from_dense(
            matrix, layout, active[:, 0].contiguous(), active[:, 1].contiguous()
        ),
    )
    write(tmp_path / "g.json", graph, share=1.0)
    found = import_json(tmp_path / "g.json")
    assert found.edge_kind == "full" and not found.header.with_errors
    names = {graph.name_of(i) for i in range(len(graph.selected))}
    assert {found.name_of(i) for i in range(len(found.selected))} == names
    assert any(name.startswith("down_proj:") for name in names)
    assert notes_of(found.header).labels == {}


def upstream(**changes) -> dict:
    """A file as circuit-tracer writes it."""
    nodes = [
        Node.feature_node(2, 1, 131071, activation=3.5),
        Node.feature_node(0, 1, 7, activation=1.5),
        Node.error_node(1, 2),
        Node.token_node(0, 128000),
        Node.token_node(1, 40),
        Node.token_node(2, 41),
        Node.logit_node(2, 500, " yes", 4, target_logit=True, token_prob=0.75),
    ]
    nodes[0].clerp = "agreement"
    links = [
        Link(source="E_40_1", target="0_7_1", weight=0.5),
        Link(source="0_7_1", target="2_131071_1", weight=-0.25),
        Link(source="0_1_2", target="5_500_2", weight=2.0),
        Link(source="2_131071_1", target="5_500_2", weight=1.0),
    ]
    record = Model(
        metadata=Metadata(
            slug="s",
            scan="gemma-2-2b",
            transcoder_list=[],
            prompt_tokens=["<bos>", "Climb", "?"],
            prompt="<bos>Climb?",
            node_threshold=0.8,
        ),
        qParams=QParams(
            pinnedIds=["2_131071_1", "gone"],
            supernodes=[["yes", "2_131071_1", "0_7_1"]],
            linkType="both",
            clickedId="",
            sg_pos="",
        ),
        nodes=nodes,
        links=[link.model_dump() for link in links],
    ).model_dump()
    return record | changes


def test_a_file_of_circuit_tracers(tmp_path: Path) -> None:
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(upstream()))
    found = import_json(path)
    assert found.header.n_layers == 4 and found.header.model == "gemma-2-2b"
    assert found.header.text == "Climb?" and found.header.tokens == ("<bos>", "Climb", "?")
    assert found.input_ids.tolist() == [128000, 40, 41]
    assert found.selected_features.tolist() == [[0, 1, 7], [2, 1, 131071]]
    assert found.targets.texts == (" yes",) and found.targets.token_ids.tolist() == [500]
    matrix = found.require_edges().to_dense()
    for source, target, weight in (
        ("token:1", "0/1/7", 0.5),
        ("0/1/7", "2/1/131071", -0.25),
        ("error:1/2", "logit:500", 2.0),
        ("2/1/131071", "logit:500", 1.0),
    ):
        assert matrix[found.node_named(target), found.node_named(source)] == weight
    assert notes_of(found.header) == GraphNotes(
        labels={"2/1/131071": "agreement"},
        pinned=("2/1/131071",),
        groups=(NodeGroup(name="yes", members=("2/1/131071", "0/1/7")),),
    )


def test_features_are_found_by_their_number_where_the_name_does_not_say(tmp_path: Path) -> None:
    record = upstream(links=[])
    for i, node in enumerate(record["nodes"][:2]):
        node["node_id"] = f"node-{i}"
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(record))
    assert import_json(path).selected_features.tolist() == [[0, 1, 7], [2, 1, 131071]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.pop("nodes"), "nodes: Field required"),
        (lambda r: r["nodes"].clear(), "no logit nodes"),
        (lambda r: r["links"].append({**r["links"][0], "source": "9_9_9"}), "names 9_9_9, which"),
        (
            lambda r: r["links"].append({"source": "5_500_2", "target": "0_7_1", "weight": 1.0}),
            "from 5_500_2 to 0_7_1, the wrong way",
        ),
        (lambda r: r["nodes"][0].update(feature_type="lorsa"), "type 'lorsa' have no place"),
        (lambda r: r["nodes"][0].update(ctx_idx=9), "stands behind the 3 prompt tokens"),
        (lambda r: r["nodes"].append(dict(r["nodes"][0])), "two nodes are called 2_131071_1"),
        (lambda r: r["nodes"][0].update(layer="four"), "has no layer: 'four'"),
        (lambda r: r["links"][0].update(weight=float("nan")), r"links.0.weight: .*finite"),
    ],
)
def test_what_is_no_graph_is_one_line(change, said: str, tmp_path: Path) -> None:
    record = upstream()
    change(record)
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(record))
    with pytest.raises(RequestError, match=said) as caught:
        import_json(path)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_other_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    for text in ("{", "[]", '{"nodes": []}'):
        path.write_text(text)
        with pytest.raises(RequestError, match="is not an attribution graph of"):
            import_json(path)
    with pytest.raises(RequestError, match="No file"):
        import_json(tmp_path / "absent.json")


def test_a_merged_graph_comes_back_as_merged(tmp_path: Path) -> None:
    for model in ("base", "merged"):
        own = header(GRAPH.layout, truncated=True, model=model)
        write(tmp_path / "g.json", dataclasses.replace(GRAPH, header=own))
        assert import_json(tmp_path / "g.json").header.model == model
