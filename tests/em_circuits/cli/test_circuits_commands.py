"""`graphs paths`, `graphs prune` and `graphs scores` beside oracles, on a key and on a `.pt`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from circuit_tracer.graph import compute_graph_scores, prune_graph
from commands import ask, printed
from synthetic import Size, contrast_of, synthetic_graph
from upstream_graphs import upstream_graph

from em_circuits.cli.app import run
from em_circuits.graphs import GraphStore

GRAPH = synthetic_graph(Size(n_features=24, n_layers=3, n_pos=3, n_logits=4))
MATRIX = GRAPH.edges.to_dense().double()  # type: ignore[union-attr]
IDS = GRAPH.targets.token_ids.tolist()
KEY = GRAPH.header.key
CONTRAST = f"{IDS[0]},{IDS[1]}:{IDS[2]}"
NODE = {"index", "kind", "layer", "position", "feature", "module", "token_id", "text"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one synthetic graph, and the same written by circuit-tracer."""
    made = tmp_path_factory.mktemp("circuits")
    GraphStore(made / "graph_storage").save(GRAPH, {"inputs": {}, "config": {}})
    upstream_graph(GRAPH).to_pt(str(made / "graph.pt"))
    return made


def feature_name(node: int) -> str:
    return "/".join(str(x) for x in GRAPH.selected_features[node].tolist())


def carried(nodes: list[int], weights: dict[int, float]) -> float:
    """What a path carries: its edges, each over the activation of the feature it goes on to."""
    product = weights[nodes[-1]]
    for source, target in itertools.pairwise(nodes):
        product *= float(MATRIX[target, source])
        if target < GRAPH.layout.n_features:
            product /= float(GRAPH.selected_activations[target])
    return product


def test_paths_carry_the_product_of_their_edges_and_add_up(root, capsys) -> None:
    node = 1
    asked = ["--from", feature_name(node), "--to", CONTRAST, "--top", "5000"]
    shown = ask(capsys, root, "graphs", "paths", KEY[:6], *asked)
    layout = GRAPH.layout
    weights = {layout.logit_index(i): w for i, w in enumerate((0.5, 0.5, -1.0))}
    assert shown["target"]["text"] == "evil - safe (uniform)" and shown["from"]["index"] == node
    assert shown["unmatched"] == [] and len(shown["paths"]) > 3
    for path in shown["paths"]:
        assert all(set(n) == NODE for n in path["nodes"])
        expected = carried([n["index"] for n in path["nodes"]], weights)
        assert path["product"] == pytest.approx(expected, rel=1e-6)
        assert path["sign"] == (1 if expected > 0 else -1)
        assert path["share"] == pytest.approx(abs(expected) / shown["absolute_total"], rel=1e-6)
    sizes = [abs(path["product"]) for path in shown["paths"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(path["product"] for path in shown["paths"]) == pytest.approx(shown["total"])
    influence = ask(capsys, root, "influence", KEY[:6], "--targets", CONTRAST)
    assert influence["nodes"][node]["values"][0] == pytest.approx(shown["total"], rel=1e-9)


def test_paths_from_errors_and_tokens_to_one_logit_are_the_best(root, capsys) -> None:
    for name, node in (
        ("error:0/1", GRAPH.layout.error_index(0, 1)),
        ("token:2", GRAPH.layout.token_index(2)),
    ):
        asked = ["--from", name, "--to", str(IDS[3])]
        few = ask(capsys, root, "graphs", "paths", KEY[:6], *asked, "--top", "3")
        many = ask(capsys, root, "graphs", "paths", KEY[:6], *asked, "--top", "5000")
        assert few["from"]["index"] == node and few["target"]["token_id"] == IDS[3]
        assert [p["product"] for p in few["paths"]] == [p["product"] for p in many["paths"][:3]]
        assert sum(p["share"] for p in many["paths"]) == pytest.approx(1)


def test_pruning_keeps_circuit_tracers_nodes_and_edges(root, capsys) -> None:
    expected = prune_graph(upstream_graph(GRAPH), 0.6, 0.9)
    asked = ["--node-threshold", "0.6", "--edge-threshold", "0.9"]
    shown = ask(capsys, root, "graphs", "prune", KEY[:6], *asked)
    assert shown["method"] == "absolute_influence"
    kept = {node["index"] for node in shown["nodes"]}
    assert kept == set(expected.node_mask.nonzero()[:, 0].tolist())
    edges = {(edge["target"], edge["source"]) for edge in shown["edges"]}
    assert edges == {tuple(x) for x in expected.edge_mask.nonzero().tolist()}
    assert all(e["weight"] == float(MATRIX[e["target"], e["source"]]) for e in shown["edges"])
    assert sum(n for name, n in shown["kept"].items() if name != "edges") == len(kept)
    assert shown["kept"]["edges"] == len(edges)
    assert shown["of"]["edges"] == int(MATRIX.count_nonzero())


def test_contrast_pruning_ranks_by_signed_influence(root, capsys) -> None:
    asked = ["--targets", CONTRAST]
    shown = ask(capsys, root, "graphs", "prune", KEY[:6], *asked)
    assert shown["target"]["weights"] == {str(IDS[0]): 0.5, str(IDS[1]): 0.5, str(IDS[2]): -1.0}
    influence = ask(capsys, root, "influence", KEY[:6], *asked, "--method", "signed_influence")[
        "nodes"
    ]
    for node in shown["nodes"]:
        if node["kind"] != "logit":
            size = abs(influence[node["index"]]["values"][0])
            assert node["score"] == pytest.approx(size, rel=1e-9)


def test_scores_are_circuit_tracers_and_errors_go_by_name(root, capsys) -> None:
    shown = ask(capsys, root, "graphs", "scores", KEY[:6])
    replacement, completeness = compute_graph_scores(upstream_graph(GRAPH))
    assert shown["replacement"] == pytest.approx(replacement, rel=1e-5)
    assert shown["completeness"] == pytest.approx(completeness, rel=1e-5)
    layout = GRAPH.layout
    named = [layout.error_index(la, p) for la in range(3) for p in range(3)]
    some = ask(capsys, root, "graphs", "scores", KEY[:6], "--tokens", f"{IDS[1]},998")["errors"]
    assert some["tokens"] == [IDS[1], 998] and some["unmatched"] == [998]
    row = MATRIX[layout.logit_index(1)].abs()
    assert some["direct_mean"] == pytest.approx(float(row[named].sum()))
    assert some["direct_ratio"] == pytest.approx(float(row[named].sum() / row.sum()))
    assert 0 < some["multi_hop"] < 1
    assert shown["errors"]["direct_mean"] == pytest.approx(
        float(MATRIX[layout.logits][:, named].abs().sum()) / 4
    )


def test_a_file_of_circuit_tracer_alone_gives_the_same(root, capsys) -> None:
    for command in (
        ["paths", "--from", feature_name(1), "--to", CONTRAST],
        ["prune", "--targets", CONTRAST],
        ["scores", "--tokens", str(IDS[0])],
    ):
        name, *options = command
        mine = ask(capsys, root, "graphs", name, KEY, *options)
        file = [str(root / "graph.pt"), "--trust-pickle"]
        theirs = ask(capsys, root, "graphs", name, *file, *options)
        of_whom = {"graph": None, "prompt_id": None, "model": None}
        assert mine | of_whom == theirs | of_whom and mine["graph"] != theirs["graph"]


def test_several_graphs_are_a_line_each(root, capsys) -> None:
    status = run(["--root", str(root), "graphs", "scores", KEY, KEY[:4], "--json"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0 and len(lines) == 2 and json.loads(lines[0]) == json.loads(lines[1])


def test_without_json_there_is_a_table(root, capsys) -> None:
    for arguments in (
        ["paths", KEY, "--from", feature_name(0), "--to", str(IDS[0])],
        ["prune", KEY, "--targets", CONTRAST],
        ["scores", KEY, "--tokens", f"{IDS[0]},998"],
    ):
        out = printed(capsys, root, "graphs", *arguments).splitlines()
        assert len(out) > 2 and (arguments[0] == "paths" or all(len(x) <= 79 for x in out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paths", KEY, "--from", "0/0/1", "--to", str(IDS[0])], "does not fire"),
        (["paths", KEY, "--from", "nonsense", "--to", str(IDS[0])], "names no node"),
        (["paths", KEY, "--from", "token:1", "--to", "all"], "4 targets"),
        (["paths", KEY, "--from", "token:1", "--to", "1,x"], "token ids"),
        (["prune", KEY, "--targets", f"{IDS[0]}:999"], "no contrast"),
        (["prune", KEY, "--node-threshold", "1.5"], "1.5"),
        (["scores", KEY, "--tokens", "999"], "None of the tokens"),
        (["scores", "graph.pt"], "No file"),
        (["paths", KEY, "--from", "token:1", "--to", "evil-safe"], "no store"),
    ],
)
def test_what_cannot_be_answered_is_one_line(root, capsys, arguments, message) -> None:
    err = printed(capsys, root, "graphs", *arguments, status=2)
    assert message in err and len(err.splitlines()) == 1


def test_unmatched_labels_are_reported() -> None:
    from em_circuits.influence import Method, influence
    from em_circuits.influence.results import InfluenceResult

    seeds = contrast_of(GRAPH, [IDS[0], 998], [IDS[1]])
    shown = InfluenceResult.of(GRAPH, influence(GRAPH, seeds, Method.DIRECT), top=0)
    assert shown.unmatched == [998]
    assert torch.equal(seeds.weights.sum(1), torch.zeros(1, dtype=torch.float64))


def test_a_prompt_s_id_stands_for_its_graph_in_every_command(root, capsys) -> None:
    prompt, model = GRAPH.header.prompt_id, f"--model={GRAPH.header.model}"
    for command in (["influence"], ["graphs", "prune"], ["graphs", "scores"], ["graphs", "show"]):
        by_prompt = ask(capsys, root, *command, prompt, model)
        assert by_prompt == ask(capsys, root, *command, KEY)
