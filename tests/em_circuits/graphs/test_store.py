"""Graphs come back bit for bit, or not at all and with a reason."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import synthetic
import torch
from synthetic import Size, header, synthetic_graph

from em_circuits.graphs import files
from em_circuits.graphs.files import read_logit_rows
from em_circuits.graphs.header import METADATA, Compressed, FileRecord, graph_key
from em_circuits.graphs.store import GraphStore
from em_circuits.object_store import artefact_root
from pivotal_tokens.artefacts import provenance_path, sha256_file, write_provenance
from pivotal_tokens.errors import RequestError, WorkFailed

GRAPH = synthetic_graph(Size(n_unselected=9))
KEY = GRAPH.header.key
PROVENANCE = {"inputs": {"model": "f" * 64}, "config": {"batch_size": 256}, "seed": 0}


@pytest.fixture(params=["folder", "objects"])
def store(tmp_path, request):
    if request.param == "objects":
        return GraphStore(artefact_root(f"memory://{tmp_path.name}") / "graphs")
    return GraphStore(tmp_path / "graphs")


ON_DISK = pytest.mark.parametrize("store", ["folder"], indirect=True)
"""Of tests that set a file's age."""


def keyed(key, *, graph=GRAPH, **fields):
    return dataclasses.replace(graph, header=header(graph.layout, key=key, **fields))


def assert_same(one, other):
    assert one.header == other.header
    assert one.targets.texts == other.targets.texts
    pairs = [
        (getattr(one.targets, n), getattr(other.targets, n))
        for n in ("token_ids", "probabilities", "logits", "ranks")
    ]
    pairs += [
        (getattr(one, n), getattr(other, n))
        for n in ("input_ids", "active", "activations", "selected", "gradient")
    ]
    pairs += [
        (getattr(one.edges, n), getattr(other.edges, n))
        for n in ("values", "logit_values", "extra_index", "extra_values", "row_mass")
    ]
    for mine, theirs in pairs:
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_graph_comes_back_bit_for_bit(store, bfloat16):
    graph = synthetic_graph(Size(n_unselected=9), bfloat16=bfloat16)
    path = store.save(graph, PROVENANCE)
    assert path == store.path(KEY) == store.root / "0123456789ab" / f"merged-{KEY[:12]}.safetensors"
    assert_same(graph, store.load(KEY))
    assert store.list() == (graph.header,)


def test_absent_scores_stay_absent(store):
    targets = dataclasses.replace(GRAPH.targets, logits=None, ranks=None)
    store.save(dataclasses.replace(GRAPH, targets=targets, gradient=None), {})
    loaded = store.load(KEY)
    assert loaded.targets.logits is None
    assert loaded.targets.ranks is None
    assert loaded.gradient is None
    assert loaded.edges.outside_mass is None


def test_edges_stay_on_disk_until_used(store):
    """Page-aligned private mappings: the tensor's memory belongs to the file."""
    store.save(synthetic_graph(Size(n_features=2000)), {})
    address = store.load(KEY).edges.values
    with open("/proc/self/maps") as maps:
        mapped = [line for line in maps if os.fspath(store.path(KEY)) in line]
    spans = [[int(x, 16) for x in line.split()[0].split("-")] for line in mapped]
    assert any(low <= address.data_ptr() < high for low, high in spans)


def test_logit_rows_are_read_alone(store):
    path = store.save(GRAPH, {})
    assert torch.equal(read_logit_rows(path), GRAPH.edges.logit_rows())
    store.drop_edges(KEY)
    with pytest.raises(RequestError, match="no edges"):
        read_logit_rows(path)


def test_the_same_graph_gives_the_same_file(store, tmp_path):
    other = GraphStore(tmp_path / "other")
    assert sha256_file(store.save(GRAPH, {})) == sha256_file(other.save(GRAPH, {}))


def test_provenance_stands_beside_the_graph(store):
    path = store.save(GRAPH, PROVENANCE)
    record = store.provenance(KEY)
    assert record["sha256"] == sha256_file(path)
    assert record["inputs"] == PROVENANCE["inputs"]
    assert record["config"] == PROVENANCE["config"]
    assert record["seed"] == 0
    assert record["key"] == KEY


def test_a_graph_is_there_only_with_its_provenance(store):
    assert not store.has(KEY)
    path = store.save(GRAPH, {})
    assert store.has(KEY)
    provenance_path(path).unlink()
    assert not store.has(KEY)
    assert "interrupted" in store.verify()[0].problem


def test_a_graph_is_found_by_a_prefix_that_is_unique(store):
    store.save(keyed("ab12" + "0" * 60), {})
    store.save(keyed("ab13" + "0" * 60), {})
    assert store.load("ab12").header.key.startswith("ab12")
    with pytest.raises(RequestError, match="No graph dddd"):
        store.load("dddd")
    for wrong in ("ab", "AB12", "../ab12", "*"):
        with pytest.raises(RequestError, match="hex digits"):
            store.path(wrong)
    store.save(keyed("ab1200" + "1" * 58), {})
    with pytest.raises(RequestError, match="2 graphs start with ab12"):
        store.load("ab12")


def test_names_cannot_leave_the_store(store):
    path = store.save(keyed(KEY, model="../../etc/x", prompt_id="../up"), {})
    assert path.resolve().is_relative_to(store.root.resolve())


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:100])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(os.urandom(5000))


def spoil_metadata(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b"format_version", b"formatXversion"))


@pytest.mark.parametrize("damage", [cut, cut_in_header, empty, garbage, spoil_metadata])
def test_a_damaged_file_is_named_and_can_be_rebuilt(store, damage):
    path = store.save(GRAPH, {})
    damage(path)
    with pytest.raises(WorkFailed, match="graphs build 0123456789ab") as caught:
        store.load(KEY)
    assert str(path) in str(caught.value)
    assert not store.has(KEY)
    assert store.list() == ()
    (found,) = store.verify(quarantine=True)
    assert found.problem
    assert found.quarantined.exists()
    assert not path.exists()
    assert store.verify() == ()
    store.save(GRAPH, {})
    assert_same(GRAPH, store.load(KEY))


def test_one_flipped_bit_in_the_edges_is_found_by_hashing(store):
    path = store.save(GRAPH, {})
    data = bytearray(path.read_bytes())
    values = GRAPH.edges.values.numpy().tobytes()
    data[data.index(values) + len(values) // 2] ^= 1
    path.write_bytes(data)
    (found,) = store.verify()
    assert found.key == KEY
    assert "has changed" in found.problem
    with pytest.raises(WorkFailed, match="has changed") as caught:
        store.load(KEY)
    assert str(path) in str(caught.value) and "graphs build 0123456789ab" in str(caught.value)


def test_what_is_broken_is_put_aside_when_it_is_asked_for(store, caplog):
    path = store.save(GRAPH, {})
    assert store.has_sound(KEY) and not caplog.records
    data = bytearray(path.read_bytes())
    data[-len(data) // 3] ^= 4
    path.write_bytes(data)
    assert not store.has_sound(KEY)
    assert str(path) in caplog.text and "put aside" in caplog.text
    assert not path.exists() and len(list(store.root.glob("quarantine/*/*.safetensors"))) == 1
    store.save(GRAPH, {})
    assert store.has_sound(KEY)
    assert_same(GRAPH, store.load(KEY))


def archived(graph, path):
    """The file as version 0.1 archived it: its large tensors compressed by blosc2."""
    blosc2 = pytest.importorskip("blosc2")
    tensors, compressed = files._tensors(graph), {}
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() >= 1 << 12:
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            chunks = blosc2.SChunk(chunksize=1 << 22, data=data)
            shape = tuple(tensor.shape)
            compressed[name] = Compressed(dtype=str(tensor.dtype)[6:], shape=shape)
            tensors[name] = torch.frombuffer(bytearray(chunks.to_cframe()), dtype=torch.uint8)
    assert compressed
    record = FileRecord(header=graph.header, texts=graph.targets.texts, compressed=compressed)
    files._write_tensors(path, tensors, {METADATA: record.model_dump_json()})
    write_provenance(path, inputs={}, config=PROVENANCE["config"], key=graph.header.key)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_archive_of_version_0_1_is_the_same_graph(store, bfloat16):
    graph = synthetic_graph(Size(n_features=400, n_unselected=20), bfloat16=bfloat16)
    path = store.save(graph, PROVENANCE)
    sound = path.read_bytes()
    archived(graph, path)
    assert path.read_bytes() != sound
    assert store.has(KEY) and store.has_sound(KEY)
    assert store.verify()[0].problem is None
    assert_same(graph, store.load(KEY))
    assert torch.equal(read_logit_rows(path), graph.edges.logit_rows())
    assert store.decompress(KEY) and path.read_bytes() == sound
    assert not store.decompress(KEY)
    assert store.provenance(KEY)["config"] == PROVENANCE["config"]


def test_an_archive_names_the_library_it_needs(store, monkeypatch):
    graph = synthetic_graph(Size(n_features=400))
    path = store.save(graph, {})
    archived(graph, path)
    monkeypatch.setitem(sys.modules, "blosc2", None)
    with pytest.raises(RequestError, match="pip install blosc2"):
        store.load(KEY)
    assert store.has_sound(KEY) and path.exists()  # it is whole, and nobody puts it aside


@pytest.mark.parametrize("damage", [cut, lambda path: os.truncate(path, 4000)])
def test_a_truncated_archive_is_named(store, damage):
    graph = synthetic_graph(Size(n_features=400))
    path = store.save(graph, {})
    archived(graph, path)
    damage(path)
    with pytest.raises(WorkFailed, match="corrupt or truncated") as caught:
        store.load(KEY)
    assert str(path) in str(caught.value)
    with pytest.raises(WorkFailed, match="corrupt or truncated"):
        read_logit_rows(path)


def test_sound_files_pass(store):
    store.save(GRAPH, {})
    assert [v.problem for v in store.verify()] == [None]


def test_a_file_under_another_key_is_not_served(store):
    path = store.save(GRAPH, {})
    other = "cd" * 32
    path.rename(path.with_name(f"merged-{other[:12]}.safetensors"))
    with pytest.raises(WorkFailed, match="it holds graph"):
        store.load(other)
    assert not store.has(other)


def test_another_format_version_is_refused(store):
    path = store.save(keyed(KEY, format_version=99), {})
    with pytest.raises(WorkFailed, match="format version 99"):
        store.load(KEY)
    assert path.exists()


def test_dropping_edges_keeps_the_scores(store):
    path = store.save(GRAPH, PROVENANCE)
    size = path.stat().st_size
    store.drop_edges(KEY)
    loaded = store.load(KEY)
    assert loaded.edges is None
    assert torch.equal(loaded.gradient, GRAPH.gradient)
    assert torch.equal(loaded.targets.logits, GRAPH.targets.logits)
    assert path.stat().st_size < size / 2
    assert store.provenance(KEY)["edges_dropped"] is True
    assert store.provenance(KEY)["config"] == PROVENANCE["config"]
    assert store.verify()[0].problem is None
    store.drop_edges(KEY)


def test_removing_takes_the_provenance_along(store):
    path = store.save(GRAPH, {})
    assert len(store.prune(max_bytes=0)) == 1
    assert list(path.parent.iterdir()) == []
    assert store.prune(max_bytes=0) == ()


def aged(store, days):
    """One graph per entry, written so many days ago."""
    keys = []
    for i, age in enumerate(days):
        key = f"{i:02x}" * 32
        path = store.save(keyed(key), {})
        when = time.time() - age * 86400
        os.utime(path, (when, when))
        keys.append(key)
    return keys


@ON_DISK
def test_pruning_by_age(store):
    keys = aged(store, [10, 1, 20])
    assert {p.path for p in store.prune(max_age_days=5.0, dry_run=True)} == {
        store.path(keys[0]),
        store.path(keys[2]),
    }
    assert len(store.list()) == 3
    store.prune(max_age_days=5.0)
    assert {h.key for h in store.list()} == {keys[1]}


@ON_DISK
def test_pruning_by_size_takes_the_oldest_first(store):
    keys = aged(store, [10, 1, 20])
    sizes = [store.path(key).stat().st_size for key in keys]
    removed = store.prune(max_bytes=sum(sizes) - sizes[2] // 2)
    assert [p.path.stem[-12:] for p in removed] == [keys[2][:12]]
    assert removed[0].bytes == sizes[2]
    assert store.prune(max_bytes=sum(sizes)) == ()


@ON_DISK
def test_pruning_can_drop_edges_only(store):
    keys = aged(store, [10, 1])
    (pruned,) = store.prune(max_age_days=5.0, edges_only=True)
    assert pruned.bytes > GRAPH.edges.nbytes / 2
    assert store.load(keys[0]).edges is None
    assert store.load(keys[1]).edges is not None


def test_what_a_dead_process_left_is_removed_in_time(store):
    path = store.save(GRAPH, {})
    left = [path.parent / f".{path.name}.{name}.tmp" for name in ("old", "new")]
    for temporary in left:
        temporary.write_bytes(b"half")
    os.utime(left[0], (1, 1))
    assert store.list() == (GRAPH.header,)
    store.prune()
    assert [p.exists() for p in left] == [False, True]


def test_a_full_disk_is_noticed_before_writing(store, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(WorkFailed, match="prune-store"):
        store.save(GRAPH, {})
    assert not store.root.exists()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_estimate_is_close(store, bfloat16):
    size = Size(n_features=1500, n_layers=8, n_pos=12, n_logits=10, n_unselected=500)
    path = store.save(synthetic_graph(size, bfloat16=bfloat16), {})
    estimate = store.estimate_bytes(
        n_features=1500,
        n_layers=8,
        n_pos=12,
        n_logits=10,
        n_active=2000,
        bytes_per_value=2 if bfloat16 else 4,
    )
    assert estimate == pytest.approx(path.stat().st_size, rel=0.06)


def test_a_kill_while_writing_leaves_nothing_half_written(tmp_path):
    """Looked at in mid-write and after a kill, the store holds whole graphs or none."""
    script = tmp_path / "writer.py"
    script.write_text(
        textwrap.dedent("""
        import dataclasses, sys
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from synthetic import Size, header, synthetic_graph
        from em_circuits.graphs.store import GraphStore

        store = GraphStore(Path(sys.argv[1]))
        graph = synthetic_graph(Size(n_features=600))
        print("ready", flush=True)
        i = 0
        while True:
            key = f"{i % 5:02x}" * 32
            made = dataclasses.replace(graph, header=header(graph.layout, key=key))
            store.save(made, {})
            i += 1
    """)
    )
    root = tmp_path / "graphs"
    command = [sys.executable, str(script), str(root), str(Path(synthetic.__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        store, generator = GraphStore(root), torch.Generator().manual_seed(0)
        for _ in range(8):
            time.sleep(0.05 * float(torch.rand((), generator=generator)) + 0.1)
            writer.send_signal(signal.SIGSTOP)
            for found in store.verify():
                assert found.problem is None or "no provenance" in found.problem
            writer.send_signal(signal.SIGCONT)
        writer.kill()
    for path in root.glob("*/*.safetensors"):
        store.load(path.stem[-12:])


def test_a_key_changes_with_everything_that_decides_the_content():
    base = {
        "model_fingerprint": "m",
        "adapter_hash": None,
        "transcoders": "t",
        "transcoder_fingerprint": "r",
        "attribution": {"batch_size": 1},
    }
    keys = {graph_key("0" * 12, **base), graph_key("1" * 12, **base)}
    for name, value in base.items():
        other = {"batch_size": 2} if isinstance(value, dict) else "other"
        keys.add(graph_key("0" * 12, **base | {name: other}))
    assert len(keys) == 2 + len(base)
    assert all(len(key) == 64 for key in keys)
    assert graph_key("0" * 12, **base) == graph_key("0" * 12, **base)


def of_prompt(store, digit, *, prompt_id="7" * 12, model="merged", **attribution):
    """A graph of a prompt in the store; gives its key."""
    key = digit * 64
    fields = {"prompt_id": prompt_id, "model": model, "attribution": attribution}
    store.save(keyed(key, **fields), PROVENANCE)
    return key


def test_a_prompt_means_its_model_s_graph(store):
    base, merged = of_prompt(store, "a", model="base"), of_prompt(store, "b")
    assert store.key_of("7777", model="base") == base
    assert store.key_of("7" * 12, model="merged") == merged
    assert store.key_of(base[:6], model="merged") == base[:6]  # a key says which model by itself
    with pytest.raises(RequestError, match="no graph of other"):
        store.key_of("7777", model="other")
    with pytest.raises(RequestError, match="No graph 1234"):
        store.key_of("1234", model="merged")


def test_full_edges_are_meant_unless_others_are_named(store):
    frozen, full = of_prompt(store, "a"), of_prompt(store, "b", edges="full")
    assert store.key_of("7777", model="merged") == full
    assert store.key_of("7777", model="merged", edges="frozen") == frozen
    with pytest.raises(RequestError, match="no graph of merged with measured edges"):
        store.key_of("7777", model="merged", edges="measured")
    of_prompt(store, "c", edges="full", batch_size=1)
    with pytest.raises(RequestError, match=r"2 graphs of merged with full edges: b{12}, c{12}"):
        store.key_of("7777", model="merged")


def test_digits_that_begin_a_key_and_a_prompt_are_refused(store):
    of_prompt(store, "7")
    with pytest.raises(RequestError, match="give more digits"):
        store.key_of("7777", model="merged")
    other = of_prompt(store, "a", prompt_id="7" * 11 + "8")
    with pytest.raises(RequestError, match="more digits"):
        store.key_of("7777", model="merged")
    assert store.key_of("7" * 11 + "8", model="merged") == other
