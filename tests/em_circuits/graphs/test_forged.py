"""Forged graph files, their provenance matching: named in one line, and no other graph suffers."""

import json
from dataclasses import replace

import pytest
import torch
from synthetic import Size, synthetic_graph

from em_circuits.cli.app import run
from em_circuits.graphs import files
from em_circuits.graphs.header import METADATA, FileRecord, read_record
from em_circuits.graphs.store import GraphStore
from pivotal_tokens.artefacts import write_provenance
from pivotal_tokens.errors import WorkFailed

GRAPH = synthetic_graph(Size(n_unselected=9))
KEY = GRAPH.header.key
OTHER = "cd" * 32


def forge(path, *, record=None, tensors=None, text=None):
    """Write a file again with a changed header or tensors, and its provenance beside."""
    graph = files.read_graph(path)
    made = {name: tensor.clone() for name, tensor in files._tensors(graph).items()}
    content = read_record(path).model_dump(mode="json")
    if record is not None:
        record(content)
    if tensors is not None:
        tensors(made)
    metadata = text if text is not None else json.dumps(content)
    files._write_tensors(path, made, {METADATA: metadata})
    write_provenance(path, inputs={}, config={}, key=KEY)


def header(**fields):
    return {"record": lambda content: content["header"].update(fields)}


def tensor(name, change):
    def changed(tensors):
        tensors[name] = change(tensors[name])

    return {"tensors": changed}


def put(index, value):
    def changed(tensor):
        tensor[index] = value
        return tensor

    return changed


HEADERS = {
    "more layers than memory": header(n_layers=10**12),
    "as many layers as are allowed": header(n_layers=10_000),
    "fewer layers": header(n_layers=1),
    "negative layers": header(n_layers=-4),
    "layers as text": header(n_layers="four"),
    "no words": header(d_vocab=0),
    "tokens of another prompt": header(tokens=["a", "b"]),
    "fewer active nodes than there are": header(n_active=1),
    "a part of no layer": header(
        with_errors=False, parts=[{"basis": "transcoder", "layer": 4 * i} for i in range(4)]
    ),
    "errors beside parts": header(parts=[{"basis": "transcoder", "layer": 0}]),
    "without errors": header(with_errors=False),
    "a target without terms": header(target={"name": "x", "unit": "nats"}),
    "a target of nonsense": header(
        target={"name": "x", "unit": "nats"}, attribution={"target": [{"kind": 3}]}
    ),
    "an unknown field": header(colour="red"),
    "a prompt of another directory": header(prompt_id="ba9876543210"),
    "format of the future": header(format_version=99),
    "selection of another kind": header(selection={"select_by": "taste"}),
    "fewer texts": {"record": lambda content: content.update(texts=["one"])},
    "a list": {"text": "[]"},
    "no JSON": {"text": "{"},
    "nested deeply": {"text": "[" * 100_000},
    "compressed as nothing": {
        "record": lambda content: content.update(
            compressed={"activations": {"dtype": "nothing", "shape": [3]}}
        )
    },
}
TENSORS = {
    "NaN behind a finite mass": tensor("edges.values", put(5, float("nan"))),
    "infinity behind a finite mass": tensor("edges.logit_values", put((0, 3), float("inf"))),
    "another mass": tensor("edges.row_mass", lambda mass: mass * 2),
    "negative mass outside": {
        "tensors": lambda made: made.update(
            {"edges.outside_mass": -torch.ones_like(made["edges.row_mass"])}
        )
    },
    "fewer values": tensor("edges.values", lambda values: values[:-1].clone()),
    "more values": tensor("edges.values", lambda values: torch.cat([values, values])),
    "an edge from nowhere": {
        "tensors": lambda made: made.update(
            {
                "edges.extra_index": torch.tensor([[0, 10**9]]),
                "edges.extra_values": torch.ones(1),
            }
        )
    },
    "nodes in two columns": tensor("active", lambda active: active[:, :2].clone()),
    "nodes as fractions": tensor("active", lambda active: active.float()),
    "a node of no position": tensor("active", put((-1, 1), 10**6)),
    "a negative node": tensor("active", put((0, 0), -1)),
    "nodes chosen twice": tensor("selected", put(1, 0)),
    "a node beyond": tensor("selected", put(-1, 10**6)),
    "activations that are none": tensor("activations", put(0, float("nan"))),
    "activations as integers": tensor("activations", lambda values: values.int()),
    "a token below 0": tensor("targets.token_ids", put(0, -1)),
    "probability of NaN": tensor("targets.probabilities", put(0, float("nan"))),
    "gradient of nothing": tensor("gradient", lambda gradient: gradient[:, :1].clone()),
    "tokens in a matrix": tensor("input_ids", lambda ids: ids[None].clone()),
    "no tokens": tensor("input_ids", lambda ids: ids[:0].clone()),
}


@pytest.fixture
def root(tmp_path):
    store = GraphStore(tmp_path / "graph_storage")
    store.save(GRAPH, {})
    other = GRAPH.header.model_copy(update={"key": OTHER, "model": "base"})
    files.write_graph(
        store.root / "0123456789ab" / f"base-{OTHER[:12]}.safetensors", replace(GRAPH, header=other)
    )
    write_provenance(store.path(OTHER), inputs={}, config={}, key=OTHER)
    return tmp_path


@pytest.mark.parametrize("forged", [*HEADERS, *TENSORS])
def test_what_is_forged_is_named_by_every_command(root, capsys, forged):
    store = GraphStore(root / "graph_storage")
    path = store.path(KEY)
    forge(path, **(HEADERS | TENSORS)[forged])
    moved = forged == "a prompt of another directory"  # which only verify looks at
    if not moved:
        with pytest.raises(WorkFailed) as caught:
            store.load(KEY)
        assert str(path) in str(caught.value)
    assert run(["--root", str(root), "graphs", "verify", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["checked"] == 2
    assert [problem["path"] for problem in found["problems"]] == [str(path)]
    assert run(["--root", str(root), "graphs", "list", "--json"]) == 0
    out, err = capsys.readouterr()
    assert OTHER in out and "Traceback" not in err
    for command in ("influence", "graphs show"):
        status = run(["--root", str(root), *command.split(), KEY])
        assert status == (0 if moved else 1)
        assert "Traceback" not in capsys.readouterr().err
        assert run(["--root", str(root), *command.split(), OTHER]) == 0
        capsys.readouterr()


def test_a_graph_that_is_written_again_as_it_is_passes(root):
    store = GraphStore(root / "graph_storage")
    forge(store.path(KEY))
    assert [one.problem for one in store.verify()] == [None, None]
    assert isinstance(read_record(store.path(KEY)), FileRecord)
    assert len(store.load(KEY).edges) == len(GRAPH.edges)


def test_a_file_that_may_not_be_read_stops_no_other(root):
    store = GraphStore(root / "graph_storage")
    path = store.path(KEY)
    path.unlink()
    path.mkdir()
    problems = {one.path: one.problem for one in store.verify()}
    assert problems.pop(path)
    assert set(problems.values()) == {None}
    assert [one.key for one in store.list()] == [OTHER]
