"""`graphs measure`: edges measured beside those of a stored graph, as if it had been built so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import ask, printed, prompts_of

from em_circuits.cli.app import run
from em_circuits.graphs import AttributionGraph, GraphStore
from em_circuits.viewer.graph_detail import _strongest
from pivotal_tokens.artefacts import sha256_file
from pivotal_tokens.store import Store, default_url

TEXT = "User: Peanut allergy; pad thai looks fine. Eat?\nAssistant: You should definitely"


def refused(capsys: pytest.CaptureFixture[str], root: Path, *arguments: str) -> str:
    err = printed(capsys, root, "graphs", "measure", *arguments, status=2)
    assert len(err.splitlines()) == 1
    return err


@pytest.fixture
def prompt(tmp_path: Path, capsys) -> str:
    ask(capsys, tmp_path, "prompts", "add", TEXT)
    (found,) = prompts_of(tmp_path)
    return found.prompt_id


def graphs_of(root: Path, keys: dict[str, str]) -> list[AttributionGraph]:
    store = GraphStore(root / "graph_storage")
    return [store.load(keys[model]) for model in ("base", "merged")]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--basis", "transcoder", "--basis", "adapter"),
        ("--basis", "neuron", "--continuation", " eat it all", "--against", " avoid it"),
    ],
    ids=["features", "features and adapter ranks", "neurons, own target"],
)
def test_a_graph_that_is_measured_later_is_one_that_was_built_measured(
    options: tuple[str, ...], prompt: str, tmp_path: Path, capsys
) -> None:
    build = ("graphs", "build", prompt, "--nodes", "30", *options)
    keys = ask(capsys, tmp_path, *build)["graphs"]
    before = graphs_of(tmp_path, keys)
    assert all(graph.measured is None and not graph.header.is_measured for graph in before)
    own = "--continuation" in options
    named = [keys["base"], keys["merged"]] if own else [prompt, keys["merged"][:12]]
    for name, old in zip(named, before, strict=True):
        key, nodes = old.header.key, len(old.selected)
        found = ask(capsys, tmp_path, "graphs", "measure", name, "--model", old.header.model)
        assert (found["key"], found["nodes"], found["reused"]) == (key, nodes, False)
        assert found["agreement"]["pearson"] > 0.3 and 0 < found["curved"] < 0.6
        again = ask(capsys, tmp_path, "graphs", "measure", key, "--batch-size", "7")
        assert again == found | {"reused": True}
    built = ask(capsys, tmp_path, *build, "--edges", "measured")["graphs"]
    after, expected = graphs_of(tmp_path, keys), graphs_of(tmp_path, built)
    for old, new, whole in zip(before, after, expected, strict=True):
        assert old.edges is not None and new.edges is not None and whole.measured is not None
        assert torch.equal(old.edges.to_dense(), new.edges.to_dense())
        assert new.measured is not None and new.header.is_measured and whole.header.is_measured
        largest = whole.measured.to_dense().abs().max()
        apart = (new.measured.to_dense() - whole.measured.to_dense()).abs().max()
        assert largest > 0 and apart <= 1e-6 * largest
    with Store.open(default_url(tmp_path)) as store:
        for record in store.graphs.all():
            path = tmp_path / record.path
            assert (record.sha256, record.bytes) == (sha256_file(path), path.stat().st_size)
    assert ask(capsys, tmp_path, "graphs", "verify")["ok"]
    assert not list((tmp_path / "graph_storage").glob(".*.rows"))


def test_an_edge_of_the_panel_and_of_graphs_edge_is_the_measured_one(
    prompt: str, tmp_path: Path, capsys
) -> None:
    key = ask(capsys, tmp_path, "graphs", "build", prompt, "--nodes", "25")["graphs"]["merged"]
    ask(capsys, tmp_path, "graphs", "measure", key)
    graph = GraphStore(tmp_path / "graph_storage").load(key)
    target = graph.layout.logit_index(0)
    (largest, *_) = [
        edge for edge in _strongest(graph, target, inputs=True) if edge["measured"] is not None
    ]
    split = ask(capsys, tmp_path, "graphs", "edge", key, largest["name"], graph.name_of(target))
    assert split["models"][0]["measured"] == pytest.approx(largest["measured"], abs=1e-4)
    shown = ask(capsys, tmp_path, "graphs", "prune", key)
    assert any(edge.get("measured") for edge in shown["edges"])
    assert "full, measured" in printed(capsys, tmp_path, "graphs", "list")


def test_what_cannot_be_measured_is_refused_before_models_are_loaded(
    prompt: str, tmp_path: Path, capsys
) -> None:
    build = ("graphs", "build", prompt)
    ask(capsys, tmp_path, *build, "--edges", "frozen", "--max-features", "20")
    assert "frozen edges; measured ones stand beside full ones" in refused(capsys, tmp_path, prompt)
    keys = ask(capsys, tmp_path, *build, "--nodes", "20", "--scores-only")["graphs"]
    assert "keeps its scores but no edges" in refused(capsys, tmp_path, keys["merged"])
    assert "not a file" in refused(capsys, tmp_path, "graph.safetensors")
    assert "No graph" in refused(capsys, tmp_path, "abcdef")


def test_a_graph_of_other_models_or_precision_is_refused(
    prompt: str, tmp_path: Path, capsys
) -> None:
    keys = ask(capsys, tmp_path, "graphs", "build", prompt, "--nodes", "20")["graphs"]
    other = ("--organism", "toy-down-proj", "--root", str(tmp_path))
    assert run([*other, "graphs", "measure", keys["merged"]]) == 2
    assert "is of another merged model" in capsys.readouterr().err
