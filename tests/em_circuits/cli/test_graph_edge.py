"""`graphs edge`, the viewer's answer beside it, and `steer validate --edges`, on the organism."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import ask, printed
from starlette.testclient import TestClient
from subjects import PAD_THAI

from em_circuits.cli.app import run
from em_circuits.cli.steer import describe_edge_validation
from em_circuits.contrast import Contrast
from em_circuits.experiments.validate import EdgeValidationOutput
from em_circuits.graphs import AttributionGraph, GraphStore
from em_circuits.influence import Method, influence
from em_circuits.models import PairSettings
from em_circuits.organisms.paths import organism_paths
from em_circuits.viewer import Sessions, ViewerSettings, create_app
from em_circuits.workspace import Workspace
from pivotal_tokens.store import Store, default_url


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one labelled prompt, its frozen graphs, and full ones with adapter ranks."""
    root = tmp_path_factory.mktemp("edges") / "root"
    command = ["label", "--prompt", PAD_THAI, "--edges", "frozen", "--max-features", "80"]
    assert run(["--root", str(root), *command]) == 0
    more = ["--nodes", "80", "--basis", "transcoder", "--basis", "adapter"]
    assert run(["--root", str(root), "graphs", "build", *more]) == 0
    return root


@pytest.fixture(scope="module")
def graphs(root: Path) -> dict[str, AttributionGraph]:
    """The merged model's, by the kind of their edges."""
    store = GraphStore(root / "graph_storage")
    loaded = [store.load(h.key) for h in store.list() if h.model == "merged"]
    return {graph.edge_kind: graph for graph in loaded}


@pytest.fixture(scope="module")
def graph(graphs: dict[str, AttributionGraph]) -> AttributionGraph:
    return graphs["full"]


@pytest.fixture(scope="module")
def best(root: Path, graph) -> str:
    """The feature with the largest direct edge to the contrast."""
    with Store.open(default_url(root)) as store:
        words = Contrast.from_labels(store.labels.of(graph.header.prompt_id).by_token)
    values = influence(graph, words, Method.DIRECT).values[0, graph.layout.features]
    return graph.name_of(int(values.abs().argmax()))


def test_parts_sum_to_the_edge_in_both_models(root: Path, graph, best: str, capsys) -> None:
    key = graph.header.key[:12]
    found = ask(capsys, root, "graphs", "edge", key, best, "evil-safe")
    assert [m["model"] for m in found["models"]] == ["merged", "base"]
    assert (found["kind"], found["by"]) == ("full", "last")
    assert found["stored"] == pytest.approx(found["models"][0]["full"], rel=1e-4)
    with Store.open(default_url(root)) as store:
        words = Contrast.from_labels(store.labels.of(graph.header.prompt_id).by_token)
    direct = influence(graph, words, Method.DIRECT).values[0, graph.node_named(best)]
    assert found["stored"] == pytest.approx(float(direct), rel=1e-5)
    for model in (m for m in found["models"] if m["why_not"] is None):
        parts = model["parts"]
        size = max(abs(part["value"]) for part in parts)
        assert sum(part["value"] for part in parts) == pytest.approx(model["full"], abs=1e-5 * size)
        assert model["total"] == pytest.approx(model["full"], abs=1e-5 * size)
        assert abs(model["measured"]) > 0
        assert {"head", "norms"} <= {part["kind"] for part in parts}


def test_ranks_of_the_adapter_have_edges_in_the_merged_model_alone(
    root: Path, graph, capsys
) -> None:
    names = [graph.name_of(i) for i in range(len(graph.selected))]
    rank = next(name for name in names if ":" in name)
    ends = rank, f"logit:{int(graph.targets.token_ids[0])}"
    found = ask(capsys, root, "graphs", "edge", graph.header.key, *ends)
    merged, base = found["models"]
    assert merged["full"] == pytest.approx(found["stored"], rel=1e-4)
    assert merged["total"] == pytest.approx(merged["full"], rel=1e-3) and merged["measured"]
    assert base["why_not"] == f"{rank} is not active there" and base["parts"] == []


def test_a_person_reads_both_models_beside_each_other(
    root: Path, graphs: dict[str, AttributionGraph], capsys
) -> None:
    graph = graphs["frozen"]
    start = graph.name_of(
        int(graph.require_edges().logit_rows()[0, : len(graph.selected)].argmax())
    )
    command = ["graphs", "edge", graph.header.key[:12], start, "evil-safe", "--by", "first"]
    out = printed(capsys, root, *command, "--top", "3")
    assert "stored (frozen)" in out and "sum of the parts" in out and "smaller parts" in out
    assert "parts are of the full edge" in out and "by the first carrier" in out
    assert all(len(line) <= 79 for line in out.splitlines())


def test_the_viewer_answers_what_the_command_prints(root: Path, graph, best: str, capsys) -> None:
    prompt, key = graph.header.prompt_id, graph.header.key[:12]
    asked = {"from": best, "to": "evil-safe", "model": "merged"}
    paths = organism_paths()
    parts = {"base": paths.base, "adapter": paths.adapter, "transcoders": paths.transcoders}
    settings = PairSettings(**{name: str(path) for name, path in parts.items()})
    with Workspace(root=root, models=settings) as work:
        sessions = Sessions("ada")
        app = create_app(work, ViewerSettings(), sessions)
        origin = "http://127.0.0.1:8765"
        client = TestClient(app, base_url=origin, headers={"Origin": origin})
        assert client.get(f"/?token={sessions.new_link()}").status_code == 200
        for wrong in ("error:0/1", "evil-safe", "9/9/9"):
            answer = client.post(f"/api/graph/{prompt}/edge", json=asked | {"from": wrong})
            assert answer.status_code == 404 and work.loaded_pair is None
        blind = client.post(f"/api/graph/{prompt}/edge", json=asked)
        assert blind.status_code == 404 and work.loaded_pair is None, "the prompt waits for ada"
        assert client.post("/api/browsing", json={"unblinded": True}).status_code == 200
        sent = client.post(f"/api/graph/{prompt}/edge", json=asked).json()
    found = ask(capsys, root, "graphs", "edge", key, best, "evil-safe")
    assert sent == found


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("logit:1", "evil-safe", "token 1 is no target"),
        ("error:0/1", "evil-safe", "an edge begins at a feature or a token"),
        ("token:1", "error:3/2", "an edge ends at a feature, a logit, evil-safe or own"),
        ("token:1", "nonsense", "names no node"),
    ],
)
def test_ends_that_no_edge_has_are_refused_before_models_load(
    root: Path, graphs, source: str, target: str, said: str, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(Workspace, "pair", property(lambda self: pytest.fail("models loaded")))
    command = ["graphs", "edge", graphs["frozen"].header.key[:12], source, target]
    assert said in printed(capsys, root, *command, status=2)


def test_an_edge_against_the_order_is_refused(root: Path, graph, capsys) -> None:
    features = graph.selected_features
    late, early = int(features[:, 0].argmax()), int(features[:, 0].argmin())
    command = ["graphs", "edge", graph.header.key[:12], graph.name_of(late), graph.name_of(early)]
    assert "no edge leads from" in printed(capsys, root, *command, status=2)


def test_a_graph_of_other_models_is_refused(
    root: Path, graph, best: str, lifelike_paths, capsys
) -> None:
    paths = lifelike_paths
    other = ["--base", str(paths.base), "--adapter", str(paths.adapter)]
    other += ["--transcoders", str(paths.transcoders), "--dtype", "float32"]
    command = ["graphs", "edge", graph.header.key[:12], best, "evil-safe"]
    assert run([*other, "--root", str(root), *command]) == 2
    assert "is of another merged model" in capsys.readouterr().err


def test_edges_are_validated_by_distance_and_written(root: Path, graph, capsys) -> None:
    prompt = graph.header.prompt_id
    command = ["steer", "validate", prompt, "--edges", "--nodes", "60"]
    record = ask(capsys, root, *command)
    rows = {(row["edges"], row["kind"]): row for row in record["rows"]}
    assert {"all", "1", "contrast"} <= {edges for edges, _ in rows}
    assert rows["all", "full"]["agreement"]["spearman"] > 0.8
    for statistic in ("pearson", "spearman", "sign"):
        full, frozen = (rows["all", kind]["agreement"][statistic] for kind in ("full", "frozen"))
        assert full > frozen
    apart = sum(row["n_edges"] for (e, kind), row in rows.items() if e.isdigit() and kind == "full")
    assert apart == rows["all", "full"]["n_edges"]
    curved = record["curved"]
    assert 0 < curved["share"] < 0.5 and curved["largest"]
    for edge in curved["largest"]:
        larger = max(abs(edge["full"]), abs(edge["measured"]))
        assert abs(edge["full"] - edge["measured"]) > 0.5 * larger
    page = Path(record["files"]["html"]).read_text(encoding="utf-8")
    assert 'id="figure-1"' in page and "<script src" not in page and "curved" in page
    assert json.loads(Path(record["files"]["json"]).read_text(encoding="utf-8")) == record
    lines = "\n".join(
        describe_edge_validation(EdgeValidationOutput.model_validate(record))
    ).splitlines()
    assert "layers apart" in lines[2] and all(len(line) <= 79 for line in lines[:-1])


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--edges", "--regime", "free"], "leave out --regime"), (["--nodes", "9"], "is of --edges")],
)
def test_options_of_the_other_validation_are_refused(
    tmp_path: Path, more: list[str], said: str, capsys
) -> None:
    assert said in printed(capsys, tmp_path, "steer", "validate", *more, status=2)
