"""Graphs go to circuit-tracer and back with equal contents, and no pickle is read by accident."""

import dataclasses
import pickle

import pytest
import torch
from circuit_tracer.attribution.targets import LogitTarget
from circuit_tracer.graph import Graph, compute_node_influence
from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig
from synthetic import D_VOCAB, Size, header, synthetic_graph

from em_circuits.graphs import interop, unpickle
from em_circuits.graphs.interop import EXTRA, export_pt, import_pt
from em_circuits.graphs.unpickle import circuit_tracer_record
from em_circuits.influence import Method, Targets, influence
from em_circuits.influence.results import InfluenceResult
from pivotal_tokens.errors import RequestError, WorkFailed
from pivotal_tokens.schema import prompt_id

MINE = synthetic_graph(Size(n_unselected=8))


def upstream(**changes):
    """A graph as circuit-tracer makes it, with a virtual target."""
    ids = [*MINE.targets.token_ids.tolist()[:-1], D_VOCAB + 2]
    fields = {
        "input_string": "<bos>User: Climb?\nAssistant: You should",
        "input_tokens": MINE.input_ids,
        "active_features": MINE.active,
        "adjacency_matrix": MINE.edges.to_dense(),
        "cfg": UnifiedConfig(
            n_layers=4,
            d_model=8,
            d_head=4,
            n_heads=2,
            d_mlp=16,
            d_vocab=D_VOCAB,
            tokenizer_name="some/tokenizer",
            model_name="some/model",
            original_architecture="LlamaForCausalLM",
            dtype=torch.bfloat16,
        ),
        "selected_features": MINE.selected,
        "activation_values": MINE.activations.bfloat16(),
        "logit_targets": [
            LogitTarget(text, i) for text, i in zip(MINE.targets.texts, ids, strict=True)
        ],
        "logit_probabilities": MINE.targets.probabilities,
        "scan": ["layer-0", "layer-1"],
        "vocab_size": D_VOCAB - 256,
    }
    return Graph(**fields | changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of circuit-tracer's, imported once (its import takes seconds)."""
    path = tmp_path_factory.mktemp("pt") / "graph.pt"
    graph = upstream()
    graph.to_pt(str(path))
    return path, graph, import_pt(path, trust_pickle=True)


def test_an_untrusted_pickle_is_not_read(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "graph.pt"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RequestError, match="--trust-pickle"):
        import_pt(path)
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_no_graph_is_one_line(tmp_path):
    path = tmp_path / "graph.pt"
    torch.save({"weights": torch.zeros(2)}, path)
    with pytest.raises(RequestError, match="cannot be read as a circuit-tracer graph") as caught:
        import_pt(path, trust_pickle=True)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(RequestError, match="No file"):
        import_pt(tmp_path / "absent.pt", trust_pickle=True)


def test_an_imported_graph_has_the_same_contents(files):
    _, graph, imported = files
    assert torch.equal(imported.edges.to_dense(), graph.adjacency_matrix)
    assert torch.equal(imported.active, graph.active_features)
    assert torch.equal(imported.selected, graph.selected_features)
    assert torch.equal(imported.activations, graph.activation_values.float())
    assert torch.equal(imported.targets.probabilities, graph.logit_probabilities)
    assert imported.targets.token_ids.tolist() == [t.vocab_idx for t in graph.logit_targets]
    assert imported.header.d_vocab == D_VOCAB
    assert imported.header.selection.select_by == "probability"


def test_what_circuit_tracer_does_not_keep_is_absent_and_not_made_up(files):
    imported = files[2]
    assert imported.targets.logits is None
    assert imported.targets.ranks is None
    assert imported.gradient is None
    assert imported.header.fingerprint is None
    assert imported.edges.outside_mass is None
    result = influence(imported, Targets.each(imported), Method.TOTAL_EFFECT)
    assert result.coverage is None
    assert InfluenceResult.of(imported, result, top=3).coverage is None


def test_the_prompt_id_leaves_the_bos_out(files):
    text = "User: Climb?\nAssistant: You should"
    assert files[2].header.text == text
    assert files[2].header.prompt_id == prompt_id(text)


@pytest.fixture
def in_this_process(monkeypatch):
    """Spares the seconds that importing circuit-tracer takes in another process."""
    monkeypatch.setattr(interop, "_convert", unpickle.convert)


def test_the_same_file_gives_the_same_key(files, in_this_process):
    path, _, imported = files
    assert import_pt(path, trust_pickle=True).header.key == imported.header.key


def test_influence_works_on_an_imported_graph(files):
    _, graph, imported = files
    seed = torch.zeros(len(graph.adjacency_matrix))
    seed[-3:] = graph.logit_probabilities
    expected = compute_node_influence(graph.adjacency_matrix, seed)
    values = influence(imported, Targets.probabilities(imported), Method.ABSOLUTE).values[0]
    sources = imported.layout.sources
    assert torch.allclose(values[sources].float(), expected[sources], rtol=1e-4, atol=1e-7)


def test_exporting_an_import_gives_the_file_again(files, tmp_path):
    _, graph, imported = files
    export_pt(imported, tmp_path / "again.pt")
    again = Graph.from_pt(str(tmp_path / "again.pt"))
    assert vars(again).keys() == vars(graph).keys()
    for name, expected in vars(graph).items():
        found = getattr(again, name)
        if isinstance(expected, torch.Tensor):
            assert found.dtype == expected.dtype, name
            assert torch.equal(found, expected), name
        else:
            assert found == expected, name


def test_our_own_graphs_are_exported_with_circuit_tracers_record(tmp_path):
    extra = {EXTRA: circuit_tracer_record(upstream())}
    graph = dataclasses.replace(MINE, header=header(MINE.layout, extra=extra))
    export_pt(graph, tmp_path / "ours.pt")
    theirs = Graph.from_pt(str(tmp_path / "ours.pt"))
    assert torch.equal(theirs.adjacency_matrix, graph.edges.to_dense())
    assert theirs.cfg == upstream().cfg


def test_a_graph_without_the_record_cannot_be_exported(tmp_path):
    with pytest.raises(RequestError, match="model configuration"):
        export_pt(MINE, tmp_path / "no.pt")
    assert list(tmp_path.iterdir()) == []


def test_nan_edges_are_named_and_not_waited_for(tmp_path, in_this_process):
    matrix = MINE.edges.to_dense()
    matrix[50, 0] = torch.nan
    upstream(adjacency_matrix=matrix).to_pt(str(tmp_path / "nan.pt"))
    with pytest.raises(WorkFailed, match=r"feature node 0 .* -> feature node 50 "):
        import_pt(tmp_path / "nan.pt", trust_pickle=True)


@pytest.mark.parametrize(
    ("edges", "activations", "said"),
    [
        (torch.float32, torch.bfloat16, "computed in float32 and bfloat16; em-circuits doctor"),
        (torch.float32, torch.float32, "computed in float32; em-circuits doctor"),
        (torch.float32, torch.float16, "computed in float32 and float16; float16 ends at 65,504"),
        (torch.float16, torch.float32, "again in bfloat16 or float32"),
    ],
)
def test_an_overflow_is_laid_at_float16s_door_only_where_that_was_found(
    tmp_path, in_this_process, edges, activations, said
):
    # whatever the file was computed in, float16 was called the usual cause
    matrix = MINE.edges.to_dense().to(edges)
    matrix[50, 0] = torch.inf
    values = MINE.activations.to(activations)
    upstream(adjacency_matrix=matrix, activation_values=values).to_pt(str(tmp_path / "inf.pt"))
    with pytest.raises(WorkFailed, match="feature node 0 ") as failed:
        import_pt(tmp_path / "inf.pt", trust_pickle=True)
    assert said in str(failed.value)
    assert ("float16 ends" in str(failed.value)) == (torch.float16 in (edges, activations))


def older(fields: dict, version: str) -> dict:
    """The fields of a file as earlier and later versions wrote them."""
    ids = torch.tensor([target.vocab_idx for target in fields["logit_targets"]])
    rest = {k: v for k, v in fields.items() if k not in ("logit_targets", "vocab_size", "scan")}
    return {
        "0.1 to 0.3": {**rest, "logit_tokens": ids, "scan": fields["scan"]},
        "0.4": {**rest, "logit_targets": ids, "vocab_size": None, "scan": fields["scan"]},
        "after 0.5": {**rest, "logit_targets": fields["logit_targets"], "vocab_size": D_VOCAB}
        | {"scan_name": fields["scan"], "something_new": 1},
    }[version]


@pytest.mark.parametrize("version", ["0.1 to 0.3", "0.4", "after 0.5"])
def test_files_of_every_version_are_read(version, files, tmp_path, in_this_process):
    # TypeError, and the advice to give a file of Graph.to_pt, which it was
    path, graph, imported = files
    fields = older(torch.load(path, weights_only=False), version)
    torch.save(fields, tmp_path / "other.pt")
    found = import_pt(tmp_path / "other.pt", trust_pickle=True)
    assert torch.equal(found.edges.to_dense(), graph.adjacency_matrix)
    assert torch.equal(found.targets.token_ids, imported.targets.token_ids)
    assert found.header.scan == ("layer-0", "layer-1")
    assert found.header.d_vocab == D_VOCAB
    if version != "after 0.5":  # which kept no texts
        assert found.targets.texts == tuple(f"[{i}]" for i in found.targets.token_ids.tolist())


def test_what_a_file_of_no_version_lacks_is_named(files, tmp_path):
    fields = torch.load(files[0], weights_only=False)
    del fields["cfg"], fields["activation_values"]
    torch.save(fields, tmp_path / "other.pt")
    with pytest.raises(RequestError, match="it has no activation_values, cfg"):
        import_pt(tmp_path / "other.pt", trust_pickle=True)


@pytest.mark.parametrize("model", ["base", "merged"])
def test_a_graph_comes_back_as_the_model_it_was_of(model, tmp_path, in_this_process):
    # the name of the base's directory, "base", made every graph one of the base
    record = circuit_tracer_record(upstream()) | {"input_string": "<bos>User: Climb?"}
    record["cfg"]["model_name"] = "base"
    own = header(MINE.layout, extra={EXTRA: record}, model=model)
    graph = dataclasses.replace(MINE, header=own)
    export_pt(graph, tmp_path / "g.pt")
    found = import_pt(tmp_path / "g.pt", trust_pickle=True).header
    for name in ("model", "fingerprint", "adapter_hash", "transcoders", "prompt_id", "text"):
        assert getattr(found, name) == getattr(own, name), name
    assert found.key != own.key  # logits, ranks and gradient scores did not come back
    assert torch.equal(
        Graph.from_pt(str(tmp_path / "g.pt")).adjacency_matrix, graph.edges.to_dense()
    )


def test_a_graph_of_circuit_tracers_is_of_neither_model(tmp_path, in_this_process):
    cfg = dataclasses.replace(upstream().cfg, model_name="merged")
    upstream(cfg=cfg).to_pt(str(tmp_path / "g.pt"))
    assert import_pt(tmp_path / "g.pt", trust_pickle=True).header.model == "imported merged"
